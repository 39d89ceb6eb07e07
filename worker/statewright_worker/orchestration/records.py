"""What the engine knows of runs, limits and states while it decides: plain records, no rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Final, NamedTuple
from uuid import UUID

from statewright.limits import ConcurrencyLimit, LimitName, LimitScope, SlotHolder, Waiter
from statewright.protocol.requests import MAX_CONCURRENCY_LIMIT
from statewright.runs import FlowRun, RunKind, RunPolicy, TaskRun
from statewright.states import State, StateType
from statewright.verdicts import Verdict

_FLOW_RUN_FIELDS: Final = tuple(name for name in FlowRun.model_fields if name != "labels")
_TASK_RUN_FIELDS: Final = tuple(name for name in TaskRun.model_fields if name != "labels")


CALLED_AT_ONCE: Final = 256
"""How many waiters of a limit a batch calls at most."""
RATES_LOOK_AHEAD: Final = 8
"""How many waiters of a rate are told when their turn comes: those behind them are told by these."""
QUEUE_LOADED: Final = 512
"""How many waiters of a limit a batch knows at most."""

RUNS_REMEMBERED: Final = 1_024
LIMITS_REMEMBERED: Final = 5
"""Of how many different runs, and of runs with how many limits, it is remembered which ones they ask for: each
transition asks that several times. The two bounds keep what is remembered small."""

MICROSECOND: Final = timedelta(microseconds=1)

NameOfLimit = tuple[LimitScope, str]
"""A `LimitName`, or a plain tuple, which finds the same entry and is faster to make."""


def limits_on_tags(tags: Iterable[str]) -> list[NameOfLimit]:
    """Return the names of the limits on the tags, each once, in ascending order."""
    return [(LimitScope.TAG, tag) for tag in sorted(set(tags))]


def limits_asked_for(
    policy: RunPolicy, *, tags: tuple[str, ...] = (), deployment_id: UUID | None = None
) -> tuple[NameOfLimit, ...]:
    """Return which limits such a run asks for a slot of, each once, in the order in which they are looked at: that of
    the deployment, those on the tags, then those that its policy names; in ascending order each.
    """
    few = len(tags) + len(policy.limits) <= LIMITS_REMEMBERED
    return (_remembered if few else _limits_asked_for)(policy.limits, tags, deployment_id)


def _limits_asked_for(
    asked: tuple[str, ...], tags: tuple[str, ...], deployment_id: UUID | None
) -> tuple[NameOfLimit, ...]:
    names: list[NameOfLimit] = [] if deployment_id is None else [(LimitScope.DEPLOYMENT, str(deployment_id))]
    return (*names, *limits_on_tags(tags), *((LimitScope.NAME, name) for name in sorted(asked)))


_remembered = lru_cache(maxsize=RUNS_REMEMBERED)(_limits_asked_for)


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

    def limit_names(self) -> tuple[NameOfLimit, ...]:
        """Return which limits it asks for: its deployment's and those that its policy names, but none on its tags."""
        return limits_asked_for(self.policy, deployment_id=self.deployment_id)

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

    def limit_names(self) -> tuple[NameOfLimit, ...]:
        """Return which limits it asks for: those on its tags and those that its policy names."""
        return limits_asked_for(self.policy, tags=self.tags)

    def as_run(self, labels: dict[str, str]) -> TaskRun:
        """Return the run as a producer reads it, with the labels, which no rule sees."""
        return TaskRun.trusted(**{name: getattr(self, name) for name in _TASK_RUN_FIELDS}, labels=labels)


AnyRunRecord = FlowRunRecord | TaskRunRecord


Turn = tuple[int, int]
"""Where a proposal stands in every queue, the least first: its priority, negative, and its ticket."""


class Queued(NamedTuple):
    """A parked proposal in the queue of a limit."""

    proposal_id: UUID
    partition: int
    priority: int
    ticket: int

    @property
    def turn(self) -> Turn:
        """Where it stands."""
        return -self.priority, self.ticket


