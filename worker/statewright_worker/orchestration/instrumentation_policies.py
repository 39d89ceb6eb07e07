"""Instrumentation: what a change of state tells the world. It goes with every transition, forced ones included."""

from statewright_worker.orchestration.contexts import OrchestrationContext
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.rules.base import BaseUniversalTransform


class InstrumentFlowRunStateTransitions(BaseUniversalTransform):
    """Makes the change of a flow run an event, told as the run stands once its bookkeeping is done.

    Source: the instrumentation policies page. The event leaves only after the commit, made from the stored row.
    """

    async def after_transition(self, context: OrchestrationContext) -> None:
        if context.proposed_state is not None and context.validated_state is not None:
            context.unit_of_work.instrument(context.run, context.validated_state)


class InstrumentTaskRunStateTransitions(InstrumentFlowRunStateTransitions):
    """Makes the change of a task run an event, of the same form as a flow run's."""


class FlowInstrumentation(BaseOrchestrationPolicy):
    """The instrumentation of a flow run's transition."""

    @staticmethod
    def priority() -> list[Governing]:
        return [InstrumentFlowRunStateTransitions]


class TaskInstrumentation(BaseOrchestrationPolicy):
    """The instrumentation of a task run's transition."""

    @staticmethod
    def priority() -> list[Governing]:
        return [InstrumentTaskRunStateTransitions]
