"""Builders of runs, limits, rules, engines and proposals, so that a test says only what matters to it."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

from statewright import Event, ProposedState, State, StateDetails, StateType, Verdict
from statewright.ids import IdSource
from statewright.limits import LimitName, LimitScope
from statewright_worker.orchestration import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationPolicy,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    Engine,
    FlowOrchestrationContext,
    OrchestrationContext,
    OrchestrationError,
    Proposal,
    UnitOfWork,
)
from statewright_worker.orchestration.records import (
    AnyRunRecord,
    CacheEntry,
    FlowRunRecord,
    LimitRecord,
    TaskRunRecord,
)
from statewright_worker.streams.encoding import EventEncoding

NOW: Final = datetime(2030, 1, 1, 12, tzinfo=UTC)
"""The database's clock at the beginning of every test."""

IDS: Final = IdSource(clock=NOW.timestamp, entropy=lambda bits: 0)
"""Ids without chance: each one is greater than the one before."""

CORE: Final = Engine()

Governing = type[BaseOrchestrationRule] | type[BaseUniversalTransform]
Act = Callable[[BaseOrchestrationRule], Awaitable[None]]
Types = Collection[StateType | None]

_limit_ids = count(1)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


# -- the world ---------------------------------------------------------------------------------------------------------


def work_with(*runs: AnyRunRecord, limits: Iterable[LimitRecord] = ()) -> UnitOfWork:
    """Return a unit of work at NOW that knows the runs and the limits."""
    work = UnitOfWork(NOW, IDS)
    work.runs.update({run.id: run for run in runs})
    work.limits.update({limit.name: limit for limit in limits})
    return work


def flow_run(**fields: Any) -> FlowRunRecord:
    return FlowRunRecord(id=IDS.new(), name="a flow run", created=NOW, **fields)


def task_run(flow: FlowRunRecord | None = None, **fields: Any) -> TaskRunRecord:
    flow_run_id = flow.id if flow else None
    return TaskRunRecord(id=IDS.new(), name="a task run", created=NOW, flow_run_id=flow_run_id, **fields)


def on_tag(tag: str) -> LimitName:
    return LimitName(LimitScope.TAG, tag)


def limit_on(
    key: str, concurrency_limit: int, *holders: AnyRunRecord, scope: LimitScope = LimitScope.TAG, **terms: Any
) -> LimitRecord:
    return LimitRecord(
        id=next(_limit_ids),
        scope=scope,
        key=key,
        concurrency_limit=concurrency_limit,
        slots_held=len(holders),
        holders={run.id for run in holders},
        **terms,
    )


def written(state: ProposedState, at: datetime = NOW) -> State:
    """Return the state as it looks once it is written."""
    return state.stamped(IDS.new(), at, NOW)


def cached(work: UnitOfWork, cache_key: str, state: ProposedState, expiration: datetime | None = None) -> State:
    """Cache the state under the key, as storage finds it, and return it."""
    entry = CacheEntry(cache_key, expiration, written(state))
    work.cache.setdefault(cache_key, []).append(entry)
    return entry.state


# -- proposals ---------------------------------------------------------------------------------------------------------


def of_type(state_type: StateType, **details: Any) -> ProposedState:
    """Propose a state of the type with nothing else said, but perhaps details."""
    return ProposedState(type=state_type, state_details=StateDetails(**details))


def dated(state: ProposedState, timestamp: datetime) -> ProposedState:
    """Let the producer date its proposal."""
    return state.model_copy(update={"timestamp": timestamp})


def named(state: ProposedState, name: str) -> ProposedState:
    """Let the producer name its proposal."""
    return state.model_copy(update={"name": name})


async def propose(
    work: UnitOfWork,
    run: AnyRunRecord,
    state: ProposedState,
    *,
    force: bool = False,
    api_version: str | None = None,
    entered: datetime | None = None,
    engine: Engine = CORE,
) -> Verdict:
    """Decide on a proposal as a drain does: kept when there is a verdict, undone when there is none."""
    work.begin()
    try:
        proposal = Proposal(IDS.new(), run.id, state, entered or work.now, force, api_version)
        verdict = await engine.decide(proposal, work)
    except OrchestrationError:
        work.roll_back()
        raise
    work.commit()
    return verdict


async def put(work: UnitOfWork, run: AnyRunRecord, *states: ProposedState) -> None:
    """Bring the run into the states one after the other, by force."""
    for state in states:
        await propose(work, run, state, force=True)


