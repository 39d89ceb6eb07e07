"""Rules and transforms, a file a subject; the two kinds of them are in `base`."""

from statewright.states import TERMINAL_STATES
from statewright_worker.orchestration.contexts import (
    FlowOrchestrationContext,
    OrchestrationContext,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.rules.base import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationRule,
    BaseUniversalTransform,
)

__all__ = [
    "ALL_ORCHESTRATION_STATES",
    "TERMINAL_STATES",
    "BaseOrchestrationRule",
    "BaseUniversalTransform",
    "FlowOrchestrationContext",
    "OrchestrationContext",
    "TaskOrchestrationContext",
]
