"""What a producer holds: its requests go out in order, and their answers find whoever waits for them."""

from statewright.client.client import Client
from statewright.client.requests import Proposal

__all__ = ["Client", "Proposal"]
