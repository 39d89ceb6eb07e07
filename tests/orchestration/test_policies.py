"""Policies: the documented lists, what is compiled for a transition, and what force leaves out."""

import pytest

from statewright import SetStateStatus, State, StateType
from statewright_worker.orchestration import ALL_ORCHESTRATION_STATES, TERMINAL_STATES, BaseOrchestrationPolicy, Engine
from statewright_worker.orchestration.core_policy import (
    CoreFlowPolicy,
    CoreTaskPolicy,
    MinimalFlowPolicy,
    MinimalTaskPolicy,
)
from statewright_worker.orchestration.global_policy import GlobalFlowPolicy, GlobalTaskPolicy
from statewright_worker.orchestration.instrumentation_policies import FlowInstrumentation, TaskInstrumentation
from tests.orchestration.builders import (
    Types,
    abort,
    acting,
    engine_with,
    flow_run,
    noting_transform,
    policy_of,
    propose,
    task_run,
    work_with,
)

PENDING, RUNNING, FAILED, COMPLETED = StateType.PENDING, StateType.RUNNING, StateType.FAILED, StateType.COMPLETED

COMMON = [
    "SetRunStateType",
    "SetRunStateName",
    "SetRunStateTimestamp",
    "SetStartTime",
    "SetEndTime",
    "IncrementRunTime",
    "SetExpectedStartTime",
    "SetNextScheduledStartTime",
    "UpdateStateDetails",
]

DOCUMENTED: dict[type[BaseOrchestrationPolicy], list[str]] = {
    CoreFlowPolicy: [
        "HandleFlowTerminalStateTransitions",
        "PreventRedundantTransitions",
        "SecureFlowConcurrencySlots",
        "WaitForScheduledTime",
        "RetryFailedFlows",
        "ReleaseFlowConcurrencySlots",
    ],
    CoreTaskPolicy: [
        "CacheRetrieval",
        "HandleTaskTerminalStateTransitions",
        "PreventRedundantTransitions",
        "SecureTaskConcurrencySlots",
        "WaitForScheduledTime",
        "RetryFailedTasks",
        "RenameReruns",
        "UpdateFlowRunTrackerOnTasks",
        "CacheInsertion",
        "ReleaseTaskConcurrencySlots",
    ],
    MinimalFlowPolicy: ["ReleaseFlowConcurrencySlots"],
    MinimalTaskPolicy: ["ReleaseTaskConcurrencySlots"],
    GlobalFlowPolicy: [
        *COMMON,
        "UpdateSubflowParentTask",
        "UpdateSubflowStateDetails",
        "IncrementFlowRunCount",
        "RemoveResumingIndicator",
    ],
    GlobalTaskPolicy: [*COMMON, "IncrementTaskRunCount"],
    FlowInstrumentation: ["InstrumentFlowRunStateTransitions"],
    TaskInstrumentation: ["InstrumentTaskRunStateTransitions"],
}

COMPILED: list[tuple[type[BaseOrchestrationPolicy], StateType | None, StateType, list[str]]] = [
    (CoreFlowPolicy, None, RUNNING, ["PreventRedundantTransitions", "SecureFlowConcurrencySlots"]),
    (CoreFlowPolicy, RUNNING, FAILED, ["RetryFailedFlows", "ReleaseFlowConcurrencySlots"]),
    (CoreFlowPolicy, FAILED, RUNNING, ["HandleFlowTerminalStateTransitions", "SecureFlowConcurrencySlots"]),
    (CoreFlowPolicy, StateType.SCHEDULED, COMPLETED, ["WaitForScheduledTime"]),
    (CoreFlowPolicy, StateType.PAUSED, RUNNING, ["SecureFlowConcurrencySlots"]),
    (CoreFlowPolicy, StateType.PAUSED, FAILED, []),
    (CoreTaskPolicy, None, PENDING, ["PreventRedundantTransitions"]),
    (CoreTaskPolicy, RUNNING, FAILED, ["RetryFailedTasks", "ReleaseTaskConcurrencySlots"]),
    (CoreTaskPolicy, RUNNING, COMPLETED, ["CacheInsertion", "ReleaseTaskConcurrencySlots"]),
    (CoreTaskPolicy, COMPLETED, FAILED, ["HandleTaskTerminalStateTransitions"]),
    (
        CoreTaskPolicy,
        StateType.SCHEDULED,
        RUNNING,
        [
            "CacheRetrieval",
            "PreventRedundantTransitions",
            "SecureTaskConcurrencySlots",
            "WaitForScheduledTime",
            "RenameReruns",
            "UpdateFlowRunTrackerOnTasks",
        ],
    ),
]


