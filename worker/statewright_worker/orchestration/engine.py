"""The engine: governs one proposal, rules nested round bookkeeping nested round the write."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from itertools import product
from typing import Any, Final, NamedTuple
from uuid import UUID

from packaging.version import Version

from statewright.protocol.requests import Propose
from statewright.runs import RunKind
from statewright.states import ProposedState, State, StateType
from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.orchestration.contexts import (
    API_VERSION,
    DEFAULT_SETTINGS,
    FlowOrchestrationContext,
    OrchestrationContext,
    OrchestrationSettings,
    Sessions,
    StateAcceptDetails,
    StateWaitDetails,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.core_policy import (
    CoreFlowPolicy,
    CoreTaskPolicy,
    MinimalFlowPolicy,
    MinimalTaskPolicy,
)
from statewright_worker.orchestration.errors import OrchestrationError, RuleFailed, RunNotFound
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.global_policy import GlobalFlowPolicy, GlobalTaskPolicy
from statewright_worker.orchestration.instrumentation_policies import FlowInstrumentation, TaskInstrumentation
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing, compiles_itself
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, TaskRunRecord
from statewright_worker.orchestration.rules.base import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    asks_by_proposal,
    is_built_in,
)
from statewright_worker.orchestration.sealing import freeze_data
from statewright_worker.orchestration.trace import brief, trace_as_json
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.orchestration.watching import Hook, watched

Policy = type[BaseOrchestrationPolicy]
Pair = tuple[StateType | None, StateType | None]

_BOOKKEEPING: Final[dict[RunKind, tuple[Policy, Policy]]] = {
    RunKind.FLOW_RUN: (FlowInstrumentation, GlobalFlowPolicy),
    RunKind.TASK_RUN: (TaskInstrumentation, GlobalTaskPolicy),
}
_DEFAULT: Final[dict[RunKind, Policy]] = {
    RunKind.FLOW_RUN: CoreFlowPolicy,
    RunKind.TASK_RUN: CoreTaskPolicy,
}
_MINIMAL: Final[dict[RunKind, Policy]] = {
    RunKind.FLOW_RUN: MinimalFlowPolicy,
    RunKind.TASK_RUN: MinimalTaskPolicy,
}


Side = Callable[[Any], Awaitable[object] | None]
"""What a rule or transform does when it is entered or left; returns what to await, None when there is nothing."""


class Step(NamedTuple):
    """A rule or transform of a compiled policy; a side on which it does nothing is left out.

    Its sides take the rule that was made for the transition, or the transition's context when none `is_made`: built-in
    transforms keep nothing, so one object serves all transitions.
    """

    governing: Governing
    is_made: bool
    enter: Side | None
    leave: Side | None
    give_up: Hook | None
    """What it does when the transition has failed."""


class Compiled(NamedTuple):
    """What governs a transition: the rules of a policy, and the steps made of them and of the bookkeeping."""

    rules: tuple[Governing, ...]
    steps: Sequence[Step]
    has_foreign_rules: bool


Entered = list[tuple[Step, object]]
"""The steps that were entered and must be left, the outermost first, each with the argument of its sides."""


class Foreseen(NamedTuple):
    """What the rules may ask for that govern the proposals of a type, whatever types their runs have."""

    always: tuple[Need, ...]
    by_proposal: Mapping[tuple[Governing, RunKind], frozenset[StateType | None]]
    """Rules that choose by the proposal, each for a kind of run, with the types of the runs that it governs."""


class Proposal(NamedTuple):
    """A proposal as the engine takes it up. `entered` is when it entered its stream."""

    id: UUID
    run_id: UUID
    state: ProposedState
    entered: datetime
    force: bool = False
    api_version: str | None = None
    priority: int = 0
    is_what_if: bool = False
    """Whether it is only asked what would be decided: then its trace is made in any case, and the caller undoes all."""


class Engine:
    """Decides on proposals. It holds no state of its own: what it knows and does lies in the unit of work."""

    def __init__(
        self,
        flow_policy: Policy = CoreFlowPolicy,
        task_policy: Policy = CoreTaskPolicy,
        settings: OrchestrationSettings = DEFAULT_SETTINGS,
        rule_timeout: float | None = None,
    ) -> None:
        """Take the policies that govern proposals without `force`.

        `rule_timeout` (seconds) bounds what a user's rules take for each transition, and once more what their cleanups
        take after a failure.
        """
        self._policies: dict[RunKind, Policy] = {RunKind.FLOW_RUN: flow_policy, RunKind.TASK_RUN: task_policy}
        self._settings = settings
        self._rule_timeout = rule_timeout
        # A built-in policy always returns the same rules; a user's own is asked at each transition.
        self._is_fixed = {kind: is_built_in(policy) for kind, policy in self._policies.items()}
        self._compiled: dict[tuple[RunKind, bool, Pair], Compiled] = {}
        # Any transition may force another run into any state, so every proposal needs what forced transitions need.
        self._when_forced = _foreseen(_MINIMAL, StateType, Foreseen((), {}))
        # A user's policy may return other rules by the time that it governs. So every proposal asks for what the
        # default rules need: a limit that is not loaded would not be kept.
        fixed = {kind: self._policies[kind] if self._is_fixed[kind] else _DEFAULT[kind] for kind in RunKind}
        self._built_in = {to_type: _foreseen(fixed, [to_type], self._when_forced) for to_type in StateType}
        self._own_policies = {kind: policy for kind, policy in self._policies.items() if not self._is_fixed[kind]}
        self._own: dict[StateType | None, tuple[list[tuple[Governing, ...]], Foreseen]] = {}
        """What was foreseen of the user's policies, with the rules that they listed then."""

    def needs(self, proposal: Propose) -> tuple[Need, ...]:
        """Return the facts that the rules of both kinds of run may ask for when they govern the proposal."""
        foreseen = self._when_forced if proposal.force else self._foresee(proposal.state.type)
        if not foreseen.by_proposal:
            return foreseen.always
        chosen = [
            Need(fact, kind, from_types)
            for (rule, kind), from_types in foreseen.by_proposal.items()
            for fact in _chosen_facts(rule, proposal)
        ]
        return (*foreseen.always, *chosen)

    def _foresee(self, to_type: StateType) -> Foreseen:
        built_in = self._built_in[to_type]
        if not self._own_policies:
            return built_in
        try:
            # Asked for every pair, a policy would cost each proposal ten times as much. The rules that it lists show
            # whether it has changed; one that compiles itself shows it when it governs.
            listed = [tuple(policy.priority()) for policy in self._own_policies.values() if not compiles_itself(policy)]
        except Exception:
            # A policy that fails here fails again when its transition is governed, and that is reported.
            return built_in
        known = self._own.get(to_type)
        if known is None or known[0] != listed:
            self._own[to_type] = known = listed, _foreseen(self._own_policies, [to_type], built_in)
        return known[1]

    async def decide(self, proposal: Proposal, work: UnitOfWork, sessions: Sessions | None = None) -> Verdict:
        """Govern a proposal and return its verdict; what it does is in `work`, between `begin` and `commit`, and so is
        the trace of what is not accepted.

        Raises RunNotFound, or RuleFailed when a rule or a policy raises or takes too long; the caller then rolls `work`
        back.
        """
        run = work.run(proposal.run_id)
        if run is None:
            raise RunNotFound(proposal.run_id)
        timestamp = min(proposal.state.timestamp or proposal.entered, work.now)
        proposed = proposal.state.stamped(work.ids.new(), timestamp, work.now)
        context = self._context(run, proposed, work, sessions)
        context.proposal_id, context.priority = proposal.id, proposal.priority
        if proposal.api_version is not None:
            context.parameters[API_VERSION] = Version(proposal.api_version)
        if proposal.is_what_if:
            context.is_what_if = True
        compiled = await self._govern(context, proposal.force)
        if context.response_status is not SetStateStatus.ACCEPT or proposal.is_what_if:
            work.trace = _trace(context, compiled.rules, proposed)
        return _verdict(proposal, context)

    async def force(self, context: OrchestrationContext, run: AnyRunRecord, state: ProposedState) -> None:
        """Let another run enter `state` under the minimal policy, within the transition of `context`."""
        work = context.unit_of_work
        nested = self._context(run, state.stamped(work.ids.new(), work.now, work.now), work, context.sessions)
        nested.proposal_id, nested.is_what_if = context.proposal_id, context.is_what_if
        await self._govern(nested, force=True)

    def _context(
        self, run: AnyRunRecord, proposed: State, work: UnitOfWork, sessions: Sessions | None
    ) -> OrchestrationContext:
        form: Callable[..., OrchestrationContext] = (
            FlowOrchestrationContext if isinstance(run, FlowRunRecord) else TaskOrchestrationContext
        )
        return form(
            run=run,
            unit_of_work=work,
            initial_state=run.state,
            proposed_state=proposed,
            settings=self._settings,
            transitions=self,
            sessions=sessions,
        )

    async def _govern(self, context: OrchestrationContext, force: bool) -> Compiled:
        """Let the transition pass through its rules, and return them; when one fails, let all that were entered clean
        up."""
        compiled = self._governing(context.run.kind, force, (context.initial_state_type, context.proposed_state_type))
        entered: Entered = []
        try:
            if compiled.has_foreign_rules:
                await self._pass_in_time(context, compiled.steps, entered)
            else:
                await _pass(context, compiled.steps, entered)
        except (Exception, asyncio.CancelledError) as failure:
            await self._abandon(context, entered, failure)
            raise
        return compiled

    async def _pass_in_time(self, context: OrchestrationContext, steps: Sequence[Step], entered: Entered) -> None:
        """Let the transition pass through a user's rules, which may wait for ever, or raise or change anything."""
        _freeze(context)
        try:
            async with asyncio.timeout(self._rule_timeout) as limit:
                await _pass(context, steps, entered)
            if limit.expired():
                raise TimeoutError("a rule has caught its cancellation and gone on")
        except TimeoutError as error:
            late = TimeoutError(f"not done within {self._rule_timeout:g} s")
            raise _rule_failed(context, context.at_work, late) from error
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody has cancelled the worker. What the rule awaited was cancelled, so it is the rule's failure.
            raise _rule_failed(context, context.at_work, cancelled) from cancelled

    async def _abandon(self, context: OrchestrationContext, entered: Entered, failure: BaseException) -> None:
        """Leave what was entered, innermost first, with the failure; a second failure on the way changes nothing."""
        try:
            async with asyncio.timeout(self._rule_timeout):
                while entered:
                    step, takes = entered.pop()
                    if step.give_up is None:
                        continue
                    try:
                        await step.give_up(takes, type(failure), failure, None)
                    except Exception as error:
                        failure.add_note(f"while cleaning up: {error!r}")
        except TimeoutError:
            failure.add_note(f"while cleaning up: not done within {self._rule_timeout:g} s")
        if isinstance(failure, RuleFailed):
            failure.blocked = failure.blocked or context.held_up is not None

    def _governing(self, kind: RunKind, force: bool, pair: Pair) -> Compiled:
        key = (kind, force, pair)
        compiled = self._compiled.get(key)
        if compiled is not None and (force or self._is_fixed[kind]):
            return compiled
        policy = _MINIMAL[kind] if force else self._policies[kind]
        try:
            rules = tuple(policy.compile_transition_rules(*pair))
            if compiled is None or compiled.rules != rules:
                self._compiled[key] = compiled = self._compile(kind, rules, pair)
                self._own.pop(pair[1], None)
        except Exception as error:
            raise RuleFailed(policy.__name__, error) from error
        return compiled

    def _compile(self, kind: RunKind, rules: tuple[Governing, ...], pair: Pair) -> Compiled:
        bookkeeping = [rule for policy in _BOOKKEEPING[kind] for rule in policy.compile_transition_rules(*pair)]
        steps = [self._step(governing) for governing in (*rules, *bookkeeping)]
        return Compiled(rules, steps, has_foreign_rules=not all(is_built_in(rule) for rule in rules))

    def _step(self, governing: Governing) -> Step:
        if not is_built_in(governing):
            return self._foreign_step(governing)
        if issubclass(governing, BaseOrchestrationRule):
            return Step(governing, True, governing._begin, governing._finish, governing.__aexit__)
        acts_before = governing.before_transition is not BaseUniversalTransform.before_transition
        acts_after = governing.after_transition is not BaseUniversalTransform.after_transition
        made = governing.__new__(governing)
        enter, leave = made.before_transition if acts_before else None, made.after_transition if acts_after else None
        return Step(governing, False, enter, leave, None)

    def _foreign_step(self, governing: Governing) -> Step:
        enter: Hook = governing.__aenter__
        leave: Hook = governing.__aexit__
        if self._rule_timeout is not None:
            enter, leave = watched(enter, self._rule_timeout), watched(leave, self._rule_timeout)
        return Step(governing, True, enter, lambda rule: leave(rule, None, None, None), leave)


