"""Limits: what a limit is on, who holds its slots, and who waits for them."""

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from statewright.ids import partition_of_limit
from statewright.runs import RunKind
from statewright.values import Frozen, Moment, Name


class LimitScope(StrEnum):
    """What limits are on."""

    TAG = "tag"
    """Task runs that carry the tag which is the limit's key."""
    NAME = "name"
    """Runs of either kind that ask for the limit in their policy; the key is its name."""
    DEPLOYMENT = "deployment"
    """Flow runs of the deployment whose id, as text, is the limit's key."""

    # Limits are looked up by their names all the time, and the hash of an enum is slow.
    __hash__ = str.__hash__


class LimitName(NamedTuple):
    """What a limit is on, and of these which one: there is one limit of a name."""

    scope: LimitScope
    key: str

    def partition(self, partitions: int) -> int:
        """Return the partition in which the limit is administered."""
        return partition_of_limit(self.scope, self.key, partitions)


class SlotHolder(Frozen):
    """A run that holds a slot, since when, and until when its lease is good, if it has one."""

    run_id: UUID
    """The run that holds a slot."""
    kind: RunKind
    """Whether it is a flow run or a task run."""
    name: Name
    """The run's name."""
    since: Moment
    """Since when it holds the slot."""
    lease_ends: Moment | None = None
    """Until when its lease is good, if it has one."""


class Waiter(Frozen):
    """A parked proposal that waits for a slot, and its priority: of those with a higher one, it is behind all."""

    proposal_id: UUID
    """The parked proposal."""
    run_id: UUID
    """Its run."""
    name: Name
    """The run's name."""
    priority: int
    """The greatest goes first."""
    since: Moment
    """Since when it is parked."""


class ConcurrencyLimit(Frozen):
    """At most `concurrency_limit` of the runs that the limit is on are RUNNING.

    With `period_seconds` it is a rate: as many of them may become RUNNING in a period, and nobody holds its slots.
    `lease_seconds` is the lease of its runs that ask for none.
    """

    scope: LimitScope
    """What it is on."""
    key: Name
    """The tag, the name, or the deployment's id as text."""
    concurrency_limit: int
    """How many runs may hold a slot."""
    period_seconds: float | None = None
    """Of a rate, its period; None otherwise."""
    lease_seconds: float | None = None
    """The lease of its runs that ask for none; None where it gives none."""
    free: int
    """How many slots are free now."""
    held: int = 0
    """How many runs hold a slot."""
    holders: tuple[SlotHolder, ...] = ()
    """Those that hold a slot, in the order in which they took it; the first 1,000, and none in a list of limits."""
    waiting: int = 0
    """How many parked proposals wait for a slot."""
    waiters: tuple[Waiter, ...] = ()
    """Those that wait for a slot, in the order in which they will get it; the first 100, and none in a list."""

    @property
    def tag(self) -> str | None:
        """The tag that the limit is on, None for a limit of another scope."""
        return self.key if self.scope is LimitScope.TAG else None

    @property
    def active_slots(self) -> tuple[UUID, ...]:
        """The runs of `holders`."""
        return tuple(holder.run_id for holder in self.holders)
