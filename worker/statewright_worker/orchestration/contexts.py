"""The context of a transition: what a run is, what is proposed, and what has been decided so far."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, Self
from uuid import UUID

from statewright.runs import RunPolicy
from statewright.states import ProposedState, State, StateType
from statewright.verdicts import SetStateStatus
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, TaskRunRecord
from statewright_worker.orchestration.sealing import sealed, thawed
from statewright_worker.orchestration.trace import Notes
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.orchestration.watching import HeldUp

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


API_VERSION: Final = "api-version"
"""Among a context's parameters: the API version that the producer named, if it named one."""


@dataclass(frozen=True, slots=True)
class StateAcceptDetails:
    """The proposed state is written."""

    type: ClassVar[Literal["accept_details"]] = "accept_details"


@dataclass(frozen=True, slots=True)
class StateRejectDetails:
    """Another state is written instead, or none."""

    type: ClassVar[Literal["reject_details"]] = "reject_details"
    reason: str


@dataclass(frozen=True, slots=True)
class StateAbortDetails:
    """Nothing is written, and the run should do nothing further."""

    type: ClassVar[Literal["abort_details"]] = "abort_details"
    reason: str


@dataclass(frozen=True, slots=True)
class StateWaitDetails:
    """Nothing is written; the producer is asked to come back."""

    type: ClassVar[Literal["wait_details"]] = "wait_details"
    delay_seconds: int
    reason: str


StateResponseDetails = StateAcceptDetails | StateRejectDetails | StateAbortDetails | StateWaitDetails

ACCEPTED = StateAcceptDetails()


@dataclass(frozen=True, slots=True)
class OrchestrationSettings:
    """What an operator may set about decisions. Durations are seconds."""

    concurrency_slot_wait_seconds: int = 30
    """How long a producer is told to wait when a limit is full."""


DEFAULT_SETTINGS = OrchestrationSettings()


class Transitions(Protocol):
    """How a transition brings about another one within the same transaction."""

    async def force(self, context: "OrchestrationContext", run: AnyRunRecord, state: ProposedState) -> None:
        """Let `run` enter `state` under the minimal policy, on behalf of `context`."""


class Sessions(Protocol):
    """Where a rule's database session comes from; opening it opens a savepoint for the proposal."""

    def open(self) -> "AsyncSession":
        """Return the proposal's session, the same one at every call."""


