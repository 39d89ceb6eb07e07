"""The engine: contexts, rules, transforms and policies. Pure: it reaches neither Redis nor PostgreSQL."""

from statewright_worker.orchestration.contexts import (
    FlowOrchestrationContext,
    OrchestrationContext,
    OrchestrationSettings,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.engine import Engine, Proposal
from statewright_worker.orchestration.errors import OrchestrationError
from statewright_worker.orchestration.facts import Fact
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy
from statewright_worker.orchestration.rules import (
    ALL_ORCHESTRATION_STATES,
    TERMINAL_STATES,
    BaseOrchestrationRule,
    BaseUniversalTransform,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork

__all__ = [
    "ALL_ORCHESTRATION_STATES",
    "TERMINAL_STATES",
    "BaseOrchestrationPolicy",
    "BaseOrchestrationRule",
    "BaseUniversalTransform",
    "Engine",
    "Fact",
    "FlowOrchestrationContext",
    "OrchestrationContext",
    "OrchestrationError",
    "OrchestrationSettings",
    "Proposal",
    "TaskOrchestrationContext",
    "UnitOfWork",
]
