"""The policies that order the bookkeeping, which goes with every transition, whichever policy governs it."""

from collections.abc import Sequence
from typing import Final

from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.rules.bookkeeping import (
    IncrementFlowRunCount,
    IncrementRunTime,
    IncrementTaskRunCount,
    RemoveResumingIndicator,
    SetEndTime,
    SetExpectedStartTime,
    SetNextScheduledStartTime,
    SetRunStateName,
    SetRunStateTimestamp,
    SetRunStateType,
    SetStartTime,
    UpdateStateDetails,
    UpdateSubflowParentTask,
    UpdateSubflowStateDetails,
)

__all__ = [
    "COMMON_GLOBAL_TRANSFORMS",
    "GlobalFlowPolicy",
    "GlobalTaskPolicy",
    "IncrementFlowRunCount",
    "IncrementRunTime",
    "IncrementTaskRunCount",
    "RemoveResumingIndicator",
    "SetEndTime",
    "SetExpectedStartTime",
    "SetNextScheduledStartTime",
    "SetRunStateName",
    "SetRunStateTimestamp",
    "SetRunStateType",
    "SetStartTime",
    "UpdateStateDetails",
    "UpdateSubflowParentTask",
    "UpdateSubflowStateDetails",
]

COMMON_GLOBAL_TRANSFORMS: Final[Sequence[Governing]] = (
    SetRunStateType,
    SetRunStateName,
    SetRunStateTimestamp,
    SetStartTime,
    SetEndTime,
    IncrementRunTime,
    SetExpectedStartTime,
    SetNextScheduledStartTime,
    UpdateStateDetails,
)


class GlobalFlowPolicy(BaseOrchestrationPolicy):
    """The bookkeeping of a flow run's transition."""

    @staticmethod
    def priority() -> list[Governing]:
        return [
            *COMMON_GLOBAL_TRANSFORMS,
            UpdateSubflowParentTask,
            UpdateSubflowStateDetails,
            IncrementFlowRunCount,
            RemoveResumingIndicator,
        ]


class GlobalTaskPolicy(BaseOrchestrationPolicy):
    """The bookkeeping of a task run's transition."""

    @staticmethod
    def priority() -> list[Governing]:
        return [*COMMON_GLOBAL_TRANSFORMS, IncrementTaskRunCount]