def _foreseen(policies: Mapping[RunKind, Policy], to_types: Iterable[StateType], others: Foreseen) -> Foreseen:
    """Return what the policies' rules may ask for when a state of one of the types is proposed, added to `others`."""
    governed: defaultdict[tuple[Governing, RunKind], set[StateType | None]] = defaultdict(set)
    for kind, policy in policies.items():
        for pair in product((None, *StateType), to_types):
            for rule in _rules_that_need(policy, pair):
                # A user's rule may ask about a run that earlier proposals of the batch have changed by then.
                governed[rule, kind].update([pair[0]] if is_built_in(rule) else ALL_ORCHESTRATION_STATES)
    needs = {(need.fact, need.kind): need.from_types for need in others.always}
    by_proposal = dict(others.by_proposal)
    for (rule, kind), from_types in governed.items():
        if asks_by_proposal(rule):
            by_proposal[rule, kind] = _shared(from_types.union(by_proposal.get((rule, kind), ())))
        else:
            needs |= {(fact, kind): _shared(from_types.union(needs.get((fact, kind), ()))) for fact in rule.NEEDS}
    return Foreseen(tuple(Need(*which, from_types) for which, from_types in needs.items()), by_proposal)


def _rules_that_need(policy: Policy, pair: Pair) -> list[Governing]:
    try:
        return [rule for rule in policy.compile_transition_rules(*pair) if rule.NEEDS]
    except Exception:
        # It fails again when such a transition is governed, and that is reported.
        return []


