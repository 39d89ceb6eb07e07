"""Rules and transforms: the two kinds of governing logic, as async context managers round a transition."""

from abc import ABC
from collections.abc import Collection, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar, Final

from statewright.explanations import RuleVerb
from statewright.protocol.requests import Propose
from statewright.states import ProposedState, State, StateType
from statewright.verdicts import SetStateStatus
from statewright_worker.orchestration.contexts import (
    OrchestrationContext,
    StateAbortDetails,
    StateAcceptDetails,
    StateRejectDetails,
    StateResponseDetails,
    StateWaitDetails,
)
from statewright_worker.orchestration.errors import OrchestrationError
from statewright_worker.orchestration.facts import Fact
from statewright_worker.orchestration.sealing import (
    MAX_DELAY_SECONDS,
    checked_delay,
    checked_name,
    checked_reason,
    freeze_data,
    sealed,
)

ALL_ORCHESTRATION_STATES: Final[frozenset[StateType | None]] = frozenset({*StateType, None})
"""Every type that a run can be in or be proposed, None included."""


_VERBS: Final = {
    SetStateStatus.REJECT: RuleVerb.REJECT,
    SetStateStatus.WAIT: RuleVerb.WAIT,
    SetStateStatus.ABORT: RuleVerb.ABORT,
}


class _Governing(AbstractAsyncContextManager[OrchestrationContext], ABC):
    """What rules and transforms have in common: the types that they govern, and the transition they were made for."""

    FROM_STATES: ClassVar[Collection[StateType | None]] = ALL_ORCHESTRATION_STATES
    TO_STATES: ClassVar[Collection[StateType | None]] = ALL_ORCHESTRATION_STATES
    NEEDS: ClassVar[tuple[Fact, ...]] = ()
    """The facts that it asks the unit of work for. A fact that no rule declares is not loaded, so it is not found."""

    @classmethod
    def needs_for(cls, proposal: Propose) -> Collection[Fact]:  # noqa: ARG003  # for subclasses
        """Return which of NEEDS it may ask for when it governs the proposal: all, unless a subclass knows better.

        When this raises, all of NEEDS is loaded.
        """
        return cls.NEEDS

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not (isinstance(cls.NEEDS, tuple) and all(isinstance(fact, Fact) for fact in cls.NEEDS)):
            raise TypeError(f"{cls.__name__}.NEEDS must be a tuple of facts, such as (Fact.LIMITS,)")

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


def asks_by_proposal(governing: type[_Governing]) -> bool:
    """Return whether a rule or transform chooses by the proposal what it needs."""
    return _is_overridden(governing.needs_for, getattr(_Governing.needs_for, "__func__", None))