def history(work: UnitOfWork, run: AnyRunRecord) -> list[State]:
    """Return the states that the run has entered in this unit of work."""
    return [change.state for change in work.state_changes if change.run is run]


def types(work: UnitOfWork, run: AnyRunRecord) -> list[StateType]:
    """Return the types of the states that the run has entered in this unit of work."""
    return [state.type for state in history(work, run)]


def events(work: UnitOfWork) -> list[Event]:
    """Return the events of all changes, as a subscriber reads them."""
    return [Event.model_validate_json(body) for body in event_bodies(work)]


def event_bodies(work: UnitOfWork) -> list[bytes]:
    """Return the events of all changes, as they leave."""
    encoding = EventEncoding("statewright", partition=3)
    return [encoding.change(change, sequence) for sequence, change in enumerate(work.state_changes, start=1)]


# -- rules and engines -------------------------------------------------------------------------------------------------


def policy_of(*governing: Governing) -> type[BaseOrchestrationPolicy]:
    class Policy(BaseOrchestrationPolicy):
        @staticmethod
        def priority() -> list[Governing]:
            return list(governing)

    return Policy


def engine_with(*governing: Governing, rule_timeout: float | None = None) -> Engine:
    """Return an engine whose policies consist of the rules and transforms in this order."""
    policy = policy_of(*governing)
    return Engine(flow_policy=policy, task_policy=policy, rule_timeout=rule_timeout)


async def nothing(rule: BaseOrchestrationRule) -> None:
    """What a rule does that does nothing."""


async def reject(rule: BaseOrchestrationRule) -> None:
    await rule.reject_transition(State.scheduled(name="Postponed"), "not yet")


async def keep(rule: BaseOrchestrationRule) -> None:
    await rule.reject_transition(None, "stay")


async def delay(rule: BaseOrchestrationRule) -> None:
    await rule.delay_transition(5, "later")


async def abort(rule: BaseOrchestrationRule) -> None:
    await rule.abort_transition("never")


async def rename(rule: BaseOrchestrationRule) -> None:
    await rule.rename_state("Walking")


async def fail(rule: BaseOrchestrationRule) -> None:
    raise KeyError("broken")


def noting(
    name: str,
    journal: list[str],
    *,
    before: Act = nothing,
    after: Act = nothing,
    cleanup: Act = nothing,
    from_states: Types = ALL_ORCHESTRATION_STATES,
    to_states: Types = ALL_ORCHESTRATION_STATES,
) -> type[BaseOrchestrationRule]:
    """Return a rule class that notes which of its hooks run, and then acts."""

    class Noting(BaseOrchestrationRule):
        FROM_STATES = from_states
        TO_STATES = to_states

        async def before_transition(self, initial_state: Any, proposed_state: Any, context: Any) -> None:
            journal.append(f"{name} before")
            await before(self)

        async def after_transition(self, initial_state: Any, validated_state: Any, context: Any) -> None:
            journal.append(f"{name} after")
            await after(self)

        async def cleanup(self, initial_state: Any, validated_state: Any, context: Any) -> None:
            journal.append(f"{name} cleanup")
            await cleanup(self)

    Noting.__name__ = name
    return Noting


def acting(before: Act = nothing, *, name: str = "Acting", **more: Any) -> type[BaseOrchestrationRule]:
    """Return a rule class that acts in its hooks and notes nothing."""
    return noting(name, [], before=before, **more)


def noting_transform(name: str, journal: list[str]) -> type[BaseUniversalTransform]:
    """Return a transform class that notes its hooks, and whether the transition was nullified."""

    class Noting(BaseUniversalTransform):
        async def before_transition(self, context: OrchestrationContext) -> None:
            journal.append(f"{name} before{' nothing' if self.nullified_transition() else ''}")

        async def after_transition(self, context: OrchestrationContext) -> None:
            journal.append(f"{name} after{' nothing' if self.nullified_transition() else ''}")

    Noting.__name__ = name
    return Noting


def flow_context(initial: ProposedState | None, proposed: ProposedState) -> FlowOrchestrationContext:
    """Return the context of a flow run's transition, outside any engine."""
    run = flow_run(state=written(initial) if initial else None)
    return FlowOrchestrationContext(
        run=run, unit_of_work=work_with(run), initial_state=run.state, proposed_state=written(proposed)
    )