@pytest.mark.parametrize("policy", DOCUMENTED)
def test_the_policies_list_what_is_documented_in_the_documented_order(policy: type[BaseOrchestrationPolicy]) -> None:
    assert [governing.__name__ for governing in policy.priority()] == DOCUMENTED[policy]


@pytest.mark.parametrize(("policy", "from_state", "to_state", "expected"), COMPILED)
def test_the_compiled_rules_are_those_of_the_transition_in_order(
    policy: type[BaseOrchestrationPolicy], from_state: StateType | None, to_state: StateType, expected: list[str]
) -> None:
    assert [rule.__name__ for rule in policy.compile_transition_rules(from_state, to_state)] == expected


@pytest.mark.parametrize(
    ("from_states", "to_states", "compiled"),
    [
        ({PENDING}, {RUNNING}, True),
        ([PENDING, None], [RUNNING], True),
        ({PENDING}, {FAILED}, False),
        ({None}, {RUNNING}, False),
        ({RUNNING}, {PENDING}, False),
        (set(), {RUNNING}, False),
    ],
)
def test_a_rule_is_compiled_when_both_of_its_lists_contain_the_pair(
    from_states: Types, to_states: Types, compiled: bool
) -> None:
    rule = acting(from_states=from_states, to_states=to_states)
    assert policy_of(rule).compile_transition_rules(PENDING, RUNNING) == ([rule] if compiled else [])


def test_a_first_transition_is_compiled_from_none() -> None:
    first, later = acting(from_states={None}), acting(from_states={PENDING})
    assert policy_of(first, later).compile_transition_rules(None, RUNNING) == [first]
    assert policy_of(first, later).compile_transition_rules(to_state=RUNNING) == [first]


def test_transforms_are_compiled_for_every_pair() -> None:
    transform = noting_transform("Book", [])
    for from_state in ALL_ORCHESTRATION_STATES:
        for to_state in ALL_ORCHESTRATION_STATES:
            assert policy_of(transform).compile_transition_rules(from_state, to_state) == [transform]


def test_the_state_sets_are_the_documented_ones() -> None:
    assert {*StateType, None} == ALL_ORCHESTRATION_STATES
    assert len(ALL_ORCHESTRATION_STATES) == 10
    assert {COMPLETED, FAILED, StateType.CANCELLED, StateType.CRASHED} == TERMINAL_STATES


async def test_each_kind_of_run_is_governed_by_its_own_policy() -> None:
    engine = Engine(flow_policy=policy_of(acting(name="Flow")), task_policy=policy_of(acting(name="Task")))
    flow, task = flow_run(), task_run()
    work = work_with(flow, task)
    assert (await propose(work, flow, State.running(), engine=engine)).rule_signature == ("Flow",)
    assert (await propose(work, task, State.running(), engine=engine)).rule_signature == ("Task",)


@pytest.mark.parametrize("make_run", [flow_run, task_run])
async def test_force_leaves_out_the_policy_but_not_the_bookkeeping(make_run: type) -> None:
    run = make_run()
    verdict = await propose(work_with(run), run, State.running(), force=True, engine=engine_with(acting(abort)))
    assert (verdict.status, verdict.rule_signature) == (SetStateStatus.ACCEPT, ())
    assert (run.state_type, run.run_count) == (RUNNING, 1)


async def test_a_forced_task_run_leaving_running_is_governed_by_the_release_alone() -> None:
    task = task_run()
    work = work_with(task)
    await propose(work, task, State.running(), force=True)
    verdict = await propose(work, task, State.failed(), force=True)
    assert verdict.rule_signature == verdict.finalization_signature == ("ReleaseTaskConcurrencySlots",)
