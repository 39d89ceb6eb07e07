"""What rules declare that they ask for is asked for where they may govern, and nothing else."""

from collections import defaultdict
from typing import Any

import pytest

from statewright import StateType
from statewright.protocol.requests import Propose
from statewright.runs import RunKind
from statewright_worker.facts.base import Reading
from statewright_worker.facts.batch import Asked
from statewright_worker.facts.runs import LOCK_FAILED_TASK_RUNS
from statewright_worker.orchestration import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationPolicy,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    Engine,
    Fact,
)
from statewright_worker.orchestration.core_policy import CoreTaskPolicy, RetryFailedFlows
from statewright_worker.orchestration.facts import Need
from statewright_worker.orchestration.policies import Governing
from tests.orchestration.builders import CORE, IDS, flow_run, of_type, propose, put, work_with

OLD = "0.8.2"
"""The last API version whose producers do not retry task runs themselves."""
RELEASING = {Need(Fact.SLOTS, kind, frozenset({StateType.RUNNING})) for kind in RunKind}


def proposing(state_type: StateType, **more: Any) -> Propose:
    return Propose(run_id=IDS.new(), state=of_type(state_type), **more)


class KeepOneSlotFree(BaseOrchestrationRule):
    """A user's rule that looks at the limits on a flow run's tags."""

    FROM_STATES = frozenset({StateType.PENDING})
    TO_STATES = frozenset({StateType.PAUSED})
    NEEDS = (Fact.LIMITS,)


class OwnFlowPolicy(BaseOrchestrationPolicy):
    """A user's policy that is not the same at each transition."""

    rules: tuple[Governing, ...] = (KeepOneSlotFree,)

    @staticmethod
    def priority() -> list[Governing]:
        return list(OwnFlowPolicy.rules)


@pytest.mark.parametrize("state_type", StateType)
def test_the_default_rules_ask_for_what_they_declare(state_type: StateType) -> None:
    needs = set(CORE.needs(proposing(state_type)))
    match state_type:
        case StateType.RUNNING:
            any_type = ALL_ORCHESTRATION_STATES
            assert needs == {
                Need(Fact.SLOTS, RunKind.FLOW_RUN, any_type),
                Need(Fact.SLOTS, RunKind.TASK_RUN, any_type),
                Need(Fact.CACHED_STATE, RunKind.TASK_RUN, any_type),
            }
            assert all(need.from_types is any_type for need in needs)
        case StateType.FAILED:
            retrying = Need(Fact.FAILED_TASK_RUNS, RunKind.FLOW_RUN, frozenset({StateType.RUNNING}))
            assert set(CORE.needs(proposing(state_type, api_version=OLD))) == {*RELEASING, retrying}
            for later in ("0.8.3", "0.8.10"):
                assert set(CORE.needs(proposing(state_type, api_version=later))) == needs
            assert needs == RELEASING
        case _:
            assert needs == RELEASING


@pytest.mark.parametrize("state_type", StateType)
def test_what_is_forced_releases_slots_and_needs_no_more(state_type: StateType) -> None:
    assert set(CORE.needs(proposing(state_type, force=True))) == RELEASING


def test_a_users_rule_is_asked_for_whatever_type_its_run_has() -> None:
    engine = Engine(flow_policy=OwnFlowPolicy)
    own = Need(Fact.LIMITS, RunKind.FLOW_RUN, ALL_ORCHESTRATION_STATES)
    assert set(engine.needs(proposing(StateType.PAUSED))) == {*RELEASING, own}
    assert engine.needs(proposing(StateType.PENDING)) == CORE.needs(proposing(StateType.PENDING))


def test_a_users_policy_is_asked_each_time_and_the_default_rules_are_always_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(flow_policy=OwnFlowPolicy, task_policy=OwnFlowPolicy)
    monkeypatch.setattr(OwnFlowPolicy, "rules", ())
    for state_type in StateType:
        assert engine.needs(proposing(state_type)) == CORE.needs(proposing(state_type))
    monkeypatch.setattr(OwnFlowPolicy, "rules", tuple(CoreTaskPolicy.priority()))
    of_flow_runs = Need(Fact.CACHED_STATE, RunKind.FLOW_RUN, ALL_ORCHESTRATION_STATES)
    assert of_flow_runs in engine.needs(proposing(StateType.RUNNING))


def test_a_users_policy_that_fails_costs_nobody_their_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(flow_policy=OwnFlowPolicy)
    monkeypatch.setattr(OwnFlowPolicy, "rules", None)
    assert engine.needs(proposing(StateType.RUNNING)) == CORE.needs(proposing(StateType.RUNNING))


class LookAtFailedTasks(BaseOrchestrationRule):
    """A user's rule that looks at a flow run's failed task runs, whatever its producer's API version."""

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = frozenset({StateType.COMPLETED, StateType.FAILED})
    NEEDS = (Fact.FAILED_TASK_RUNS,)


class ChooseByTheProposal(BaseOrchestrationRule):
    """A user's rule that needs its facts only now and then."""

    FROM_STATES = frozenset({StateType.RUNNING})
    TO_STATES = frozenset({StateType.COMPLETED})
    NEEDS = (Fact.FAILED_TASK_RUNS, Fact.LIMITS)

    @classmethod
    def needs_for(cls, proposal: Propose) -> frozenset[Fact]:
        if proposal.priority == 1:
            raise ValueError("broken")
        return frozenset({Fact.LIMITS, Fact.SLOTS} if proposal.priority else ())


def of_flow_runs(*facts: Fact) -> set[Need]:
    return {Need(fact, RunKind.FLOW_RUN, ALL_ORCHESTRATION_STATES) for fact in facts}


