"""Statewright for code without an event loop: the same client, whose calls wait in the thread that makes them."""

from statewright.sync.client import Client
from statewright.sync.leases import Executor, KeepAlive
from statewright.sync.sent import AsAnswered, Sent, SentCreation, SentProposal, SentRun
from statewright.sync.subscription import NamedSubscription, Subscription

__all__ = [
    "AsAnswered",
    "Client",
    "Executor",
    "KeepAlive",
    "NamedSubscription",
    "Sent",
    "SentCreation",
    "SentProposal",
    "SentRun",
    "Subscription",
]
