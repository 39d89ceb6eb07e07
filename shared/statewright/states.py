"""States: what a run can be in, what a producer proposes, and what the engine has written."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import Field, ValidationInfo, field_validator

from statewright.values import TAKES_DURATIONS, CacheKey, Duration, Frozen, Json, Message, Moment, Name, Offered

MAX_LEASE_SECONDS: Final = 86_400

LeaseSeconds = Annotated[float, Field(gt=0, le=MAX_LEASE_SECONDS, allow_inf_nan=False), TAKES_DURATIONS]
"""How long a lease is good without a heartbeat: a number of seconds, in Python also a duration."""


class StateType(StrEnum):
    """The nine canonical types; a state's name may say more, its type decides what is governed."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"

    # Rules look types up in sets all the time, and the hash of an enum is slow, because Python code computes it.
    __hash__ = str.__hash__


TERMINAL_STATES = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED})
"""The types from which a run does not go on by itself."""


class StateDetails(Offered):
    """What a state carries beside its name: references to runs, times, cache key, pause and retry marks, and of RUNNING
    the lease."""

    flow_run_id: UUID | None = None
    """The flow run that the state belongs to; the engine fills it in."""
    task_run_id: UUID | None = None
    """The task run that the state belongs to; the engine fills it in."""
    child_flow_run_id: UUID | None = None
    """Of a parent task run's state, the subflow that it mirrors; the engine fills it in."""
    scheduled_time: Moment | None = None
    """When a SCHEDULED run may go on; left out, it is the moment at which the state is entered."""
    cache_key: CacheKey | None = None
    """On RUNNING, under which key a result is looked for; on COMPLETED, under which this one is kept for task runs."""
    cache_expiration: Moment | None = None
    """On COMPLETED with a cache key, until when the result serves other runs; None means for ever."""
    untrackable_result: bool = False
    """A mark of the producer's; no rule reads it."""
    pause_timeout: Moment | None = None
    """On PAUSED, when a flow run fails that nobody has resumed."""
    pause_reschedule: bool = False
    """A mark of a pause; no default rule reads it."""
    pause_key: Name | None = None
    """The name of a pause; no default rule reads it."""
    refresh_cache: bool | None = None
    """No default rule reads it."""
    retriable: bool | None = None
    """No default rule reads it."""
    transition_id: UUID | None = None
    """No default rule reads it."""
    deferred: bool | None = None
    """No default rule reads it."""
    task_parameters_id: UUID | None = None
    """No default rule reads it."""
    lease: LeaseSeconds | None = None
    """For how many seconds RUNNING is good without a heartbeat; None means for ever. Other types have no lease."""
    executor: Name | None = None
    """Whose heartbeats renew the lease; None means that the run's own do."""

    @field_validator("executor")
    @classmethod
    def _holds_by_a_lease(cls, executor: str | None, info: ValidationInfo) -> str | None:
        if executor is not None and info.data.get("lease") is None:
            raise ValueError("an executor holds runs by a lease: give its seconds as well")
        return executor


NO_DETAILS = StateDetails()


class _StateKind:
    """The questions that a proposed and a written state answer alike."""

    type: StateType

    def is_scheduled(self) -> bool:
        return self.type is StateType.SCHEDULED

    def is_pending(self) -> bool:
        return self.type is StateType.PENDING

    def is_running(self) -> bool:
        return self.type is StateType.RUNNING

    def is_completed(self) -> bool:
        return self.type is StateType.COMPLETED

    def is_failed(self) -> bool:
        return self.type is StateType.FAILED

    def is_cancelled(self) -> bool:
        return self.type is StateType.CANCELLED

    def is_crashed(self) -> bool:
        return self.type is StateType.CRASHED

    def is_paused(self) -> bool:
        return self.type is StateType.PAUSED

    def is_cancelling(self) -> bool:
        return self.type is StateType.CANCELLING

    def is_final(self) -> bool:
        return self.type in TERMINAL_STATES


class ProposedState(Offered, _StateKind):
    """A state as a producer asks for it; what is left out, the engine fills in.

    Make one with `State.running()`, `State.completed(data=...)` and their siblings; all of them raise InvalidRequest,
    naming the field, for what the protocol does not take.
    """

    type: StateType
    """What is governed."""
    name: Name | None = None
    """What people read; left out, it is the type's own name, such as Running."""
    timestamp: Moment | None = None
    """When it was entered; one before the run's last state stays as it is, one in the future becomes the present."""
    message: Message | None = None
    """A text for people. One of more than 250,000 characters is cut in its middle."""
    data: Json = None
    """A result, or whatever else belongs to the state."""
    state_details: StateDetails = NO_DETAILS
    """References, times, keys, and the lease of RUNNING."""

    def stamped(self, state_id: UUID, timestamp: datetime, now: datetime) -> "State":
        """Return the full state: the given identity, the type's name if none was chosen, and a scheduled time of
        `now` when a SCHEDULED state has none."""
        details = self.state_details
        if self.type is StateType.SCHEDULED and details.scheduled_time is None:
            details = details.replaced(scheduled_time=now)
        return State.trusted(
            id=state_id,
            type=self.type,
            name=self.name or self.type.capitalize(),
            timestamp=timestamp,
            message=self.message,
            data=self.data,
            state_details=details,
        )


