"""Results that serve later runs.

Source of every rule's behaviour: the core policy page of the documented engine; where it deviates, the rule says so.
"""

from statewright.states import State, StateType
from statewright_worker.orchestration.contexts import TaskOrchestrationContext
from statewright_worker.orchestration.facts import Fact
from statewright_worker.orchestration.records import CacheEntry
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES, BaseOrchestrationRule


class CacheRetrieval(BaseOrchestrationRule):
    """Rejects RUNNING with a cache key under which an unexpired completed state is cached, and enters that state."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.RUNNING})
    NEEDS = (Fact.CACHED_STATE,)

    async def before_transition(
        self, initial_state: State | None, proposed_state: State, context: TaskOrchestrationContext
    ) -> None:
        cache_key = proposed_state.state_details.cache_key
        cached = context.unit_of_work.cached_state(cache_key) if cache_key else None
        if context.is_what_if and cached is None:
            self.saw(cache_key=cache_key, cached_state=None)
        if cached is not None:
            details = cached.state_details
            self.saw(cache_key=cache_key, cached_state=cached.id, cache_expiration=details.cache_expiration)
            self.saw(of_task_run=details.task_run_id)
            copy = cached.renamed("Cached").as_proposed()
            await self.reject_transition(state=copy, reason="Retrieved state from cache")


class CacheInsertion(BaseOrchestrationRule):
    """Caches a completed state under its cache key once it is written."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = frozenset({StateType.COMPLETED})

    async def after_transition(
        self, initial_state: State | None, validated_state: State | None, context: TaskOrchestrationContext
    ) -> None:
        # A subclass's hook gets a copy of the state, but the cache must keep the very state that the run has.
        written = self.context.validated_state
        if written is not None and written.state_details.cache_key:
            details = written.state_details
            entry = CacheEntry(written.state_details.cache_key, details.cache_expiration, written)
            context.unit_of_work.add_cache_entry(entry)
