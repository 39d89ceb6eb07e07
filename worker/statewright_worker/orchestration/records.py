"""What the engine knows of runs, limits and states while it decides: plain records, no rows."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple
from uuid import UUID

from statewright.runs import ConcurrencyLimit, FlowRun, RunKind, RunPolicy, TaskRun
from statewright.states import State, StateType

_FLOW_RUN_FIELDS: Final = tuple(name for name in FlowRun.model_fields if name != "labels")
_TASK_RUN_FIELDS: Final = tuple(name for name in TaskRun.model_fields if name != "labels")


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

    def as_run(self, labels: dict[str, str]) -> FlowRun:
        """Return the run as a producer reads it, with the labels, which no rule sees."""
        return FlowRun.trusted(**{name: getattr(self, name) for name in _FLOW_RUN_FIELDS}, labels=labels)


@dataclass(kw_only=True)
class TaskRunRecord(RunRecord):
    """A task run."""

    kind = RunKind.TASK_RUN

    flow_run_id: UUID | None = None
    task_key: str | None = None
    flow_run_run_count: int = 0

    def as_run(self, labels: dict[str, str]) -> TaskRun:
        """Return the run as a producer reads it, with the labels, which no rule sees."""
        return TaskRun.trusted(**{name: getattr(self, name) for name in _TASK_RUN_FIELDS}, labels=labels)


AnyRunRecord = FlowRunRecord | TaskRunRecord


def with_marks_of(policy: RunPolicy, marked: RunPolicy) -> RunPolicy:
    """Return the policy with the marks that pausing has left on the other one."""
    return policy.replaced(pause_keys=marked.pause_keys, resuming=marked.resuming)


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


@dataclass(slots=True)
class Answer:
    """What the ledger keeps of a request that is no decided proposal: `reply` is the answer as JSON."""

    request_id: UUID
    digest: int
    reply: str
