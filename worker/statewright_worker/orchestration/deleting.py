"""Deleting: which runs a batch deletes. Such a batch does nothing else, so what it deletes is as it was before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Final, NamedTuple
from uuid import UUID

DELETED_AT_ONCE: Final = 200
"""How many runs a batch deletes at most. A larger tree goes in several batches; nobody sees it from the first on."""


class RunsBelow(NamedTuple):
    """Some of the runs of a tree."""

    flow_runs: Sequence[UUID] = ()
    task_runs: Sequence[UUID] = ()
    unfinished: Sequence[UUID] = ()
    """Those of both that have not come to an end."""


class TreeRecord(NamedTuple):
    """A run with all that is below it."""

    run_id: UUID
    is_whole: bool
    """Whether the run is below no other."""
    runs: int
    unfinished: int
    """How many of the runs have not come to an end."""
    changed: datetime
    """When one of them was last created or changed."""
    waits: bool
    """Whether one of them has a proposal parked."""
    members: RunsBelow
    """The runs; none where the tree is too large for one batch."""

    @property
    def is_large(self) -> bool:
        """Whether one batch is not enough."""
        return self.runs > DELETED_AT_ONCE

    def is_over(self, unchanged_since: datetime) -> bool:
        """Return whether it is a whole tree of which nothing is left to be done, and which nobody has changed since."""
        return self.is_whole and not self.unfinished and not self.waits and self.changed < unchanged_since


@dataclass(slots=True)
class Deleting:
    """The trees of a batch. A part of the unit of work."""

    trees: dict[UUID, TreeRecord] = field(default_factory=dict)
    """Those that the batch has asked for, by their first run, if it exists."""
    left: dict[UUID, RunsBelow] = field(default_factory=dict)
    """Some of the runs that are left of trees whose deletion goes on."""
    numbers: dict[UUID, Sequence[int]] = field(default_factory=dict)
    """The sequence numbers of the states of each run that may be deleted, if it has any."""
    gone: set[UUID] = field(default_factory=set)
    """Those of the runs that the batch has asked for which were deleted, or are being so."""
    hidden: set[UUID] = field(default_factory=set)
    """Those of them whose rows are still there."""
    deleted: dict[UUID, list[RunsBelow]] = field(default_factory=dict)
    """The runs that are deleted, by the tree with which they go."""
    begun: dict[UUID, TreeRecord] = field(default_factory=dict)
    """Large trees whose deletion begins."""
    room: int = DELETED_AT_ONCE
    """How many more runs this batch may delete."""

    def delete(self, tree: UUID, runs: RunsBelow) -> None:
        """Delete some runs, or all, of the tree."""
        self.deleted.setdefault(tree, []).append(runs)
        self.room -= len(runs.flow_runs) + len(runs.task_runs)

    @property
    def portions(self) -> Iterable[RunsBelow]:
        """All runs that are deleted."""
        return chain.from_iterable(self.deleted.values())

    @property
    def numbers_gone(self) -> list[int]:
        """The sequence numbers of the states that are deleted."""
        runs = [run_id for portion in self.portions for run_id in (*portion.flow_runs, *portion.task_runs)]
        return [number for run_id in runs for number in self.numbers.get(run_id, ())]
