"""What rules declare that they ask for is asked for where they may govern, and nothing else."""

from typing import Any

import pytest

from statewright import StateType
from statewright.runs import RunKind
from statewright_worker.orchestration import (
    ALL_ORCHESTRATION_STATES,
    BaseOrchestrationPolicy,
    BaseOrchestrationRule,
    BaseUniversalTransform,
    Engine,
    Fact,
)
from statewright_worker.orchestration.core_policy import CoreTaskPolicy
from statewright_worker.orchestration.facts import Need
from statewright_worker.orchestration.policies import Governing

CORE = Engine()
RELEASING = {Need(Fact.SLOTS, kind, frozenset({StateType.RUNNING})) for kind in RunKind}


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
    needs = set(CORE.needs(state_type, force=False))
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
            assert needs == {*RELEASING, retrying}
        case _:
            assert needs == RELEASING


@pytest.mark.parametrize("state_type", StateType)
def test_what_is_forced_releases_slots_and_needs_no_more(state_type: StateType) -> None:
    assert set(CORE.needs(state_type, force=True)) == RELEASING


def test_a_users_rule_is_asked_for_whatever_type_its_run_has() -> None:
    engine = Engine(flow_policy=OwnFlowPolicy)
    own = Need(Fact.LIMITS, RunKind.FLOW_RUN, ALL_ORCHESTRATION_STATES)
    assert set(engine.needs(StateType.PAUSED, force=False)) == {*RELEASING, own}
    assert engine.needs(StateType.PENDING, force=False) == CORE.needs(StateType.PENDING, force=False)


def test_a_users_policy_is_asked_each_time_and_the_default_rules_are_always_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(flow_policy=OwnFlowPolicy, task_policy=OwnFlowPolicy)
    monkeypatch.setattr(OwnFlowPolicy, "rules", ())
    for state_type in StateType:
        assert engine.needs(state_type, force=False) == CORE.needs(state_type, force=False)
    monkeypatch.setattr(OwnFlowPolicy, "rules", tuple(CoreTaskPolicy.priority()))
    of_flow_runs = Need(Fact.CACHED_STATE, RunKind.FLOW_RUN, ALL_ORCHESTRATION_STATES)
    assert of_flow_runs in engine.needs(StateType.RUNNING, force=False)


def test_a_users_policy_that_fails_costs_nobody_their_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(flow_policy=OwnFlowPolicy)
    monkeypatch.setattr(OwnFlowPolicy, "rules", None)
    assert engine.needs(StateType.RUNNING, force=False) == CORE.needs(StateType.RUNNING, force=False)


@pytest.mark.parametrize("base", [BaseOrchestrationRule, BaseUniversalTransform])
@pytest.mark.parametrize("needs", [Fact.LIMITS, ("limits",), [Fact.LIMITS]])
def test_what_is_no_fact_cannot_be_declared(base: type, needs: Any) -> None:
    with pytest.raises(TypeError, match=r"Wrong\.NEEDS must be a tuple of facts"):
        type("Wrong", (base,), {"NEEDS": needs})
