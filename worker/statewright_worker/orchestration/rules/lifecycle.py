"""What may follow what: terminal states, and the way from SCHEDULED to RUNNING.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from typing import ClassVar

from statewright.states import TERMINAL_STATES, State, StateType
from statewright_worker.orchestration.contexts import (
    FlowOrchestrationContext,
    OrchestrationContext,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES, BaseOrchestrationRule


class HandleTaskTerminalStateTransitions(BaseOrchestrationRule):
    """Aborts transitions out of a terminal state, but lets a failed, crashed or cancelled task run again when its flow
    run is being retried; its run count then starts anew, so that its own retries count again."""

    FROM_STATES = TERMINAL_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES

    _original_run_count: int | None = None

    async def before_transition(
        self, initial_state: State, proposed_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if proposed_state is not None and proposed_state.is_running() and not initial_state.is_completed():
            flow_run = await context.flow_run()
            if flow_run is not None and context.run.flow_run_run_count < flow_run.run_count:
                self._original_run_count = context.run.run_count
                context.run.run_count = 0
                await self.rename_state("Retrying")
                return
            self.saw(
                attempt_of_flow_run=None if flow_run is None else flow_run.run_count,
                attempt_that_it_ran_in=context.run.flow_run_run_count,
            )
        await self.abort_transition("This run has already terminated.")

    async def cleanup(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if self._original_run_count is not None:
            context.run.run_count = self._original_run_count


class HandleFlowTerminalStateTransitions(BaseOrchestrationRule):
    """Aborts transitions out of a terminal state, but lets a flow run with a deployment be scheduled again under the
    name AwaitingRetry."""

    FROM_STATES = TERMINAL_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES

    async def before_transition(
        self, initial_state: State, proposed_state: State | None, context: FlowOrchestrationContext
    ) -> None:
        if proposed_state is None or not proposed_state.is_scheduled() or proposed_state.name != "AwaitingRetry":
            await self.abort_transition("This run has already terminated.")
        elif context.run.deployment_id is None:
            self.saw(deployment_id=None)
            await self.abort_transition("Cannot restart a run without an associated deployment.")


class PreventRedundantTransitions(BaseOrchestrationRule):
    """Aborts transitions that lead backwards or nowhere among SCHEDULED, PENDING and RUNNING."""

    STATE_PROGRESS: ClassVar[dict[StateType | None, int]] = {
        None: 0,
        StateType.SCHEDULED: 1,
        StateType.PENDING: 2,
        StateType.RUNNING: 3,
    }

    FROM_STATES = frozenset(STATE_PROGRESS)
    TO_STATES = frozenset(STATE_PROGRESS)

    async def before_transition(
        self, initial_state: State | None, proposed_state: State | None, context: OrchestrationContext
    ) -> None:
        current, proposed = context.initial_state_type, context.proposed_state_type
        if self.STATE_PROGRESS[proposed] <= self.STATE_PROGRESS[current]:
            await self.abort_transition(f"This run cannot transition to the {proposed} state from the {current} state.")
