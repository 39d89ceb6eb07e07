"""Instrumentation: what a change of state tells the world. It goes with every transition, forced ones included."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from pydantic_core import to_json

from statewright.events import truncated
from statewright.states import State
from statewright_worker.orchestration.contexts import OrchestrationContext
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.records import FlowRunRecord, StateChange
from statewright_worker.orchestration.rules import BaseUniversalTransform

FOLLOWS_WITHIN: Final = timedelta(minutes=5)


class InstrumentFlowRunStateTransitions(BaseUniversalTransform):
    """Makes the change of a flow run an event, told as the run stands once its bookkeeping is done.

    Source: the instrumentation policies page. The event leaves only after the commit, made from the stored row.
    """

    async def after_transition(self, context: OrchestrationContext) -> None:
        if not self.nullified_transition() and context.validated_state is not None:
            context.unit_of_work.instrument(context.run, context.validated_state)


class InstrumentTaskRunStateTransitions(InstrumentFlowRunStateTransitions):
    """Makes the change of a task run an event, of the same form as a flow run's."""


class FlowInstrumentation(BaseOrchestrationPolicy):
    """The instrumentation of a flow run's transition."""

    @staticmethod
    def priority() -> Sequence[Governing]:
        return [InstrumentFlowRunStateTransitions]


class TaskInstrumentation(BaseOrchestrationPolicy):
    """The instrumentation of a task run's transition."""

    @staticmethod
    def priority() -> Sequence[Governing]:
        return [InstrumentTaskRunStateTransitions]


def event_body(change: StateChange, partition: int, sequence: int) -> bytes:
    """Return the event of a change as JSON; `statewright.Event` describes and reads it."""
    run, state, previous = change.run, change.state, change.previous
    return to_json(
        {
            "id": state.id,
            "event": f"{run.kind}.{state.name}",
            "occurred": state.timestamp,
            "partition": partition,
            "sequence": sequence,
            "follows": previous.id if previous is not None and _follows(previous, state) else None,
            "resource": {
                "kind": run.kind,
                "id": run.id,
                "name": run.name,
                "run_count": change.run_count,
                "state_type": state.type,
                "state_name": state.name,
                "state_message": truncated(state.message),
                "state_timestamp": state.timestamp,
            },
            "related": _related(change),
            "intended": {"from_type": previous.type if previous is not None else None, "to_type": state.type},
            "initial_state": _told(previous) if previous is not None else None,
            "validated_state": _told(state),
        },
        exclude_none=True,
    )


def _follows(previous: State, state: State) -> bool:
    return abs(state.timestamp - previous.timestamp) < FOLLOWS_WITHIN


def _told(state: State) -> dict[str, Any]:
    return {"type": state.type, "name": state.name, "message": truncated(state.message)}


def _related(change: StateChange) -> list[dict[str, Any]]:
    run = change.run
    belongs_to: dict[str, UUID | None]
    if isinstance(run, FlowRunRecord):
        belongs_to = {"flow": run.flow_id, "deployment": run.deployment_id, "parent-task-run": run.parent_task_run_id}
    else:
        belongs_to = {"flow-run": run.flow_run_id}
    related = [{"role": role, "id": str(other)} for role, other in belongs_to.items() if other is not None]
    return related + [{"role": "tag", "id": tag} for tag in sorted(set(run.tags))]
