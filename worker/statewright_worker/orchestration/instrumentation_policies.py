"""Instrumentation: makes an event of every change of state, forced ones included."""

from statewright_worker.orchestration.contexts import OrchestrationContext
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.rules.base import BaseUniversalTransform


class InstrumentFlowRunStateTransitions(BaseUniversalTransform):
    """Makes an event of the change of a flow run, with the run as it is after its bookkeeping.

    Source: the instrumentation policies page. The event leaves only after the commit, made from the stored row.
    """

    async def after_transition(self, context: OrchestrationContext) -> None:
        if context.proposed_state is not None and context.validated_state is not None:
            context.unit_of_work.instrument(context.run, context.validated_state)


class InstrumentTaskRunStateTransitions(InstrumentFlowRunStateTransitions):
    """Makes an event of the change of a task run, in the same form as for a flow run."""


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
