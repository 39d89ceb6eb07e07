"""The engine: governs one proposal, rules nested round bookkeeping nested round the write."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from packaging.version import Version

from statewright.runs import RunKind
from statewright.states import ProposedState, State, StateType
from statewright.verdicts import Verdict
from statewright_worker.orchestration.contexts import (
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
    API_VERSION,
    CoreFlowPolicy,
    CoreTaskPolicy,
    MinimalFlowPolicy,
    MinimalTaskPolicy,
)
from statewright_worker.orchestration.errors import OrchestrationError, RuleError, RunMissing
from statewright_worker.orchestration.global_policy import GlobalFlowPolicy, GlobalTaskPolicy
from statewright_worker.orchestration.instrumentation_policies import FlowInstrumentation, TaskInstrumentation
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord
from statewright_worker.orchestration.rules import BaseOrchestrationRule, BaseUniversalTransform, is_built_in
from statewright_worker.orchestration.unit_of_work import UnitOfWork

Policy = type[BaseOrchestrationPolicy]
Pair = tuple[StateType | None, StateType | None]

_BOOKKEEPING: Final[dict[RunKind, tuple[Policy, Policy]]] = {
    RunKind.FLOW_RUN: (FlowInstrumentation, GlobalFlowPolicy),
    RunKind.TASK_RUN: (TaskInstrumentation, GlobalTaskPolicy),
}
_MINIMAL: Final[dict[RunKind, Policy]] = {
    RunKind.FLOW_RUN: MinimalFlowPolicy,
    RunKind.TASK_RUN: MinimalTaskPolicy,
}


class Step(NamedTuple):
    """A rule or transform of a compiled policy; the side on which it does nothing is spared."""

    governing: Governing
    enter: Callable[[Any], Awaitable[object]] | None
    leaves: bool


class Proposal(NamedTuple):
    """A proposal as the engine takes it up. `entered` is when it entered its stream."""

    id: UUID
    run_id: UUID
    state: ProposedState
    entered: datetime
    force: bool = False
    api_version: str | None = None


class Engine:
    """Decides on proposals. It holds no state of its own: what it knows and does lies in the unit of work."""

    def __init__(
        self,
        flow_policy: Policy = CoreFlowPolicy,
        task_policy: Policy = CoreTaskPolicy,
        settings: OrchestrationSettings = DEFAULT_SETTINGS,
        rule_timeout: float | None = None,
    ) -> None:
        """Take the policies that govern proposals without `force`. `rule_timeout` (seconds) bounds each transition."""
        self._policies: dict[RunKind, Policy] = {RunKind.FLOW_RUN: flow_policy, RunKind.TASK_RUN: task_policy}
        self._settings = settings
        self._rule_timeout = rule_timeout
        # Built-in rules never wait, so only a policy with rules of a user's own needs a clock beside it.
        self._is_bounded = {kind: _has_foreign_rules(policy) for kind, policy in self._policies.items()}
        self._compiled: dict[tuple[RunKind, bool, Pair], Sequence[Step]] = {}

    async def decide(self, proposal: Proposal, work: UnitOfWork, sessions: Sessions | None = None) -> Verdict:
        """Govern a proposal and return its verdict; what it does is in `work`, between `begin` and `commit`.

        Raises RunMissing, or RuleError when a rule raises or takes too long; the caller then rolls `work` back.
        """
        run = work.run(proposal.run_id)
        if run is None:
            raise RunMissing(proposal.run_id)
        timestamp = min(proposal.state.timestamp or proposal.entered, work.now)
        context = self._context(run, proposal.state.stamped(work.ids.new(), timestamp, work.now), work, sessions)
        if proposal.api_version is not None:
            context.parameters[API_VERSION] = Version(proposal.api_version)
        if self._is_bounded[run.kind]:
            await self._govern_in_time(context, proposal.force)
        else:
            await self._govern(context, proposal.force)
        return _verdict(proposal, context)

    async def force(self, context: OrchestrationContext, run: AnyRunRecord, state: ProposedState) -> None:
        """Let another run enter `state` under the minimal policy, within the transition of `context`."""
        work = context.unit_of_work
        nested = self._context(run, state.stamped(work.ids.new(), work.now, work.now), work, context.sessions)
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

    async def _govern_in_time(self, context: OrchestrationContext, force: bool) -> None:
        try:
            async with asyncio.timeout(self._rule_timeout):
                await self._govern(context, force)
        except TimeoutError as error:
            too_long = TimeoutError(f"not done within {self._rule_timeout:g} s")
            raise RuleError(context.at_work.__name__, too_long) from error

    async def _govern(self, context: OrchestrationContext, force: bool) -> None:
        """Enter every rule in order, write the state, leave them in exactly the reverse order."""
        initial, proposed = pair = (context.initial_state_type, context.proposed_state_type)
        entered: list[BaseOrchestrationRule | BaseUniversalTransform] = []
        try:
            for governing, enter, leaves in self._governing(context.run.kind, force, pair):
                context.at_work = governing
                rule = governing(context, initial, proposed)
                if enter is not None:
                    await enter(rule)
                if leaves:
                    entered.append(rule)
            await context.validate_proposed_state()
            while entered:
                rule = entered.pop()
                context.at_work = type(rule)
                await rule.__aexit__(None, None, None)
        except Exception as error:
            failure = error if isinstance(error, OrchestrationError) else RuleError(context.at_work.__name__, error)
            await _abandon(entered, failure)
            raise failure from error
        except asyncio.CancelledError as cancelled:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rule_timeout):
                    await _abandon(entered, cancelled)
            raise

    def _governing(self, kind: RunKind, force: bool, pair: Pair) -> Sequence[Step]:
        key = (kind, force, pair)
        compiled = self._compiled.get(key)
        if compiled is None:
            policies = (_MINIMAL[kind] if force else self._policies[kind], *_BOOKKEEPING[kind])
            compiled = [_step(rule) for policy in policies for rule in policy.compile_transition_rules(*pair)]
            self._compiled[key] = compiled
        return compiled


def _step(governing: Governing) -> Step:
    if issubclass(governing, BaseOrchestrationRule):
        return Step(governing, governing.__aenter__, leaves=True)
    acts_before = _overrides(governing, BaseUniversalTransform, "before_transition", "__aenter__")
    acts_after = _overrides(governing, BaseUniversalTransform, "after_transition", "__aexit__")
    return Step(governing, governing.__aenter__ if acts_before else None, leaves=acts_after)


def _overrides(governing: type, base: type, *methods: str) -> bool:
    return any(getattr(governing, method) is not getattr(base, method) for method in methods)


def _has_foreign_rules(policy: Policy) -> bool:
    return not all(is_built_in(rule) for rule in policy.priority())


async def _abandon(entered: list[BaseOrchestrationRule | BaseUniversalTransform], failure: BaseException) -> None:
    """Leave what was entered, innermost first, telling each of the failure; a second failure changes nothing."""
    while entered:
        try:
            await entered.pop().__aexit__(type(failure), failure, None)
        except Exception as error:
            failure.add_note(f"while cleaning up: {error!r}")


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
