"""What people look at: runs, partitions and workers as queries find them. Times are UTC."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from statewright.runs import FlowRun, RunKind, TaskRun
from statewright.states import StateType
from statewright.values import Frozen, Moment, Name

FoundRun = Annotated[FlowRun | TaskRun, Field(discriminator="kind")]


class Place(Frozen):
    """Where a page of runs ends, so that the next one begins behind it. It may be kept, also as JSON."""

    created: Moment
    """When the last run of the page was created."""
    id: UUID
    """That run."""


class RunPage(Frozen):
    """Some of the runs that were looked for, the newest first, each as it is now."""

    runs: tuple[FoundRun, ...] = ()
    """The runs, the newest first."""
    next: Place | None = None
    """Where to read on, as the argument `after` of the same call; None when there are no more."""


class StateCount(Frozen):
    """How many runs of a kind are in a state; of runs without a state, both its type and its name are None."""

    kind: RunKind
    """Of which kind the runs are."""
    state_type: StateType | None = None
    """The type of the state that they are in."""
    state_name: Name | None = None
    """The name of the state that they are in."""
    count: int
    """How many there are."""
    or_more: bool = False
    """Whether there may be more: counting ends at a bound, so that it never takes long."""


class RunTree(Frozen):
    """A run with what is below it: of a flow run its task runs, of a task run its subflows, the oldest first."""

    run: FoundRun
    """The run as it is now."""
    below: "tuple[RunTree, ...]" = ()
    """What is directly below it, each with what is below that."""
    or_more: bool = False
    """Whether there may be more below the run itself: `find_runs` with it as `parent` finds them all."""


class WorkerStatus(Frozen):
    """A worker that is alive, and what it works on."""

    worker: Name
    """The name that it has given itself."""
    host: str
    """Where it runs."""
    pid: int
    """The process on that host."""
    version: str
    """Of statewright."""
    since: Moment
    """When it was started, by its host's clock."""
    seeks: bool
    """Whether it takes partitions. One whose work gets nowhere, for example without PostgreSQL, does not."""
    partitions: tuple[int, ...] = ()
    """Those that it holds."""


class PartitionStatus(Frozen):
    """A partition as it stands: what waits in it, and what it has got to."""

    partition: int
    """Its number."""
    backlog: int
    """How many requests are unanswered."""
    oldest_seconds: float = 0.0
    """For how many seconds the oldest of them has been waiting."""
    worker: Name | None = None
    """Who holds the partition; None when nobody does."""
    held_since: Moment | None = None
    """Since when that one holds it, by Redis' clock."""
    sequence: int
    """The number of its last event."""
    era: int
    """The number of the era to which that event belongs."""
    parked: int
    """How many parked proposals wait in it."""
    due: int
    """How many timers have come due and are not carried out yet."""
    next_due: Moment | None = None
    """When the next timer comes due, or came due."""
