"""Bookkeeping: what is noted on a run when it changes its state.

Source of every behaviour: the global policy page of the documented engine, and for UpdateFlowRunTrackerOnTasks its core
policy page.
"""

from typing import Final

from packaging.version import Version

from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import (
    API_VERSION,
    FlowOrchestrationContext,
    OrchestrationContext,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.records import FlowRunRecord
from statewright_worker.orchestration.rules.base import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationRule,
    BaseUniversalTransform,
)

RESUMING_IS_KNOWN_FROM: Final = Version("0.8.4")


class UpdateFlowRunTrackerOnTasks(BaseOrchestrationRule):
    """Notes on a task run which attempt of its flow run it entered RUNNING in."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})

    async def after_transition(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if context.run.flow_run_id is None:
            return
        flow_run = await context.flow_run()
        if flow_run is None:
            raise LookupError(f"the flow run {context.run.flow_run_id} of task run {context.run.id} does not exist")
        context.run.flow_run_run_count = flow_run.run_count


class SetRunStateType(BaseUniversalTransform):
    """Keeps the run's state type equal to its state's."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        if context.proposed_state is not None:
            context.run.state_type = context.proposed_state.type


class SetRunStateName(BaseUniversalTransform):
    """Keeps the run's state name equal to its state's."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        if context.proposed_state is not None:
            context.run.state_name = context.proposed_state.name


class SetRunStateTimestamp(BaseUniversalTransform):
    """Records when the run last changed its state."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        if context.proposed_state is not None:
            context.run.state_timestamp = context.proposed_state.timestamp


class SetStartTime(BaseUniversalTransform):
    """Records when the run entered RUNNING for the first time."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        proposed = context.proposed_state
        if proposed is not None and proposed.is_running() and context.run.start_time is None:
            context.run.start_time = proposed.timestamp


class SetEndTime(BaseUniversalTransform):
    """Records when a run that had started entered a terminal state; clears that when it leaves it again."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        initial, proposed, run = context.initial_state, context.proposed_state, context.run
        if proposed is None:
            return
        if proposed.is_final():
            if run.start_time is not None and run.end_time is None:
                run.end_time = proposed.timestamp
        elif initial is not None and initial.is_final():
            run.end_time = None


class IncrementRunTime(BaseUniversalTransform):
    """Adds up the time that the run spends in RUNNING, when it leaves it."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        initial, proposed = context.initial_state, context.proposed_state
        if proposed is not None and initial is not None and initial.is_running():
            context.run.total_run_time += proposed.timestamp - initial.timestamp


class SetExpectedStartTime(BaseUniversalTransform):
    """Estimates, from the run's first state, when it will start."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        proposed = context.proposed_state
        if proposed is not None and context.run.expected_start_time is None:
            scheduled = proposed.state_details.scheduled_time if proposed.is_scheduled() else None
            context.run.expected_start_time = scheduled or proposed.timestamp


class SetNextScheduledStartTime(BaseUniversalTransform):
    """Records the scheduled time while the run is SCHEDULED."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        initial, proposed = context.initial_state, context.proposed_state
        if proposed is None:
            return
        if proposed.is_scheduled():
            context.run.next_scheduled_start_time = proposed.state_details.scheduled_time
        elif initial is not None and initial.is_scheduled():
            context.run.next_scheduled_start_time = None


class UpdateStateDetails(BaseUniversalTransform):
    """Lets a state refer to the flow run and the task run that it belongs to."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        proposed, run = context.proposed_state, context.run
        if proposed is None:
            return
        if isinstance(run, FlowRunRecord):
            context.proposed_state = proposed.with_details(flow_run_id=run.id)
        else:
            context.proposed_state = proposed.with_details(flow_run_id=run.flow_run_id, task_run_id=run.id)


class UpdateSubflowParentTask(BaseUniversalTransform):
    """Lets the parent task run of a subflow enter each state that the subflow enters."""

    async def after_transition(self, context: FlowOrchestrationContext) -> None:
        if context.proposed_state is None or context.run.parent_task_run_id is None:
            return
        parent = context.unit_of_work.run(context.run.parent_task_run_id)
        if parent is not None and context.validated_state is not None:
            # The subflow has the lease: the parent task run, which nobody renews, only follows.
            details = {"child_flow_run_id": context.run.id, "lease": None, "executor": None}
            mirrored = context.validated_state.with_details(**details)
            await context.force_state(parent, mirrored.as_proposed())


class UpdateSubflowStateDetails(BaseUniversalTransform):
    """Lets a subflow's state refer to its parent task run."""

    async def before_transition(self, context: FlowOrchestrationContext) -> None:
        if context.proposed_state is not None and context.run.parent_task_run_id is not None:
            context.proposed_state = context.proposed_state.with_details(task_run_id=context.run.parent_task_run_id)


class IncrementFlowRunCount(BaseUniversalTransform):
    """Counts how often the flow run enters RUNNING; resuming after a pause does not count."""

    async def before_transition(self, context: FlowOrchestrationContext) -> None:
        if context.proposed_state is None or not context.proposed_state.is_running():
            return
        if not (_knows_resuming(context) and context.run.policy.resuming):
            context.run.run_count += 1


class RemoveResumingIndicator(BaseUniversalTransform):
    """Clears the mark of a resuming flow run once it runs or ends."""

    async def before_transition(self, context: FlowOrchestrationContext) -> None:
        proposed, policy = context.proposed_state, context.run.policy
        if proposed is None or not (proposed.is_running() or proposed.is_final()):
            return
        if policy.resuming and _knows_resuming(context):
            context.run.policy = policy.replaced(resuming=False)


class IncrementTaskRunCount(BaseUniversalTransform):
    """Counts how often the task run enters RUNNING."""

    async def before_transition(self, context: OrchestrationContext) -> None:
        if context.proposed_state is not None and context.proposed_state.is_running():
            context.run.run_count += 1


def _knows_resuming(context: OrchestrationContext) -> bool:
    api_version = context.parameters.get(API_VERSION)
    return api_version is None or api_version >= RESUMING_IS_KNOWN_FROM
