"""Slots of limits: taken before RUNNING, given back behind it.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Final

from statewright.limits import LimitScope
from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import OrchestrationContext
from statewright_worker.orchestration.facts import Fact
from statewright_worker.orchestration.records import RATES_LOOK_AHEAD, LimitRecord
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES, BaseOrchestrationRule

# The words for tags are the documented ones.
_ZERO: Final = {
    LimitScope.TAG: 'on tag "{}"',
    LimitScope.NAME: '"{}"',
    LimitScope.DEPLOYMENT: "on deployment {}",
}
_FULL: Final = {
    LimitScope.TAG: "for the {} tag",
    LimitScope.NAME: '"{}"',
    LimitScope.DEPLOYMENT: "for the deployment {}",
}
_SECOND: Final = timedelta(seconds=1)


class SecureTaskConcurrencySlots(BaseOrchestrationRule):
    """Takes a slot of every limit that the task run asks for before it enters RUNNING: of those on its tags, and of
    those that its policy names. A full limit delays the transition, a limit of 0 aborts it. A run that asks for no
    lease gets the shortest that its limits give.

    Deviation: all or nothing. The documented rule kept the slots of tags behind a full one, and waited for itself.
    """

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})
    NEEDS = (Fact.SLOTS,)

    WHAT_RUNS: ClassVar[str] = "task"

    _taken: tuple[LimitRecord, ...] = ()

    async def before_transition(
        self, initial_state: State | None, proposed_state: State | None, context: OrchestrationContext
    ) -> None:
        run_id, work = context.run.id, context.unit_of_work
        limits = work.limits_of(context.run)
        if initial_state is not None and initial_state.is_running():
            # A rate counts starts, and a run that goes on does not start.
            limits = [limit for limit in limits if limit.period is None]
        moments: list[datetime | None] = []
        if context.is_what_if:
            self.saw(limits=[_seen(limit, _ahead(limit, context)) for limit in limits])
        for limit in limits:
            if limit.concurrency_limit == 0:
                self._saw_full(limits, context)
                which = _ZERO[limit.scope].format(limit.key)
                await self.abort_transition(
                    f"The concurrency limit {which} is 0 and will deadlock if the {self.WHAT_RUNS} tries to run again."
                )
            elif not limit.has_room_for(run_id, ahead := _ahead(limit, context)):
                self._saw_full(limits, context)
                # No sooner than the last waiter that is known.
                turn_in = limit.turn_in(min(ahead, len(limit.queue)))
                await self.delay_transition(
                    context.settings.concurrency_slot_wait_seconds if turn_in is None else _whole_seconds(turn_in),
                    f"Concurrency limit {_FULL[limit.scope].format(limit.key)} has been reached",
                )
                # Whoever stands farther behind is told by those before it.
                moments.append(None if turn_in is None or ahead >= RATES_LOOK_AHEAD else work.now + turn_in)
        if moments:
            work.waiting.wait_for(limits, None if None in moments else max(filter(None, moments)))
        if self.context.proposed_state is not None:
            self._taken = tuple(limit for limit in limits if work.take_slot(limit, run_id))
            self._lease_by_default(limits)

    def _saw_full(self, limits: Sequence[LimitRecord], context: OrchestrationContext) -> None:
        """Note those of the limits that have no room, once."""
        if context.proposed_state is not None and not context.is_what_if:
            full = [(limit, _ahead(limit, context)) for limit in limits]
            self.saw(
                limits=[_seen(limit, ahead) for limit, ahead in full if not limit.has_room_for(context.run.id, ahead)]
            )

    def _lease_by_default(self, limits: Sequence[LimitRecord]) -> None:
        """Give a state that asks for no lease the shortest of those that its limits give."""
        proposed = self.context.proposed_state
        leases = [limit.lease_seconds for limit in limits if limit.lease_seconds is not None]
        if leases and proposed is not None and proposed.state_details.lease is None:
            self.context.proposed_state = proposed.with_details(lease=min(leases))

    async def cleanup(
        self, initial_state: State | None, validated_state: State | None, context: OrchestrationContext
    ) -> None:
        for limit in self._taken:
            context.unit_of_work.return_slot(limit, context.run.id)


class SecureFlowConcurrencySlots(SecureTaskConcurrencySlots):
    """Takes a slot of every limit that the flow run asks for before it enters RUNNING: of its deployment's, and of
    those that its policy names. Where there is no such limit, the rule does not take part at all.

    The documented engine has no rule for flow runs; this one does what that for task runs does.
    """

    WHAT_RUNS = "flow"

    def _deviates(self) -> bool:
        return super()._deviates() or _is_unlimited(self.context)


class ReleaseTaskConcurrencySlots(BaseOrchestrationRule):
    """Says in the verdict that the slots of a task run that has left RUNNING were given back.

    They are given back with the state itself (`UnitOfWork.write_state`), so a policy without this rule leaks none.

    Deviation: what counts is the state that was written. The documented rule was skipped when another rule had changed
    the proposed type, so a run that awaited its retry kept its slot and waited for itself; and it gave the slots back
    when RUNNING was forced on a run that was RUNNING, while the run went on.
    """

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = ALL_ORCHESTRATION_STATES
    NEEDS = (Fact.SLOTS,)

    def _deviates(self) -> bool:
        return self.context.initial_state_type is not self.from_state_type or self.context.proposed_state is None


class ReleaseFlowConcurrencySlots(ReleaseTaskConcurrencySlots):
    """Says in the verdict that the slots of a flow run that has left RUNNING were given back; where no limit is on it,
    the rule does not take part.

    The documented engine has no rule for flow runs; this one does what that for task runs does.
    """

    def _deviates(self) -> bool:
        return super()._deviates() or _is_unlimited(self.context)


def _is_unlimited(context: OrchestrationContext) -> bool:
    return not context.unit_of_work.limits_of(context.run)


def _seen(limit: LimitRecord, ahead: int) -> dict[str, object]:
    """Return what is worth knowing of a limit: `before` are the waiters that go first."""
    terms: dict[str, object] = {"on": limit.scope, "key": limit.key, "concurrency_limit": limit.concurrency_limit}
    if limit.period is not None:
        terms["period_seconds"] = limit.period
    else:
        terms["held"] = limit.slots_held
    return {**terms, "free": limit.free, "before": ahead}


def _ahead(limit: LimitRecord, context: OrchestrationContext) -> int:
    if not limit.queue:
        return 0
    turn = context.unit_of_work.waiting.turn_of(context.proposal_id, context.priority)
    return limit.ahead_of(context.proposal_id, turn)


def _whole_seconds(time: timedelta) -> int:
    return -(-time // _SECOND)