def _shared(types: Set[StateType | None]) -> frozenset[StateType | None]:
    return ALL_ORCHESTRATION_STATES if types == ALL_ORCHESTRATION_STATES else frozenset(types)


def _chosen_facts(rule: Governing, proposal: Propose) -> Sequence[Fact]:
    try:
        chosen = rule.needs_for(proposal)
        return [fact for fact in rule.NEEDS if fact in chosen]
    except Exception:
        # What is loaded in vain does no harm, and what is missing would.
        return rule.NEEDS


async def _pass(context: OrchestrationContext, steps: Sequence[Step], entered: Entered) -> None:
    """Enter every rule in order, write the state, leave them in exactly the reverse order."""
    initial, proposed = context.initial_state_type, context.proposed_state_type
    governing: type = object
    try:
        for step in steps:
            governing, is_made, enter, leave, _ = step
            takes: object = governing(context, initial, proposed) if is_made else context
            # Listed before it is entered, so that it cleans up when entering it fails.
            if leave is not None:
                entered.append((step, takes))
            if enter is not None and (awaited := enter(takes)) is not None:
                await awaited
        await context.validate_proposed_state()
        while entered:
            (governing, _, _, leave, _), takes = entered[-1]
            if leave is not None and (awaited := leave(takes)) is not None:
                await awaited
            entered.pop()
    except Exception as error:
        if isinstance(error, OrchestrationError) and context.held_up is None:
            raise
        raise _rule_failed(context, governing, error) from error
    finally:
        context.at_work = governing


