"""Rules and transforms: the two kinds of governing logic, as async context managers round a transition."""

from abc import ABC
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, ClassVar, Final, final

from statewright.states import TERMINAL_STATES, ProposedState, State, StateType
from statewright.verdicts import SetStateStatus
from statewright_worker.orchestration.contexts import (
    OrchestrationContext,
    StateAbortDetails,
    StateRejectDetails,
    StateResponseDetails,
    StateWaitDetails,
)
from statewright_worker.orchestration.errors import OrchestrationError

__all__ = ["ALL_ORCHESTRATION_STATES", "TERMINAL_STATES", "BaseOrchestrationRule", "BaseUniversalTransform"]

ALL_ORCHESTRATION_STATES: Final[frozenset[StateType | None]] = frozenset({*StateType, None})
"""Every type that a run can be in or be proposed, None included."""


class _Governing(AbstractAsyncContextManager[OrchestrationContext], ABC):
    """What rules and transforms have in common: the transition that they stand for, and the types that they are for."""

    FROM_STATES: ClassVar[Collection[StateType | None]] = ALL_ORCHESTRATION_STATES
    TO_STATES: ClassVar[Collection[StateType | None]] = ALL_ORCHESTRATION_STATES

    def __init__(
        self,
        context: OrchestrationContext,
        from_state_type: StateType | None,
        to_state_type: StateType | None,
    ) -> None:
        self.context = context
        self.from_state_type = from_state_type
        self.to_state_type = to_state_type


def is_built_in(governing: type) -> bool:
    """Return whether a rule or transform is one of Statewright's own."""
    return governing.__module__.startswith("statewright_worker.")


