"""Limits: what a limit is on, and how it stands."""

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from statewright.ids import partition_of_limit
from statewright.values import Frozen, Name


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


class ConcurrencyLimit(Frozen):
    """At most `concurrency_limit` runs that the limit is on are RUNNING; `active_slots` are those that are.

    With `period_seconds` it is a rate: as many may become RUNNING in a period. `lease_seconds` is the lease of its runs
    that ask for none.
    """

    scope: LimitScope
    key: Name
    concurrency_limit: int
    period_seconds: float | None = None
    lease_seconds: float | None = None
    active_slots: tuple[UUID, ...] = ()

    @property
    def tag(self) -> str | None:
        """The tag that the limit is on, None for a limit of another scope."""
        return self.key if self.scope is LimitScope.TAG else None
