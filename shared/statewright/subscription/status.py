"""What is told of a named subscription: how far it is, who shares it, and what could not be delivered."""

from uuid import UUID

from statewright.subscription.filters import EventFilter
from statewright.values import Frozen, Message, Moment, Name


class ShareStatus(Frozen):
    """A share of a partition's events: those of some of its trees, always the same ones."""

    partition: int
    """The partition."""
    share: int
    """The share's number within it."""
    position: int
    """Every event of the share up to this number was acknowledged, or is in the dead letters."""
    lag: int
    """How many events of the partition lie behind that, those of other shares included."""
    member: Name | None = None
    """Who works on it."""
    tries: int = 0
    """How often the next event has failed."""


class MemberStatus(Frozen):
    """A member of a named subscription."""

    name: Name
    """Its name."""
    joined: Moment
    """Since when it is one."""
    seen: Moment
    """When it was last heard of."""
    shares: int
    """How many shares it has."""


class DeadLetter(Frozen):
    """An event that has failed as often as the subscription allows. It was passed over, and counts as acknowledged."""

    partition: int
    """The event's partition."""
    share: int
    """The share to which it belongs."""
    sequence: int
    """Its number in the partition."""
    event_id: UUID
    """Its id."""
    error: Message
    """What its last try has failed with."""
    tries: int
    """How often it was tried."""
    at: Moment
    """When that last try failed."""
    again: bool = False
    """Whether it is being delivered again."""


class SubscriptionStatus(Frozen):
    """A named subscription as it stands. In a list of them, shares, members and dead letters are only counted."""

    name: Name
    """Its name."""
    filter: EventFilter
    """Which events its members handle."""
    max_tries: int
    """How often an event is tried before it goes to the dead letters."""
    created: Moment
    """When it was made."""
    lag: int
    """How many events lie behind its positions, over all partitions, whether or not they pass its filter."""
    member_count: int
    """How many members it has."""
    dead_letter_count: int
    """How many dead letters it has, 1,000 at most: the newest."""
    shares: tuple[ShareStatus, ...] = ()
    """How far it is, share by share."""
    members: tuple[MemberStatus, ...] = ()
    """Who shares the work."""
    dead_letters: tuple[DeadLetter, ...] = ()
    """The first of them, oldest first."""

    @property
    def positions(self) -> dict[int, int]:
        """Behind which number of each partition not every event was acknowledged; a subscription may begin there."""
        positions: dict[int, int] = {}
        for share in self.shares:
            positions[share.partition] = min(share.position, positions.get(share.partition, share.position))
        return positions
