"""RULES.md says of every rule and transform what the code does: which there are, in which order, for which types."""

from collections.abc import Collection
from pathlib import Path

import pytest

from statewright import TERMINAL_STATES, StateType
from statewright_worker.orchestration import ALL_ORCHESTRATION_STATES, BaseOrchestrationPolicy
from statewright_worker.orchestration.core_policy import CoreFlowPolicy, CoreTaskPolicy
from statewright_worker.orchestration.global_policy import GlobalFlowPolicy, GlobalTaskPolicy
from statewright_worker.orchestration.instrumentation_policies import FlowInstrumentation, TaskInstrumentation

DOCUMENT = (Path(__file__).parents[2] / "RULES.md").read_text()
RULE_POLICIES: list[type[BaseOrchestrationPolicy]] = [CoreFlowPolicy, CoreTaskPolicy]
TRANSFORM_POLICIES: list[type[BaseOrchestrationPolicy]] = [
    GlobalFlowPolicy,
    GlobalTaskPolicy,
    FlowInstrumentation,
    TaskInstrumentation,
]
PAGES = {"core policy", "global policy", "instrumentation policies", "none"}


def rows(policy: type[BaseOrchestrationPolicy]) -> list[list[str]]:
    section = DOCUMENT.split(f"## {policy.__name__}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def in_words(types: Collection[StateType | None]) -> str:
    if set(types) == ALL_ORCHESTRATION_STATES:
        return "any"
    if set(types) == TERMINAL_STATES:
        return "terminal"
    return ", ".join(kind.value if kind else "none" for kind in (None, *StateType) if kind in types)


@pytest.mark.parametrize("policy", RULE_POLICIES + TRANSFORM_POLICIES)
def test_the_document_lists_the_policy_in_its_order(policy: type[BaseOrchestrationPolicy]) -> None:
    assert [row[0] for row in rows(policy)] == [rule.__name__ for rule in policy.priority()]


@pytest.mark.parametrize("policy", RULE_POLICIES)
def test_the_document_says_for_which_types_a_rule_is(policy: type[BaseOrchestrationPolicy]) -> None:
    written = [(row[1], row[2]) for row in rows(policy)]
    assert written == [(in_words(rule.FROM_STATES), in_words(rule.TO_STATES)) for rule in policy.priority()]


@pytest.mark.parametrize("policy", RULE_POLICIES + TRANSFORM_POLICIES)
def test_every_row_says_what_is_done_and_where_it_is_documented(policy: type[BaseOrchestrationPolicy]) -> None:
    for row in rows(policy):
        assert row[-3]
        assert row[-2] in PAGES


def test_a_rule_whose_docstring_tells_of_a_deviation_has_one_in_the_document() -> None:
    for policy in RULE_POLICIES:
        deviating = {row[0] for row in rows(policy) if row[-1]}
        assert {rule.__name__ for rule in policy.priority() if "Deviation" in (rule.__doc__ or "")} <= deviating
