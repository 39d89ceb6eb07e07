"""What the engine knows of runs, limits and states while it decides: plain records, no rows."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple
from uuid import UUID

from statewright.runs import ConcurrencyLimit, FlowRun, RunKind, RunPolicy, TaskRun
from statewright.states import State, StateType

_FLOW_RUN_FIELDS: Final = tuple(FlowRun.model_fields)
_TASK_RUN_FIELDS: Final = tuple(TaskRun.model_fields)


@dataclass(kw_only=True)
class RunRecord:
    """A run's bookkeeping, which transforms keep up to date while a transition is governed."""

    kind: ClassVar[RunKind]

    id: UUID
    name: str
    created: datetime
    tags: tuple[str, ...] = ()
    policy: RunPolicy = field(default_factory=RunPolicy)
    state: State | None = None
    state_count: int = 0
    state_type: StateType | None = None
    state_name: str | None = None
    state_timestamp: datetime | None = None
    run_count: int = 0
    expected_start_time: datetime | None = None
    next_scheduled_start_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    total_run_time: timedelta = timedelta()


@dataclass(kw_only=True)
class FlowRunRecord(RunRecord):
    """A flow run."""

    kind = RunKind.FLOW_RUN

    flow_id: UUID | None = None
    deployment_id: UUID | None = None
    parent_task_run_id: UUID | None = None

    def as_run(self) -> FlowRun:
        """Return the run as a producer reads it."""
        return FlowRun.trusted(**{name: getattr(self, name) for name in _FLOW_RUN_FIELDS})


@dataclass(kw_only=True)
class TaskRunRecord(RunRecord):
    """A task run."""

    kind = RunKind.TASK_RUN

    flow_run_id: UUID | None = None
    task_key: str | None = None
    flow_run_run_count: int = 0

    def as_run(self) -> TaskRun:
        """Return the run as a producer reads it."""
        return TaskRun.trusted(**{name: getattr(self, name) for name in _TASK_RUN_FIELDS})


AnyRunRecord = FlowRunRecord | TaskRunRecord


class LimitScope(StrEnum):
    """What limits are on."""

    TAG = "tag"
    """Task runs that carry the tag which is the limit's key."""


class LimitName(NamedTuple):
    """What a limit is on, and of these which one: there is one limit of a name."""

    scope: LimitScope
    key: str


@dataclass(slots=True)
class LimitRecord:
    """A concurrency limit, how many slots of it are held, and which of the runs at hand hold one."""

    id: int
    scope: LimitScope
    key: str
    concurrency_limit: int
    slots_held: int = 0
    holders: set[UUID] = field(default_factory=set)

    @property
    def name(self) -> LimitName:
        """What it is on."""
        return LimitName(self.scope, self.key)

    def has_room_for(self, run_id: UUID) -> bool:
        """Whether the run may be RUNNING under this limit; one that holds a slot already may."""
        return run_id in self.holders or self.slots_held < self.concurrency_limit

    def as_limit(self) -> ConcurrencyLimit:
        """Return the limit on a tag as a producer reads it; complete only when every holder was loaded."""
        return ConcurrencyLimit(
            tag=self.key, concurrency_limit=self.concurrency_limit, active_slots=tuple(sorted(self.holders))
        )


@dataclass(slots=True)
class CacheEntry:
    """A completed state that serves later runs of the same cache key."""

    cache_key: str
    cache_expiration: datetime | None
    state: State


@dataclass(slots=True)
class StateChange:
    """A state that a run has entered: one row of its history, and what its event tells."""

    run: AnyRunRecord
    ordinal: int
    """1 for the run's first state, then 2, 3 … without gaps."""
    state: State
    previous: State | None
    run_count: int = 0


class TimerKind(StrEnum):
    """What comes due: each kind is carried out by the kind of request that `requests/due.py` names for it."""

    PARKED = "parked"
    """A parked proposal is looked at again, or its answer was sent and it can go; the id is the proposal's."""
    LEASE = "lease"
    """A run's lease ends; the id is the run's."""
    EXECUTOR = "executor"
    """An executor's lease ends; the id belongs to its name and partition."""


class TimerName(NamedTuple):
    """Which timer: what comes due, and of these which one."""

    kind: TimerKind
    id: UUID


@dataclass(slots=True)
class Timer:
    """When the holder of a partition must look at something: no later than at `due`."""

    partition: int
    due: datetime


class LeaseRecord(NamedTuple):
    """Until when a run's RUNNING is good without a heartbeat."""

    run_id: UUID
    state_id: UUID
    """The state RUNNING that it belongs to."""
    seconds: float
    ends: datetime
    """With an executor, whose own lease counts, only the moment at which its lease for this run began to be good."""
    executor: str | None = None


class Standing(NamedTuple):
    """What a run is in, of which only that is asked; None without a state."""

    state_type: StateType | None
    state_name: str | None
    state_message: str | None
    executor: str | None
    """Who holds it by a lease, if an executor does."""


@dataclass(slots=True)
class ParkedProposal:
    """A proposal that is kept until it can be decided."""

    proposal_id: UUID
    run_id: UUID
    digest: int
    message: str
    """The request as JSON."""
    reply_to: str | None
    entry_id: str
    since: datetime
    until: datetime | None
    """Until when it may wait; None means for ever."""
    decided: bool = False
    """Whether it has an answer, in the ledger, which may not have been sent yet."""
    waits_on: tuple[LimitName, ...] = ()
    """The limits in whose queues it stands."""


@dataclass(slots=True)
class Answer:
    """What the ledger keeps of a request that is no decided proposal: `reply` is the answer as JSON."""

    request_id: UUID
    digest: int
    reply: str
