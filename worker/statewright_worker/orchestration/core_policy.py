"""The default rules and the policies that order them.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from datetime import datetime, timedelta
from typing import ClassVar, Final

from packaging.version import Version

from statewright.runs import RunPolicy
from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import (
    FlowOrchestrationContext,
    OrchestrationContext,
    TaskOrchestrationContext,
)
from statewright_worker.orchestration.policies import BaseOrchestrationPolicy, Governing
from statewright_worker.orchestration.records import CacheEntry, LimitRecord
from statewright_worker.orchestration.rules import (
    ALL_ORCHESTRATION_STATES,
    TERMINAL_STATES,
    BaseOrchestrationRule,
)

TASKS_RETRY_THEMSELVES_FROM: Final = Version("0.8.3")
API_VERSION: Final = "api-version"


class CacheRetrieval(BaseOrchestrationRule):
    """Rejects RUNNING with a cache key under which an unexpired completed state is cached, and enters that state."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})

    async def before_transition(
        self, initial_state: State | None, proposed_state: State, context: TaskOrchestrationContext
    ) -> None:
        cache_key = proposed_state.state_details.cache_key
        cached = context.unit_of_work.cached_state(cache_key) if cache_key else None
        if cached is not None:
            copy = cached.renamed("Cached").as_proposed()
            await self.reject_transition(state=copy, reason="Retrieved state from cache")


