"""Runs as a producer reads them: a flow run or a task run, its policy and its history."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from statewright.states import State, StateType
from statewright.values import TAKES_DURATIONS, Frozen, Labels, Name, Offered, Tags

MAX_RETRY_DELAY_SECONDS = 10 * 365 * 86_400
MAX_RETRIES = 1_000_000
MAX_RETRY_DELAYS = 100
MAX_PAUSE_KEYS = 100
MAX_NAMED_LIMITS = 100

RetryDelay = Annotated[float, Field(ge=0, le=MAX_RETRY_DELAY_SECONDS, allow_inf_nan=False)]
RetryDelays = Annotated[tuple[RetryDelay, ...], Field(max_length=MAX_RETRY_DELAYS)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("names a limit twice")
    return names


LimitNames = Annotated[tuple[Name, ...], Field(max_length=MAX_NAMED_LIMITS), AfterValidator(_distinct)]


class RunKind(StrEnum):
    """The two kinds of runs."""

    FLOW_RUN = "flow-run"
    TASK_RUN = "task-run"


class RunPolicy(Offered):
    """How a run is retried, which named limits it asks for, and the marks that pausing leaves on it. It is small: it
    stands in every row of its run.

    Raises InvalidRequest, naming the field, for what the protocol does not take.
    """

    retries: Annotated[int, Field(ge=0, le=MAX_RETRIES)] | None = None
    """How often a failed attempt is repeated; None and 0 mean never."""
    retry_delay: Annotated[RetryDelay | RetryDelays, TAKES_DURATIONS] | None = None
    """Seconds between attempts, or durations, which are kept as seconds; a list gives one delay per attempt, its last
    one repeats."""
    retry_jitter_factor: RetryDelay | None = None
    """No default rule reads it."""
    pause_keys: Annotated[frozenset[Name], Field(max_length=MAX_PAUSE_KEYS)] = frozenset()
    """Marks that pauses leave; a producer leaves them out."""
    resuming: bool = False
    """A mark of a flow run that goes on after a pause; a producer leaves it out."""
    retry_type: Literal["in_process", "reschedule"] | None = None
    """No default rule reads it."""
    # Left out where it is empty, so that clients and workers of an earlier version understand the others.
    limits: Annotated[LimitNames, Field(exclude_if=lambda names: not names)] = ()
    """The named limits of which the run takes a slot each while it is RUNNING."""


class Run(Frozen):
    """What flow runs and task runs have in common. Times are UTC; durations are exact."""

    id: UUID
    """The run's id."""
    name: Name
    """For people."""
    tags: Tags = ()
    """Its tags."""
    policy: RunPolicy = RunPolicy()
    """How it is retried, and which named limits it asks for."""
    created: datetime
    """When it was created."""
    state: State | None = None
    """Its current state; None before the first one."""
    run_count: int = 0
    """How often it has entered RUNNING."""
    expected_start_time: datetime | None = None
    """When it was first expected to start."""
    next_scheduled_start_time: datetime | None = None
    """While it is SCHEDULED, when it may go on."""
    start_time: datetime | None = None
    """When it first entered RUNNING."""
    end_time: datetime | None = None
    """When it ended; None while it has not, or goes on."""
    total_run_time: timedelta = timedelta()
    """How long it has been RUNNING altogether, without the present RUNNING."""
    labels: Labels = Field(default_factory=dict)
    """The producer's own facts about the run."""

    def __hash__(self) -> int:
        # Labels have no hash, and runs with the same id are hardly ever in one set.
        return hash(self.id)

    @property
    def state_type(self) -> StateType | None:
        """The type of the current state, None before the first one."""
        return self.state.type if self.state else None

    @property
    def state_name(self) -> str | None:
        """The name of the current state, None before the first one."""
        return self.state.name if self.state else None


class FlowRun(Run):
    """A run of a flow; with `parent_task_run_id` it is a subflow, and that task run mirrors its states."""

    kind: Literal[RunKind.FLOW_RUN] = RunKind.FLOW_RUN
    flow_id: UUID | None = None
    """As it was created with."""
    deployment_id: UUID | None = None
    """As it was created with."""
    parent_task_run_id: UUID | None = None
    """As it was created with."""


class TaskRun(Run):
    """A run of a task, usually within a flow run."""

    kind: Literal[RunKind.TASK_RUN] = RunKind.TASK_RUN
    flow_run_id: UUID | None = None
    """As it was created with."""
    task_key: Name | None = None
    """As it was created with."""
    flow_run_run_count: int = 0
    """The flow run's run count when this run last entered RUNNING."""


class RunHistory(Frozen):
    """A run with every state that it was ever in, oldest first; the last one is the current state."""

    run: Annotated[FlowRun | TaskRun, Field(discriminator="kind")]
    """The run as it is now."""
    states: tuple[State, ...]
    """Its states, oldest first."""
    actors: Annotated[tuple[str | None, ...], Field(exclude_if=lambda actors: not actors)] = ()
    """Who has caused each of them: whoever has made the proposal, None where they have not said who they are. It is
    empty where nobody has said that of any."""