def _rule_failed(context: OrchestrationContext, at_work: type, cause: BaseException) -> RuleFailed:
    held_up = context.held_up
    return RuleFailed(at_work.__name__, held_up or cause, blocked=held_up is not None)


def _freeze(context: OrchestrationContext) -> None:
    """Freeze the data of the states that a rule can reach beside its copies."""
    context.has_foreign_rules = True
    freeze_data(context.initial_state)
    freeze_data(context.proposed_state)
    if isinstance(context.run, TaskRunRecord) and context.run.flow_run_id is not None:
        flow_run = context.unit_of_work.runs.get(context.run.flow_run_id)
        freeze_data(None if flow_run is None else flow_run.state)


def _trace(context: OrchestrationContext, governing: Sequence[Governing], proposed: State) -> str:
    """Return what the rules saw and decided, as JSON."""
    rules = [rule for rule in governing if issubclass(rule, BaseOrchestrationRule)]
    entered, left = context.rule_signature, context.finalization_signature
    return trace_as_json(
        initial=brief(context.initial_state),
        intended=brief(proposed),
        rules=context.noting().rules(rules, entered, left, context.proposed_state_type),
    )


def _verdict(proposal: Proposal, context: OrchestrationContext) -> Verdict:
    details = context.response_details
    return Verdict.trusted(
        proposal_id=proposal.id,
        run_id=proposal.run_id,
        status=context.response_status,
        reason=None if isinstance(details, StateAcceptDetails) else details.reason,
        delay_seconds=details.delay_seconds if isinstance(details, StateWaitDetails) else None,
        state=context.validated_state,
        rule_signature=tuple(context.rule_signature),
        finalization_signature=tuple(context.finalization_signature),
    )