class State(Frozen, _StateKind):
    """A state as the engine holds it: immutable, identified and dated."""

    id: UUID
    """The state's id; also the id of the event that tells of it."""
    type: StateType
    """What is governed."""
    name: Name
    """What people read."""
    timestamp: Moment
    """When it was entered."""
    message: Message | None = None
    """A text for people."""
    data: Json = None
    """A result, or whatever else belongs to the state."""
    state_details: StateDetails = NO_DETAILS
    """References, times, keys, and the lease of RUNNING."""

    def renamed(self, name: str) -> Self:
        """Return the same state under another name."""
        return self.replaced(name=name)

    def with_details(self, **changes: Any) -> Self:
        """Return the same state with some of its details replaced."""
        return self.replaced(state_details=self.state_details.replaced(**changes))

    def as_proposed(self) -> ProposedState:
        """Return the state without its identity and moment, to be proposed again."""
        return ProposedState(
            type=self.type, name=self.name, message=self.message, data=self.data, state_details=self.state_details
        )

    @staticmethod
    def scheduled(at: datetime | None = None, *, name: str | None = None, message: str | None = None) -> ProposedState:
        """Propose SCHEDULED for the moment `at` (with a time zone); without one, for the moment it is taken up."""
        return ProposedState(
            type=StateType.SCHEDULED, name=name, message=message, state_details=StateDetails(scheduled_time=at)
        )

    @staticmethod
    def awaiting_retry(at: datetime, *, message: str | None = None, data: Json = None) -> ProposedState:
        """Propose SCHEDULED under the name AwaitingRetry, due at `at`."""
        details = StateDetails(scheduled_time=at)
        return ProposedState(
            type=StateType.SCHEDULED, name="AwaitingRetry", message=message, data=data, state_details=details
        )

    @staticmethod
    def pending(*, message: str | None = None) -> ProposedState:
        """Propose PENDING."""
        return ProposedState(type=StateType.PENDING, message=message)

    @staticmethod
    def running(
        *, message: str | None = None, cache_key: str | None = None, lease: Duration | None = None
    ) -> ProposedState:
        """Propose RUNNING; with a cache key, a cached result of the same key is taken instead of running.

        With a lease (seconds, or a duration), the run must give word within that time again and again, by heartbeats;
        otherwise it is CRASHED.
        """
        details = _caching(cache_key)
        if lease is not None:
            details = StateDetails(cache_key=cache_key, lease=lease)
        return ProposedState(type=StateType.RUNNING, message=message, state_details=details)

    @staticmethod
    def completed(
        *,
        data: Json = None,
        message: str | None = None,
        cache_key: str | None = None,
        cache_expiration: datetime | None = None,
    ) -> ProposedState:
        """Propose COMPLETED; with a cache key, the state serves later runs until `cache_expiration`, or for ever."""
        details = _caching(cache_key, cache_expiration)
        return ProposedState(type=StateType.COMPLETED, message=message, data=data, state_details=details)

    @staticmethod
    def failed(*, message: str | None = None, data: Json = None) -> ProposedState:
        """Propose FAILED; a run with retries left is sent to AwaitingRetry instead."""
        return ProposedState(type=StateType.FAILED, message=message, data=data)

    @staticmethod
    def cancelled(*, message: str | None = None) -> ProposedState:
        """Propose CANCELLED."""
        return ProposedState(type=StateType.CANCELLED, message=message)

    @staticmethod
    def crashed(*, message: str | None = None) -> ProposedState:
        """Propose CRASHED: the infrastructure failed, not the user's code."""
        return ProposedState(type=StateType.CRASHED, message=message)

    @staticmethod
    def paused(*, message: str | None = None, timeout_at: datetime | None = None) -> ProposedState:
        """Propose PAUSED, until `timeout_at` at the latest."""
        return ProposedState(
            type=StateType.PAUSED, message=message, state_details=StateDetails(pause_timeout=timeout_at)
        )


def _caching(cache_key: str | None, cache_expiration: datetime | None = None) -> StateDetails:
    if cache_key is None and cache_expiration is None:
        return NO_DETAILS
    return StateDetails(cache_key=cache_key, cache_expiration=cache_expiration)
