"""Runs that wait for their time.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import OrchestrationContext
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES, BaseOrchestrationRule


class WaitForScheduledTime(BaseOrchestrationRule):
    """Delays leaving SCHEDULED until its time has come, by the whole seconds that are left."""

    FROM_STATES = frozenset({StateType.SCHEDULED})
    TO_STATES = ALL_ORCHESTRATION_STATES

    async def before_transition(
        self, initial_state: State, proposed_state: State | None, context: OrchestrationContext
    ) -> None:
        scheduled_time = initial_state.state_details.scheduled_time
        if scheduled_time is None:
            raise ValueError("the run is SCHEDULED without a scheduled time")
        delay_seconds = int((scheduled_time - context.unit_of_work.now).total_seconds())
        if delay_seconds > 0 or context.is_what_if:
            self.saw(scheduled_time=scheduled_time, now=context.now)
        if delay_seconds > 0:
            await self.delay_transition(delay_seconds, "Scheduled time is in the future")
            context.unit_of_work.waiting.wait_until = scheduled_time
