"""The client: sends requests in order, and hands each answer to the caller that waits for it."""

from statewright.client.client import Client
from statewright.client.requests import Proposal

__all__ = ["Client", "Proposal"]