class BaseOrchestrationRule(_Governing):
    """One piece of governing logic, entered before a state is written and left after it.

    Source: `BaseOrchestrationRule` of the orchestration rules page. A subclass names the pairs that it governs in
    FROM_STATES and TO_STATES, and overrides some of `before_transition`, `after_transition` and `cleanup`. A rule that
    is invalid on entry does nothing at all; one whose transition others have changed since has *fizzled*, and cleans up
    instead of finishing.
    """

    FROM_STATES: ClassVar[Collection[StateType | None]] = frozenset()
    TO_STATES: ClassVar[Collection[StateType | None]] = frozenset()

    _acts_before: ClassVar[bool] = False
    _acts_after: ClassVar[bool] = False
    _is_guarded: ClassVar[bool] = True
    _invalid_on_entry: bool | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # A hook that a rule does not have needs no context to be copied for it.
        cls._acts_before = cls.before_transition is not BaseOrchestrationRule.before_transition
        cls._acts_after = cls.after_transition is not BaseOrchestrationRule.after_transition
        # Of the built-in rules it is known that they leave the context alone, and a copy costs more than most of them.
        cls._is_guarded = not is_built_in(cls)
        for sealed in ("invalid", "fizzled", "invalid_transition"):
            if getattr(cls, sealed) is not getattr(BaseOrchestrationRule, sealed):
                raise TypeError(f"{cls.__name__} overrides {sealed}, which nobody asks; override deviates instead")

    # The hooks' arguments are `State | None` and the context's flow or task form; a rule narrows them to what its
    # FROM_STATES, its TO_STATES and its policy leave possible.

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        """Decide on the transition before it is written: reject, delay, abort or rename it, or let it be."""

    async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        """React to the transition after it was written."""

    async def cleanup(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        """Undo what this rule's own `before_transition` did: the transition became another one."""

    async def __aenter__(self) -> OrchestrationContext:
        context = self.context
        if not self._is_invalid():
            if self._acts_before:
                await self.before_transition(*context.entry_context(guarded=self._is_guarded))
            context.rule_signature.append(type(self).__name__)
        return context

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        context = self.context
        if self._is_invalid():
            return
        if exc_type is not None or self.deviates():
            await self.cleanup(*context.exit_context(guarded=self._is_guarded))
        else:
            if self._acts_after:
                await self.after_transition(*context.exit_context(guarded=self._is_guarded))
            context.finalization_signature.append(type(self).__name__)

    @final
    async def invalid(self) -> bool:
        """Return whether the rule has nothing to say here: its pair is not among those it governs, or the context's
        transition was another one already when the rule was entered."""
        return self._is_invalid()

    @final
    async def fizzled(self) -> bool:
        """Return whether the rule was valid on entry and somebody else has changed the transition since."""
        return not self._is_invalid() and self.deviates()

    @final
    async def invalid_transition(self) -> bool:
        """Return whether the context's transition differs from the one that the rule stands for."""
        return self.deviates()

    def deviates(self) -> bool:
        """Return whether the context's transition differs from the one that the rule stands for.

        What `invalid` and `fizzled` ask; a rule for which another transition is as good overrides it.
        """
        initial, proposed = self.context.initial_state, self.context.proposed_state
        return self.from_state_type is not (None if initial is None else initial.type) or self.to_state_type is not (
            None if proposed is None else proposed.type
        )

    def _is_invalid(self) -> bool:
        if self.from_state_type not in self.FROM_STATES or self.to_state_type not in self.TO_STATES:
            return True
        if self._invalid_on_entry is None:
            self._invalid_on_entry = self.deviates()
        return self._invalid_on_entry

    async def reject_transition(self, state: State | ProposedState | None, reason: str) -> None:
        """Write `state` instead of the proposed one; with None write nothing and keep the current state.

        Raises RuntimeError after validation, and OrchestrationError when there is neither a state to write nor a
        current one.
        """
        self._check_not_validated()
        if state is None and self.context.initial_state is None:
            raise OrchestrationError(
                f"{type(self).__name__} rejected a run's first state without naming another, so there is no state to"
                " return; abort the transition instead, or reject it with a state"
            )
        if isinstance(state, ProposedState):
            work = self.context.unit_of_work
            state = state.stamped(work.ids.new(), work.now, work.now)
        self._decide(state, SetStateStatus.REJECT, StateRejectDetails(reason))

    async def delay_transition(self, delay_seconds: int, reason: str) -> None:
        """Write nothing and ask the producer to propose again in `delay_seconds`.

        Raises RuntimeError after validation.
        """
        self._decide(None, SetStateStatus.WAIT, StateWaitDetails(delay_seconds, reason))

    async def abort_transition(self, reason: str) -> None:
        """Write nothing and tell the producer to do nothing further. Raises RuntimeError after validation."""
        self._decide(None, SetStateStatus.ABORT, StateAbortDetails(reason))

    async def rename_state(self, state_name: str) -> None:
        """Give the proposed state another name; its type, and so every rule, stays.

        Raises RuntimeError after validation.
        """
        self._check_not_validated()
        if self.context.proposed_state is not None:
            self.context.proposed_state = self.context.proposed_state.renamed(state_name)

    async def update_context_parameters(self, key: str, value: Any) -> None:
        """Leave a note for the rules after this one in `context.parameters`."""
        self.context.parameters[key] = value

    def _decide(self, state: State | None, status: SetStateStatus, details: StateResponseDetails) -> None:
        self._check_not_validated()
        # The rule now stands for the transition that it made, so it does not fizzle by its own doing.
        self.to_state_type = state.type if state is not None else None
        self.context.proposed_state = state
        self.context.response_status = status
        self.context.response_details = details

    def _check_not_validated(self) -> None:
        if self.context.validated:
            raise RuntimeError(f"{type(self).__name__}: the transition is already validated and cannot be changed")


class BaseUniversalTransform(_Governing):
    """Bookkeeping that fires on every transition, also on nullified ones, and sees the real context.

    Source: `BaseUniversalTransform` of the orchestration rules page. Prefer a rule: nothing guards against what a
    transform changes.
    """

    _exception: BaseException | None = None

    async def before_transition(self, context: Any) -> None:
        """Do bookkeeping before the state is written."""

    async def after_transition(self, context: Any) -> None:
        """Do bookkeeping after the state is written; skipped when the transition has met an exception."""

    async def __aenter__(self) -> OrchestrationContext:
        await self.before_transition(self.context)
        return self.context

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exception = exc
        if not self.exception_in_transition():
            await self.after_transition(self.context)

    def nullified_transition(self) -> bool:
        """Return whether nothing shall be written."""
        return self.context.proposed_state is None

    def exception_in_transition(self) -> bool:
        """Return whether the transition has met an exception."""
        return self._exception is not None
