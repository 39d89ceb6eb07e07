"""Slots of concurrency limits: taken before RUNNING, given back behind it.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import TaskOrchestrationContext
from statewright_worker.orchestration.facts import Fact
from statewright_worker.orchestration.records import LimitRecord
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES, BaseOrchestrationRule


class SecureTaskConcurrencySlots(BaseOrchestrationRule):
    """Takes a slot of every limit on the task run's tags before it enters RUNNING; a full limit delays the transition,
    a limit of 0 aborts it.

    Deviation: all or nothing. The documented rule kept the slots of tags behind a full one, and waited for itself.
    """

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})
    NEEDS = (Fact.LIMITS,)

    _taken: tuple[LimitRecord, ...] = ()

    async def before_transition(
        self, initial_state: State | None, proposed_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        run_id = context.run.id
        limits = context.unit_of_work.limits_on(context.run.tags)
        for limit in limits:
            if limit.concurrency_limit == 0:
                await self.abort_transition(
                    f'The concurrency limit on tag "{limit.key}" is 0 and will deadlock if the task tries to run again.'
                )
            elif not limit.has_room_for(run_id):
                await self.delay_transition(
                    context.settings.concurrency_slot_wait_seconds,
                    f"Concurrency limit for the {limit.key} tag has been reached",
                )
        if self.context.proposed_state is not None:
            self._taken = tuple(limit for limit in limits if context.unit_of_work.take_slot(limit, run_id))

    async def cleanup(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        for limit in self._taken:
            context.unit_of_work.release_slot(limit, context.run.id)


class ReleaseTaskConcurrencySlots(BaseOrchestrationRule):
    """Gives back the slots of a task run that has left RUNNING.

    Deviation: what counts is the state that was written. The documented rule was skipped when another rule had changed
    the proposed type, so a run that awaited its retry kept its slot and waited for itself; and it gave the slots back
    when RUNNING was forced on a run that was RUNNING, while the run went on.
    """

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = ALL_ORCHESTRATION_STATES
    NEEDS = (Fact.LIMITS,)

    def _deviates(self) -> bool:
        return self.context.initial_state_type is not self.from_state_type or self.context.proposed_state is None

    async def after_transition(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if validated_state is not None and not validated_state.is_running():
            for limit in context.unit_of_work.limits_on(context.run.tags):
                context.unit_of_work.release_slot(limit, context.run.id)