class BaseOrchestrationRule(_Governing):
    """One piece of governing logic, entered before a state is written and left after it.

    Source: `BaseOrchestrationRule` of the orchestration rules page. A subclass names the pairs that it governs in
    FROM_STATES and TO_STATES, and overrides some of `before_transition`, `after_transition` and `cleanup`. A rule that
    is invalid on entry does nothing at all; one whose transition others have changed since has *fizzled*, and cleans up
    instead of finishing. So does one that was entered when it or another one raises.

    The hooks of a user's rule get copies of the context and of the states, to change as they like. Built-in rules,
    which are known to leave everything alone, get the context itself: copies cost more than most of them.
    """

    FROM_STATES: ClassVar[Collection[StateType | None]] = frozenset()
    TO_STATES: ClassVar[Collection[StateType | None]] = frozenset()

    _acts_before: ClassVar[bool] = False
    _acts_after: ClassVar[bool] = False
    _is_guarded: ClassVar[bool] = True
    _invalid_on_entry: bool | None = None
    _has_cleaned_up: bool = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._is_guarded = not is_built_in(cls)
        # Built-in rules do not change, so their hooks are looked up once.
        cls._acts_before = cls.before_transition is not BaseOrchestrationRule.before_transition
        cls._acts_after = cls.after_transition is not BaseOrchestrationRule.after_transition

    # The hooks' arguments are `State | None` and the context's flow or task form; a rule narrows them to what its
    # FROM_STATES, its TO_STATES and its policy leave possible.

    async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
        """Decide on the transition before it is written: reject, delay, abort or rename it, or let it be."""

    async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        """React to the transition after it was written."""

    async def cleanup(self, initial_state: Any, validated_state: Any, context: Any) -> None:
        """Undo what this rule's own `before_transition` did: the transition became another one."""

    async def __aenter__(self) -> OrchestrationContext:
        if self._is_guarded:
            await self._enter_guarded()
        elif (hook := self._begin()) is not None:
            await hook
        return self.context

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            await self._give_up()
        elif self._is_guarded:
            await self._leave_guarded()
        elif (hook := self._finish()) is not None:
            await hook

    # These two enter and leave a built-in rule. They return the hook that must be awaited, if there is one: a coroutine
    # of their own would cost more than most hooks.

    def _begin(self) -> Coroutine[Any, Any, None] | None:
        self._invalid_on_entry = self._is_of_another_pair() or self._deviates()
        if self._invalid_on_entry:
            return None
        context = self.context
        context.rule_signature.append(type(self).__name__)
        if self._acts_before:
            return self.before_transition(context.initial_state, context.proposed_state, context)
        return None

    def _finish(self) -> Coroutine[Any, Any, None] | None:
        # Its own decision may have led to a pair of types that it does not govern.
        if self._invalid_on_entry or self._is_of_another_pair():
            return None
        if self._deviates():
            return self._clean_up()
        context = self.context
        context.finalization_signature.append(type(self).__name__)
        if self._acts_after:
            return self.after_transition(context.initial_state, context.validated_state, context)
        return None

    async def _enter_guarded(self) -> None:
        if await self.invalid():
            return
        self._invalid_on_entry = False
        # A hook that a rule does not have needs no context to be copied for it.
        if _is_overridden(self.before_transition, BaseOrchestrationRule.before_transition):
            await self.before_transition(*self.context.entry_context())
        self.context.rule_signature.append(type(self).__name__)

    async def _leave_guarded(self) -> None:
        if await self.invalid():
            return
        if await self.fizzled():
            await self._clean_up()
        else:
            if _is_overridden(self.after_transition, BaseOrchestrationRule.after_transition):
                await self.after_transition(*self.context.exit_context())
            self.context.finalization_signature.append(type(self).__name__)

    async def _give_up(self) -> None:
        was_entered = self._invalid_on_entry is False
        if was_entered and not self._has_cleaned_up:
            await self._clean_up()

    async def _clean_up(self) -> None:
        self._has_cleaned_up = True
        context = self.context
        if self._is_guarded:
            await self.cleanup(*context.exit_context())
        else:
            await self.cleanup(context.initial_state, context.validated_state, context)

    async def invalid(self) -> bool:
        """Return whether the rule has nothing to say here: its pair is not among those it governs, or the context's
        transition was another one already when the rule was entered."""
        if self._is_of_another_pair():
            return True
        if self._invalid_on_entry is None:
            self._invalid_on_entry = await self.invalid_transition()
        return self._invalid_on_entry

    async def fizzled(self) -> bool:
        """Return whether the rule was valid on entry and somebody else has changed the transition since."""
        return not await self.invalid() and await self.invalid_transition()

    async def invalid_transition(self) -> bool:
        """Return whether the context's transition differs from the one that the rule stands for."""
        return self._deviates()

    # Built-in rules override none of the three questions above, so these answer them without a coroutine.

    def _is_of_another_pair(self) -> bool:
        return self.from_state_type not in self.FROM_STATES or self.to_state_type not in self.TO_STATES

    def _deviates(self) -> bool:
        initial, proposed = self.context.initial_state, self.context.proposed_state
        return self.from_state_type is not (None if initial is None else initial.type) or self.to_state_type is not (
            None if proposed is None else proposed.type
        )

    async def reject_transition(self, state: State | ProposedState | None, reason: str) -> None:
        """Write `state` instead of the proposed one; with None, or the state that the run is in, write nothing.

        The state is written under an id of its own, unless it is the proposed one, changed. Raises RuntimeError after
        validation, ValueError when the state or the reason is not valid, and OrchestrationError when there is neither
        a state to write nor a current one.
        """
        self._check_not_validated()
        if self._is_guarded:
            state, reason = None if state is None else sealed(state), checked_reason(reason)
        if state is None and self.context.initial_state is None:
            raise OrchestrationError(
                f"{type(self).__name__} rejected a run's first state without naming another, so there is no state to"
                " return; abort the transition instead, or reject it with a state"
            )
        self._decide(self._to_be_written(state), SetStateStatus.REJECT, StateRejectDetails(reason))

    def _to_be_written(self, state: State | ProposedState | None) -> State | None:
        if state is None or state == self.context.initial_state:
            return None
        work, proposed = self.context.unit_of_work, self.context.proposed_state
        timestamp, state_id = work.now, None
        if isinstance(state, State):
            # Its id may be that of a state written long ago; only the id that the engine made for this proposal is new.
            state_id = state.id if proposed is not None and proposed.id == state.id else None
            timestamp, state = min(state.timestamp, work.now), state.as_proposed()
        return state.stamped(state_id or work.ids.new(), timestamp, work.now)

    async def delay_transition(self, delay_seconds: float, reason: str) -> None:
        """Write nothing and ask the producer to propose again in `delay_seconds`, rounded down, ten years at most.

        Raises RuntimeError after validation, and ValueError when the delay or the reason is not valid.
        """
        if self._is_guarded:
            delay_seconds, reason = checked_delay(delay_seconds), checked_reason(reason)
        details = StateWaitDetails(min(int(delay_seconds), MAX_DELAY_SECONDS), reason)
        self._decide(None, SetStateStatus.WAIT, details)
        work = self.context.unit_of_work
        work.waiting.wait_until = work.now + timedelta(seconds=min(max(delay_seconds, 0), MAX_DELAY_SECONDS))

    async def abort_transition(self, reason: str) -> None:
        """Write nothing and tell the producer to do nothing further.

        Raises RuntimeError after validation, and ValueError when the reason is not valid.
        """
        if self._is_guarded:
            reason = checked_reason(reason)
        self._decide(None, SetStateStatus.ABORT, StateAbortDetails(reason))

    async def rename_state(self, state_name: str) -> None:
        """Give the proposed state another name; its type, and so every rule, stays.

        Raises RuntimeError after validation, and ValueError when no state can have the name.
        """
        self._check_not_validated()
        if self._is_guarded:
            state_name = checked_name(state_name)
        if self.context.proposed_state is not None:
            self.context.proposed_state = renamed = self.context.proposed_state.renamed(state_name)
            self.context.noting().decided(type(self), RuleVerb.RENAME, renamed)

    def saw(self, **facts: object) -> None:
        """Note what the rule has looked at, for whoever asks why a proposal was not accepted.

        Facts are small: numbers, texts (the first 200 characters), times, ids, and lists and mappings of them. Of a
        state only its type and name are noted, of other objects only their class. 20 facts a rule are kept.
        """
        self.context.noting().saw(type(self), facts)

    async def update_context_parameters(self, key: str, value: Any) -> None:
        """Leave a note for the rules after this one in `context.parameters`."""
        self.context.parameters[key] = value

    def _decide(self, state: State | None, status: SetStateStatus, details: StateResponseDetails) -> None:
        self._check_not_validated()
        # The rule now stands for the transition that it made, so it does not fizzle by its own doing.
        self.to_state_type = state.type if state is not None else None
        if self.context.has_foreign_rules:
            freeze_data(state)
        self.context.proposed_state = state
        self.context.response_status = status
        self.context.response_details = details
        reason = None if isinstance(details, StateAcceptDetails) else details.reason
        delay = details.delay_seconds if isinstance(details, StateWaitDetails) else None
        self.context.noting().decided(type(self), _VERBS[status], state, reason, delay)

    def _check_not_validated(self) -> None:
        if self.context.validated:
            raise RuntimeError(f"{type(self).__name__}: the transition is already validated and cannot be changed")


def _is_overridden(hook: Any, original: Any) -> bool:
    return getattr(hook, "__func__", None) is not original


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