async def loaded(engine: Engine, proposal: Propose) -> list[tuple[object, ...]]:
    """Return the statements about runs that the proposal costs beside the first one."""
    executed: list[tuple[object, ...]] = []

    class Driver:
        async def fetch(self, *asked: object) -> list[Any]:
            executed.append(asked)
            return []

    asked = Asked()
    asked.foretell(proposal, engine.needs(proposal))
    driver: Any = Driver()
    loading = asked.runs.load(Reading(driver, 0, 0, defaultdict(list)), work_with())
    if loading is not None:
        await loading
    return executed


@pytest.mark.parametrize("api_version", [None, OLD, "1.0"])
@pytest.mark.parametrize("state_type", [StateType.COMPLETED, StateType.FAILED])
async def test_a_users_rule_gets_what_it_declares_from_any_producer(
    monkeypatch: pytest.MonkeyPatch, state_type: StateType, api_version: str | None
) -> None:
    engine, proposal = Engine(flow_policy=OwnFlowPolicy), proposing(state_type, api_version=api_version)
    monkeypatch.setattr(OwnFlowPolicy, "rules", (LookAtFailedTasks, RetryFailedFlows))
    assert set(engine.needs(proposal)) >= {*RELEASING, *of_flow_runs(Fact.FAILED_TASK_RUNS)}
    assert await loaded(engine, proposal) == [(LOCK_FAILED_TASK_RUNS, [proposal.run_id])]


async def test_the_failed_task_runs_are_loaded_only_for_producers_that_do_not_retry_them() -> None:
    old = proposing(StateType.FAILED, api_version=OLD)
    assert await loaded(CORE, old) == [(LOCK_FAILED_TASK_RUNS, [old.run_id])]
    assert await loaded(CORE, proposing(StateType.FAILED)) == []


def test_a_rule_may_choose_by_the_proposal_among_the_facts_that_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(flow_policy=OwnFlowPolicy)
    monkeypatch.setattr(OwnFlowPolicy, "rules", (ChooseByTheProposal,))
    assert set(engine.needs(proposing(StateType.COMPLETED))) == RELEASING
    chosen = of_flow_runs(Fact.LIMITS)
    assert set(engine.needs(proposing(StateType.COMPLETED, priority=2))) == RELEASING | chosen
    # One that cannot choose gets all.
    everything = of_flow_runs(Fact.LIMITS, Fact.FAILED_TASK_RUNS)
    assert set(engine.needs(proposing(StateType.COMPLETED, priority=1))) == RELEASING | everything
    assert set(engine.needs(proposing(StateType.RUNNING, priority=1))) == set(CORE.needs(proposing(StateType.RUNNING)))


class CompilingPolicy(BaseOrchestrationPolicy):
    """A user's policy that does not keep its rules in one list."""

    rules: tuple[Governing, ...] = (KeepOneSlotFree,)
    compiled = 0

    @staticmethod
    def priority() -> list[Governing]:
        raise NotImplementedError

    @classmethod
    def compile_transition_rules(
        cls, from_state: StateType | None = None, to_state: StateType | None = None
    ) -> list[Governing]:
        cls.compiled += 1
        if from_state is StateType.CRASHED:
            raise LookupError("nobody comes back from there")
        return list(cls.rules) if (from_state, to_state) == (StateType.PENDING, StateType.PAUSED) else []


def test_a_policy_that_compiles_itself_is_asked_for_its_rules_itself() -> None:
    engine = Engine(flow_policy=CompilingPolicy)
    assert set(engine.needs(proposing(StateType.PAUSED))) == RELEASING | of_flow_runs(Fact.LIMITS)
    for state_type in set(StateType) - {StateType.PAUSED}:
        assert engine.needs(proposing(state_type)) == CORE.needs(proposing(state_type))
    asked = CompilingPolicy.compiled
    for state_type in StateType:
        engine.needs(proposing(state_type))
    assert CompilingPolicy.compiled == asked


async def test_a_policy_that_compiles_itself_is_foreseen_anew_once_it_has_returned_other_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, run = Engine(flow_policy=CompilingPolicy), flow_run()
    work = work_with(run)
    await put(work, run, of_type(StateType.PENDING))
    monkeypatch.setattr(CompilingPolicy, "rules", ())
    assert set(engine.needs(proposing(StateType.PAUSED))) == RELEASING
    monkeypatch.setattr(CompilingPolicy, "rules", (KeepOneSlotFree,))
    await propose(work, run, of_type(StateType.PAUSED), engine=engine)
    assert set(engine.needs(proposing(StateType.PAUSED))) == RELEASING | of_flow_runs(Fact.LIMITS)


def test_a_users_policy_that_has_not_changed_is_asked_for_its_list_once_a_proposal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, listed = Engine(flow_policy=OwnFlowPolicy), 0

    def priority() -> list[Governing]:
        nonlocal listed
        listed += 1
        return [KeepOneSlotFree]

    monkeypatch.setattr(OwnFlowPolicy, "priority", staticmethod(priority))
    engine.needs(proposing(StateType.PAUSED))
    before = listed
    engine.needs(proposing(StateType.PAUSED))
    assert listed == before + 1


@pytest.mark.parametrize("base", [BaseOrchestrationRule, BaseUniversalTransform])
@pytest.mark.parametrize("needs", [Fact.LIMITS, ("limits",), [Fact.LIMITS]])
def test_what_is_no_fact_cannot_be_declared(base: type, needs: Any) -> None:
    with pytest.raises(TypeError, match=r"Wrong\.NEEDS must be a tuple of facts"):
        type("Wrong", (base,), {"NEEDS": needs})
