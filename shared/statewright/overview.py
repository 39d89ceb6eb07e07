"""What people look at: partitions, workers and runs as queries find them."""

from datetime import datetime

from statewright.values import Frozen, Name


class PartitionStatus(Frozen):
    """A partition as it stands: what waits in it, and what it has got to. Times are UTC."""

    partition: int
    backlog: int
    """How many requests are unanswered."""
    oldest_seconds: float = 0.0
    """For how many seconds the oldest of them has been waiting."""
    worker: Name | None = None
    """Who holds the partition; None when nobody does."""
    held_since: datetime | None = None
    sequence: int
    """The number of its last event."""
    era: int
    parked: int
    """How many parked proposals wait in it."""
    due: int
    """How many timers have come due and are not carried out yet."""
    next_due: datetime | None = None
    """When the next timer comes due, or came due."""
