"""Attempts after the first one.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from datetime import datetime, timedelta
from typing import Final

from packaging.version import Version

from statewright.protocol.requests import Propose
from statewright.runs import RunPolicy
from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import API_VERSION, OrchestrationContext, TaskOrchestrationContext
from statewright_worker.orchestration.facts import Fact
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES, BaseOrchestrationRule

TASKS_RETRY_THEMSELVES_FROM: Final = Version("0.8.3")


class RetryFailedTasks(BaseOrchestrationRule):
    """Rejects FAILED while the task run has retries left, and schedules the next attempt instead."""

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = frozenset({StateType.FAILED})

    async def before_transition(
        self, initial_state: State | None, proposed_state: State, context: OrchestrationContext
    ) -> None:
        policy, run_count = context.run_settings, context.run.run_count
        has_retries = policy.retries is not None and run_count <= policy.retries
        if has_retries or context.is_what_if:
            self.saw(run_count=run_count, retries=policy.retries)
        if has_retries:
            retry_at = context.unit_of_work.now + timedelta(seconds=retry_delay_seconds(policy, run_count))
            self.saw(retry_at=retry_at)
            await self.before_retry(retry_at, context)
            retry = State.awaiting_retry(retry_at, message=proposed_state.message, data=proposed_state.data)
            await self.reject_transition(retry, "Retrying")

    async def before_retry(self, retry_at: datetime, context: OrchestrationContext) -> None:
        """Do what a retry of this kind of run needs beside its own state: for a task run, nothing."""


class RetryFailedFlows(RetryFailedTasks):
    """Rejects FAILED while the flow run has retries left, and schedules the next attempt instead.

    For producers of an API version below 0.8.3 it also sends the flow run's failed task runs to AwaitingRetry and lets
    their run counts start anew; later producers do that themselves.
    """

    NEEDS = (Fact.FAILED_TASK_RUNS,)

    @classmethod
    def needs_for(cls, proposal: Propose) -> tuple[Fact, ...]:
        api_version = None if proposal.api_version is None else Version(proposal.api_version)
        return () if _tasks_retry_themselves(api_version) else cls.NEEDS

    async def before_retry(self, retry_at: datetime, context: OrchestrationContext) -> None:
        if _tasks_retry_themselves(context.parameters.get(API_VERSION)):
            return
        for task_run in context.unit_of_work.failed_task_runs(context.run.id):
            await context.force_state(task_run, State.awaiting_retry(retry_at))
            task_run.run_count = 0


def _tasks_retry_themselves(api_version: Version | None) -> bool:
    return api_version is None or api_version >= TASKS_RETRY_THEMSELVES_FROM


def retry_delay_seconds(policy: RunPolicy, run_count: int) -> float:
    """Return the pause before the next attempt; of a list of delays, the one for this attempt or the last."""
    delay = policy.retry_delay
    if isinstance(delay, tuple):
        return delay[min(max(run_count, 1), len(delay)) - 1] if delay else 0.0
    return delay or 0.0


class RenameReruns(BaseOrchestrationRule):
    """Names a repeated RUNNING "Retrying" when it follows AwaitingRetry, "Rerunning" otherwise."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})

    async def before_transition(
        self, initial_state: State | None, proposed_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if context.run.run_count > 0:
            awaited_retry = initial_state is not None and initial_state.name == "AwaitingRetry"
            await self.rename_state("Retrying" if awaited_retry else "Rerunning")