class CacheInsertion(BaseOrchestrationRule):
    """Caches a completed state under its cache key once it is written."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.COMPLETED})

    async def after_transition(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        # What a subclass's hook is given is a copy, and the cache keeps what the run keeps.
        written = self.context.validated_state
        if written is not None and written.state_details.cache_key:
            details = written.state_details
            entry = CacheEntry(written.state_details.cache_key, details.cache_expiration, written)
            context.unit_of_work.add_cache_entry(entry)


class HandleTaskTerminalStateTransitions(BaseOrchestrationRule):
    """Aborts transitions out of a terminal state, but lets a failed, crashed or cancelled task run again when its flow
    run is being retried; its run count then starts anew, so that its own retries count again."""

    FROM_STATES = TERMINAL_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES

    _original_run_count: int | None = None

    async def before_transition(
        self, initial_state: State, proposed_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if proposed_state is not None and proposed_state.is_running() and not initial_state.is_completed():
            flow_run = await context.flow_run()
            if flow_run is not None and context.run.flow_run_run_count < flow_run.run_count:
                self._original_run_count = context.run.run_count
                context.run.run_count = 0
                await self.rename_state("Retrying")
                return
        await self.abort_transition("This run has already terminated.")

    async def cleanup(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if self._original_run_count is not None:
            context.run.run_count = self._original_run_count


class HandleFlowTerminalStateTransitions(BaseOrchestrationRule):
    """Aborts transitions out of a terminal state, but lets a flow run with a deployment be scheduled again under the
    name AwaitingRetry."""

    FROM_STATES = TERMINAL_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES

    async def before_transition(
        self, initial_state: State, proposed_state: State | None, context: FlowOrchestrationContext
    ) -> None:
        if proposed_state is None or not proposed_state.is_scheduled() or proposed_state.name != "AwaitingRetry":
            await self.abort_transition("This run has already terminated.")
        elif context.run.deployment_id is None:
            await self.abort_transition("Cannot restart a run without an associated deployment.")


class PreventRedundantTransitions(BaseOrchestrationRule):
    """Aborts transitions that lead backwards or nowhere among SCHEDULED, PENDING and RUNNING."""

    STATE_PROGRESS: ClassVar[dict[StateType | None, int]] = {
        None: 0,
        StateType.SCHEDULED: 1,
        StateType.PENDING: 2,
        StateType.RUNNING: 3,
    }

    FROM_STATES = frozenset(STATE_PROGRESS)
    TO_STATES = frozenset(STATE_PROGRESS)

    async def before_transition(
        self, initial_state: State | None, proposed_state: State | None, context: OrchestrationContext
    ) -> None:
        current, proposed = context.initial_state_type, context.proposed_state_type
        if self.STATE_PROGRESS[proposed] <= self.STATE_PROGRESS[current]:
            await self.abort_transition(f"This run cannot transition to the {proposed} state from the {current} state.")


class SecureTaskConcurrencySlots(BaseOrchestrationRule):
    """Takes a slot of every limit on the task run's tags before it enters RUNNING; a full limit delays the transition,
    a limit of 0 aborts it.

    Deviation: all or nothing. The documented rule kept the slots of tags behind a full one, and waited for itself.
    """

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})

    _taken: tuple[LimitRecord, ...] = ()

    async def before_transition(
        self, initial_state: State | None, proposed_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        run_id = context.run.id
        limits = context.unit_of_work.limits_on(context.run.tags)
        for limit in limits:
            if limit.concurrency_limit == 0:
                await self.abort_transition(
                    f'The concurrency limit on tag "{limit.tag}" is 0 and will deadlock if the task tries to run again.'
                )
            elif not limit.has_room_for(run_id):
                await self.delay_transition(
                    context.settings.concurrency_slot_wait_seconds,
                    f"Concurrency limit for the {limit.tag} tag has been reached",
                )
        if self.context.proposed_state is not None:
            self._taken = tuple(limit for limit in limits if context.unit_of_work.take_slot(limit, run_id))

    async def cleanup(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        for limit in self._taken:
            context.unit_of_work.release_slot(limit, context.run.id)


class ReleaseTaskConcurrencySlots(BaseOrchestrationRule):
    """Gives back the slots of a task run that has left RUNNING.

    Deviation: what counts is the state that was written. The documented rule was skipped when another rule had changed
    the proposed type, so a run that awaited its retry kept its slot and waited for itself; and it gave the slots back
    when RUNNING was forced on a run that was RUNNING, while the run went on.
    """

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = ALL_ORCHESTRATION_STATES

    def _deviates(self) -> bool:
        return self.context.initial_state_type is not self.from_state_type or self.context.proposed_state is None

    async def after_transition(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        if validated_state is not None and not validated_state.is_running():
            for limit in context.unit_of_work.limits_on(context.run.tags):
                context.unit_of_work.release_slot(limit, context.run.id)


class WaitForScheduledTime(BaseOrchestrationRule):
    """Delays leaving SCHEDULED until its time has come, by the whole seconds that are left."""

    FROM_STATES = frozenset({StateType.SCHEDULED})
    TO_STATES = ALL_ORCHESTRATION_STATES

    async def before_transition(
        self, initial_state: State, proposed_state: State | None, context: OrchestrationContext
    ) -> None:
        scheduled_time = initial_state.state_details.scheduled_time
        if scheduled_time is None:
            raise ValueError("the run is SCHEDULED without a scheduled time")
        delay_seconds = int((scheduled_time - context.unit_of_work.now).total_seconds())
        if delay_seconds > 0:
            await self.delay_transition(delay_seconds, "Scheduled time is in the future")


class RetryFailedTasks(BaseOrchestrationRule):
    """Rejects FAILED while the task run has retries left, and schedules the next attempt instead."""

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = frozenset({StateType.FAILED})

    async def before_transition(
        self, initial_state: State | None, proposed_state: State, context: OrchestrationContext
    ) -> None:
        policy, run_count = context.run_settings, context.run.run_count
        if policy.retries is not None and run_count <= policy.retries:
            retry_at = context.unit_of_work.now + timedelta(seconds=retry_delay_seconds(policy, run_count))
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

    async def before_retry(self, retry_at: datetime, context: OrchestrationContext) -> None:
        api_version = context.parameters.get(API_VERSION)
        if api_version is None or api_version >= TASKS_RETRY_THEMSELVES_FROM:
            return
        for task_run in context.unit_of_work.failed_task_runs(context.run.id):
            await context.force_state(task_run, State.awaiting_retry(retry_at))
            task_run.run_count = 0


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


class CoreFlowPolicy(BaseOrchestrationPolicy):
    """The default rules for flow runs."""

    @staticmethod
    def priority() -> list[Governing]:
        return [
            HandleFlowTerminalStateTransitions,
            PreventRedundantTransitions,
            WaitForScheduledTime,
            RetryFailedFlows,
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
    """What governs a forced transition of a flow run: nothing."""

    @staticmethod
    def priority() -> list[Governing]:
        return []


class MinimalTaskPolicy(BaseOrchestrationPolicy):
    """What governs a forced transition of a task run: its slots are given back all the same."""

    @staticmethod
    def priority() -> list[Governing]:
        return [ReleaseTaskConcurrencySlots]
