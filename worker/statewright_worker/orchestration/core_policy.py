"""The policies that order the default rules; each rule can be imported from here as well."""

from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.rules.bookkeeping import UpdateFlowRunTrackerOnTasks
from statewright_worker.orchestration.rules.caching import CacheInsertion, CacheRetrieval
from statewright_worker.orchestration.rules.concurrency import (
    ReleaseFlowConcurrencySlots,
    ReleaseTaskConcurrencySlots,
    SecureFlowConcurrencySlots,
    SecureTaskConcurrencySlots,
)
from statewright_worker.orchestration.rules.lifecycle import (
    HandleFlowTerminalStateTransitions,
    HandleTaskTerminalStateTransitions,
    PreventRedundantTransitions,
)
from statewright_worker.orchestration.rules.retries import RenameReruns, RetryFailedFlows, RetryFailedTasks
from statewright_worker.orchestration.rules.scheduling import WaitForScheduledTime

__all__ = [
    "CacheInsertion",
    "CacheRetrieval",
    "CoreFlowPolicy",
    "CoreTaskPolicy",
    "HandleFlowTerminalStateTransitions",
    "HandleTaskTerminalStateTransitions",
    "MinimalFlowPolicy",
    "MinimalTaskPolicy",
    "PreventRedundantTransitions",
    "ReleaseFlowConcurrencySlots",
    "ReleaseTaskConcurrencySlots",
    "RenameReruns",
    "RetryFailedFlows",
    "RetryFailedTasks",
    "SecureFlowConcurrencySlots",
    "SecureTaskConcurrencySlots",
    "UpdateFlowRunTrackerOnTasks",
    "WaitForScheduledTime",
]


class CoreFlowPolicy(BaseOrchestrationPolicy):
    """The default rules for flow runs."""

    @staticmethod
    def priority() -> list[Governing]:
        return [
            HandleFlowTerminalStateTransitions,
            PreventRedundantTransitions,
            SecureFlowConcurrencySlots,
            WaitForScheduledTime,
            RetryFailedFlows,
            ReleaseFlowConcurrencySlots,
        ]


class CoreTaskPolicy(BaseOrchestrationPolicy):
    """The default rules for task runs: a cached result is taken even when the limits are full."""

    @staticmethod
    def priority() -> list[Governing]:
        return [
            CacheRetrieval,
            HandleTaskTerminalStateTransitions,
            PreventRedundantTransitions,
            SecureTaskConcurrencySlots,
            WaitForScheduledTime,
            RetryFailedTasks,
            RenameReruns,
            UpdateFlowRunTrackerOnTasks,
            CacheInsertion,
            ReleaseTaskConcurrencySlots,
        ]


class MinimalFlowPolicy(BaseOrchestrationPolicy):
    """What governs a forced transition of a flow run: its slots are given back all the same."""

    @staticmethod
    def priority() -> list[Governing]:
        return [ReleaseFlowConcurrencySlots]


class MinimalTaskPolicy(BaseOrchestrationPolicy):
    """What governs a forced transition of a task run: its slots are given back all the same."""

    @staticmethod
    def priority() -> list[Governing]:
        return [ReleaseTaskConcurrencySlots]