@dataclass(kw_only=True)
class OrchestrationContext(ABC):
    """A transition that is being governed; made in its flow or its task form.

    Source: `OrchestrationContext` of the orchestration rules page. `initial_state` is None for a run's first
    transition; `proposed_state` becomes None when a rule decides that nothing shall be written; `validated_state` is
    set once the state is written, or to the run's current state when nothing was.
    """

    run: Any
    unit_of_work: UnitOfWork
    proposed_state: State | None
    initial_state: State | None = None
    validated_state: State | None = None
    validated: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    rule_signature: list[str] = field(default_factory=list)
    finalization_signature: list[str] = field(default_factory=list)
    at_work: type = object
    """The rule or transform that is being entered or left; errors name it."""
    held_up: HeldUp | None = None
    """How long a rule has held up the worker, once that is longer than it may."""
    has_foreign_rules: bool = False
    """Whether a user's rules govern it: what is in its states is frozen then."""
    proposal_id: UUID | None = None
    """The proposal that asks for the transition, or for the one that brings it about."""
    priority: int = 0
    """Which of the parked proposals that wait for the same limit goes first: the greatest."""
    is_copy: bool = field(default=False, compare=False)
    """Whether this is the copy that a hook was given."""
    response_status: SetStateStatus = SetStateStatus.ACCEPT
    response_details: StateResponseDetails = ACCEPTED
    settings: OrchestrationSettings = DEFAULT_SETTINGS
    is_what_if: bool = field(default=False, init=False)
    """Whether it is only asked what would be decided: all is undone, also what a rule writes through its session."""
    notes: Notes | None = field(default=None, init=False, compare=False)
    """What rules have noted for whoever asks why; None while none has."""
    transitions: Transitions | None = None
    sessions: Sessions | None = None

    @property
    def initial_state_type(self) -> StateType | None:
        """The type of the initial state, None when there is none."""
        return self.initial_state.type if self.initial_state is not None else None

    @property
    def proposed_state_type(self) -> StateType | None:
        """The type of the state that is proposed now, None when nothing shall be written."""
        return self.proposed_state.type if self.proposed_state is not None else None

    @property
    def validated_state_type(self) -> StateType | None:
        """The type of the validated state, None before validation or when the run has no state."""
        return self.validated_state.type if self.validated_state is not None else None

    @property
    def now(self) -> datetime:
        """The database's clock, the only one that decides; the same for a whole batch."""
        return self.unit_of_work.now

    @property
    def actor(self) -> str | None:
        """Who has made the proposal, where they have said so; nobody has checked it."""
        return self.unit_of_work.actor

    def noting(self) -> Notes:
        """Return where rules note what they saw and decided."""
        if self.notes is None:
            self.notes = Notes()
        return self.notes

    @property
    def run_settings(self) -> RunPolicy:
        """The run's own policy: retries, delays, pause marks."""
        policy: RunPolicy = self.run.policy
        return policy

    @property
    def session(self) -> "AsyncSession | None":
        """A session on the batch's transaction, within a savepoint of this proposal; None where there is no database.

        Touch it only when a rule needs tables of its own: it costs round trips.
        """
        return None if self.sessions is None else self.sessions.open()

    @abstractmethod
    async def flow_run(self) -> FlowRunRecord | None:
        """Return the flow run that the transition belongs to, None for a task run outside a flow."""

    @abstractmethod
    async def task_run(self) -> TaskRunRecord | None:
        """Return the task run that changes, None for a flow run."""

    async def validate_proposed_state(self) -> None:
        """Write the proposed state, if there is still one, and set `validated_state` to what the run is now in."""
        if self.proposed_state is None:
            self.validated_state = self.run.state
        else:
            self.validated_state = self.unit_of_work.write_state(self.run, self.proposed_state, self.proposal_id)
        self.validated = True

    async def force_state(self, run: AnyRunRecord, state: ProposedState) -> None:
        """Let another run enter `state` with the same transaction, governed by the minimal policy.

        Raises ValueError when a rule made the state and it is not valid.
        """
        if self.transitions is None:
            raise RuntimeError("this context cannot bring about other transitions: it was made without an engine")
        await self.transitions.force(self, run, sealed(state) if self.is_copy else state)

    def safe_copy(self) -> Self:
        """Return a copy whose changes do not reach this context, with states that may be changed; the run is shared."""
        duplicate = object.__new__(type(self))
        duplicate.__dict__.update(self.__dict__)
        duplicate.parameters = self.parameters.copy()
        duplicate.rule_signature = self.rule_signature.copy()
        duplicate.finalization_signature = self.finalization_signature.copy()
        duplicate.initial_state = thawed(self.initial_state)
        duplicate.proposed_state = thawed(self.proposed_state)
        duplicate.validated_state = thawed(self.validated_state)
        duplicate.is_copy = True
        return duplicate

    def entry_context(self) -> tuple[State | None, State | None, Self]:
        """Return what a rule's `before_transition` is called with: a safe copy, and the states of that copy."""
        copy = self.safe_copy()
        return copy.initial_state, copy.proposed_state, copy

    def exit_context(self) -> tuple[State | None, State | None, Self]:
        """Return what a rule's `after_transition` and `cleanup` are called with: a safe copy, and its states."""
        copy = self.safe_copy()
        return copy.initial_state, copy.validated_state, copy


@dataclass(kw_only=True)
class FlowOrchestrationContext(OrchestrationContext):
    """The transition of a flow run."""

    run: FlowRunRecord

    async def flow_run(self) -> FlowRunRecord | None:
        """Return the flow run itself."""
        return self.run

    async def task_run(self) -> TaskRunRecord | None:
        """Return None: a flow run's transition has no task run."""
        return None


@dataclass(kw_only=True)
class TaskOrchestrationContext(OrchestrationContext):
    """The transition of a task run."""

    run: TaskRunRecord

    async def flow_run(self) -> FlowRunRecord | None:
        """Return the flow run that the task run belongs to, None outside a flow."""
        flow_run = self.unit_of_work.run(self.run.flow_run_id)
        return flow_run if isinstance(flow_run, FlowRunRecord) else None

    async def task_run(self) -> TaskRunRecord | None:
        """Return the task run itself."""
        return self.run
