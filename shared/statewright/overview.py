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


class DeadRequest(Frozen):
    """A dead letter: a request that could not be carried out, and nothing of it was. Redis keeps its beginning."""

    partition: int
    """The partition to which it was pushed."""
    entry: str
    """The letter's id within its partition."""
    at: Moment
    """When it was pushed, by Redis' clock; a producer that chooses its entries' ids chooses this, too."""
    reason: str
    """Why it could not be carried out."""
    field: str | None = None
    """The field that was to blame; None where it was none."""
    request_id: str | None = None
    """The request's id, as it was written; None where it had none."""
    reply_to: str | None = None
    """The client that it said to answer."""
    type: str | None = None
    """Of which type the request is, where its message can be read."""
    run_id: str | None = None
    """Which run it is about, where its message can be read and says so."""
    message: str = ""
    """The beginning of its message, 4,096 bytes at most."""
    size: int = 0
    """How many bytes the message had."""
    is_whole: bool = True
    """Whether that is the whole message, so that it can be sent again."""