def with_marks_of(policy: RunPolicy, marked: RunPolicy) -> RunPolicy:
    """Return the policy with the marks that pausing has left on the other one."""
    return policy.replaced(pause_keys=marked.pause_keys, resuming=marked.resuming)


@dataclass(slots=True)
class LimitRecord:
    """A limit, how many slots of it are held, and which of the runs at hand hold one, as of the batch's clock."""

    id: int
    scope: LimitScope
    key: str
    concurrency_limit: int
    slots_held: int = 0
    holders: set[UUID] = field(default_factory=set)
    period: timedelta | None = None
    """With a period the limit is a rate: as many runs may start in a period, and nobody holds its slots."""
    used: timedelta = timedelta()
    """Of a rate: in how much time all of its slots are free again."""
    lease_seconds: float | None = None
    """The lease of runs that hold the limit and ask for none."""
    queue: list[Queued] = field(default_factory=list)
    """The first of the parked proposals that wait for a slot, in order: as many as may get one in this batch, and one
    more."""
    is_cut: bool = False
    """Whether the queue is so long that not even these are all."""
    shown: tuple[SlotHolder, ...] = ()
    """The first of those that held a slot before this batch, if the limit is to be told."""
    waiting: int = 0
    """How many parked proposals wait for a slot, if the limit is to be told."""
    waiters: tuple[Waiter, ...] = ()
    """The first of these, in the order in which they will get it."""

    @property
    def name(self) -> LimitName:
        """What it is on."""
        return LimitName(self.scope, self.key)

    @property
    def interval(self) -> timedelta:
        """Of a rate: the time in which a slot comes back, and after it the next one."""
        # Rounded up, because rounded down more runs would start in a long time than are allowed.
        return -(-(self.period or timedelta()) // max(self.concurrency_limit, 1))

    @property
    def free(self) -> int:
        """How many slots are free."""
        if self.period is None:
            return max(self.concurrency_limit - self.slots_held, 0)
        return max(self.concurrency_limit + (-self.used) // self.interval, 0)

    def ahead_of(self, proposal_id: UUID | None, turn: Turn) -> int:
        """Return how many waiters go before a proposal, which may be one of them."""
        for place, waiter in enumerate(self.queue):
            if waiter.proposal_id == proposal_id:
                return place
        # Of a queue that is not known to its end, nobody knows how many go before.
        return MAX_CONCURRENCY_LIMIT if self.is_cut else sum(waiter.turn < turn for waiter in self.queue)

    def has_room_for(self, run_id: UUID, ahead: int = 0) -> bool:
        """Whether the run may be RUNNING under this limit when so many waiters go before it; one that holds a slot
        already may."""
        return run_id in self.holders or self.free > ahead

    def turn_in(self, ahead: int) -> timedelta | None:
        """Return in how much time a rate has a slot for who has so many waiters before; None for another limit, whose
        slots come back when their runs have ended."""
        if self.period is None:
            return None
        return max(self.used - (self.concurrency_limit - ahead - 1) * self.interval, timedelta())

    def next_waiters(self) -> Iterator[tuple[Queued, timedelta]]:
        """Yield the waiters whose turn it is, or of a rate will be, each with the time until then.

        Where a limit is 0, it is everybody's turn to hear that.
        """
        if self.concurrency_limit == 0:
            turns = CALLED_AT_ONCE
        else:
            turns = min(max(self.free, 0 if self.period is None else RATES_LOOK_AHEAD), CALLED_AT_ONCE)
        for ahead, waiter in enumerate(self.queue[:turns]):
            is_early = self.concurrency_limit > 0 and ahead >= self.free
            yield waiter, (self.turn_in(ahead) if is_early else None) or timedelta()

    def changed(self, concurrency_limit: int, period: timedelta | None, lease_seconds: float | None) -> "LimitRecord":
        """Return the limit with other terms; its holders stay, and so does the number of slots used of a rate."""
        other = replace(self, concurrency_limit=concurrency_limit, period=period, lease_seconds=lease_seconds)
        other.used = timedelta()
        if self.period is not None and period is not None:
            # The slots used, whole and in part, each of which now takes another time to come back. In integers, because
            # products of such durations are beyond what a timedelta holds.
            used, before, now = (time // MICROSECOND for time in (self.used, self.interval, other.interval))
            if concurrency_limit and self.concurrency_limit:
                used = -(-used * now // before)
            # A limit of 0 has no slots to count: while it stands, the time goes on.
            other.used = timedelta(microseconds=min(used, max(concurrency_limit, 1) * now))
        return other

    def as_limit(self, holders: Iterable[SlotHolder] = ()) -> ConcurrencyLimit:
        """Return the limit as a producer reads it, with these holders."""
        return ConcurrencyLimit(
            scope=self.scope,
            key=self.key,
            concurrency_limit=self.concurrency_limit,
            period_seconds=None if self.period is None else self.period.total_seconds(),
            lease_seconds=self.lease_seconds,
            free=self.free,
            held=self.slots_held,
            holders=tuple(holders),
            waiting=self.waiting,
            waiters=self.waiters,
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
    proposal_id: UUID | None = None
    """The proposal that caused it; None for a state of a version that did not keep it."""
    run_count: int = 0
    actor: str | None = None
    """Who has made the proposal, where they have said so."""


class PastState(NamedTuple):
    """A state of a run's history, and who has caused it, where they have said so."""

    ordinal: int
    state: State
    proposal_id: UUID | None
    actor: str | None


class EraRecord(NamedTuple):
    """A new numbering of a partition's events, begun because PostgreSQL went back to before published ones."""

    era: int
    sequence: int
    """The place of its beginning among the events."""
    went_back_to: int
    noticed: datetime

    @property
    def undone_up_to(self) -> int:
        """The last of the events that told of changes which do not exist; the first one follows `went_back_to`."""
        return self.sequence - 1


class TimerKind(StrEnum):
    """What comes due: each kind is carried out by the kind of request that `requests/kinds.py` names for it."""

    PARKED = "parked"
    """A parked proposal is looked at again, or its answer was sent and it can go; the id is the proposal's."""
    LEASE = "lease"
    """A run's lease ends; the id is the run's."""
    CASCADE = "cascade"
    """The runs below a flow run follow it to its end; the id is the flow run's."""
    PAUSE = "pause"
    """A flow run was paused long enough; the id is the flow run's."""
    EXECUTOR = "executor"
    """An executor's lease ends; the id belongs to its name and partition."""
    DELETION = "deletion"
    """The deletion of a large tree goes on; the id is that of the run which is deleted with all that is below it."""


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
    priority: int = 0
    ticket: int = 0
    """Its place among those of the same priority, in every queue."""
    decided: bool = False
    """Whether it has an answer, in the ledger, which may not have been sent yet."""
    reason: str | None = None
    """Why it waits; None where nobody has said that."""
    actor: str | None = None
    """Who has made it, where they have said so."""
    trace: str | None = None
    """What the rules saw and decided when the reason was found, as JSON."""
    waits_on: tuple[NameOfLimit, ...] = ()
    """The limits in whose queues it stands."""


@dataclass(slots=True)
class Answer:
    """What the ledger keeps of a request that is no decided proposal: `reply` is the answer as JSON."""

    request_id: UUID
    digest: int
    reply: str
    run_id: UUID | None = None
    """The run that the request is about, with which the answer goes."""
    actor: str | None = None
    """Who has asked, where they have said so."""


class LedgerEntry(NamedTuple):
    """What the ledger keeps of a decided proposal."""

    verdict: Verdict
    digest: int | None = None
    """Shows whether another request with the same id asks for the same; None where nobody can ask again."""
    actor: str | None = None
    """Who has made the proposal, where they have said so."""
    trace: str | None = None
    """What the rules saw and decided, as JSON; None where that is not kept."""
    decided: datetime | None = None
    """When, by the database's clock."""
