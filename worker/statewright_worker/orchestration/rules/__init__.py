"""Rules and transforms, a file a subject; the two kinds of them, and what they are called with, are in `base`."""

from statewright_worker.orchestration.rules.base import (
    ALL_ORCHESTRATION_STATES,
    TERMINAL_STATES,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    FlowOrchestrationContext,
    OrchestrationContext,
    TaskOrchestrationContext,
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
