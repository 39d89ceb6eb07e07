"""HandleTaskTerminalStateTransitions, HandleFlowTerminalStateTransitions and PreventRedundantTransitions."""

import pytest

from statewright import ProposedState, RunPolicy, SetStateStatus, State, StateType
from statewright_worker.orchestration import UnitOfWork
from statewright_worker.orchestration.records import FlowRunRecord, TaskRunRecord
from tests.orchestration.builders import (
    IDS,
    NOW,
    flow_run,
    limit_on,
    named,
    of_type,
    on_tag,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

TERMINAL = pytest.mark.parametrize(
    "terminal", [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED]
)
REPEATABLE = pytest.mark.parametrize("terminal", [StateType.FAILED, StateType.CANCELLED, StateType.CRASHED])
TERMINATED = (SetStateStatus.ABORT, "This run has already terminated.")


async def ended_task(terminal: StateType, **fields: object) -> tuple[UnitOfWork, FlowRunRecord, TaskRunRecord]:
    """Return a task run that ran twice in its flow run's first attempt and ended in the type."""
    flow = flow_run()
    task = task_run(flow, **fields)
    work = work_with(flow, task)
    await propose(work, flow, State.running())
    await propose(work, task, State.running())
    await put(work, task, State.running(), of_type(terminal))
    assert (task.run_count, task.flow_run_run_count) == (2, 1)
    return work, flow, task


async def rerun(work: UnitOfWork, flow: FlowRunRecord) -> None:
    """Let the flow run's second attempt begin."""
    await put(work, flow, State.awaiting_retry(NOW), State.running())


@TERMINAL
async def test_a_task_run_that_has_ended_does_not_run_again_in_the_same_attempt(terminal: StateType) -> None:
    work, _, task = await ended_task(terminal)
    verdict = await propose(work, task, State.running())
    assert (verdict.status, verdict.reason) == TERMINATED
    assert (task.state_type, task.run_count) == (terminal, 2)


@REPEATABLE
async def test_an_ended_task_run_runs_again_when_its_flow_run_does(terminal: StateType) -> None:
    work, flow, task = await ended_task(terminal)
    await rerun(work, flow)
    verdict = await propose(work, task, State.running())
    assert verdict.status is SetStateStatus.ACCEPT
    assert (task.state_type, task.state_name) == (StateType.RUNNING, "Retrying")
    assert (task.run_count, task.flow_run_run_count) == (1, 2)
    assert task.end_time is None


async def test_a_completed_task_run_does_not_run_again_even_when_its_flow_run_does() -> None:
    work, flow, task = await ended_task(StateType.COMPLETED)
    await rerun(work, flow)
    verdict = await propose(work, task, State.running())
    assert (verdict.status, verdict.reason) == TERMINATED


@pytest.mark.parametrize("proposed", [t for t in StateType if t is not StateType.RUNNING])
async def test_an_ended_task_run_of_a_rerun_can_enter_nothing_but_running(proposed: StateType) -> None:
    work, flow, task = await ended_task(StateType.FAILED)
    await rerun(work, flow)
    verdict = await propose(work, task, of_type(proposed))
    assert (verdict.status, verdict.reason) == TERMINATED
    assert (task.state_type, task.run_count) == (StateType.FAILED, 2)


async def test_a_task_run_runs_again_once_per_attempt_of_its_flow_run() -> None:
    work, flow, task = await ended_task(StateType.FAILED)
    await rerun(work, flow)
    await propose(work, task, State.running())
    await propose(work, task, State.failed())
    verdict = await propose(work, task, State.running())
    assert (verdict.status, verdict.reason) == TERMINATED


async def test_a_task_runs_own_retries_count_anew_in_a_rerun() -> None:
    work, flow, task = await ended_task(StateType.FAILED, policy=RunPolicy(retries=1))
    await rerun(work, flow)
    await propose(work, task, State.running())
    verdict = await propose(work, task, State.failed())
    assert (verdict.status, task.state_name) == (SetStateStatus.REJECT, "AwaitingRetry")


@pytest.mark.parametrize("task", [task_run(), task_run(flow_run())])
async def test_an_ended_task_run_without_a_known_flow_run_stays_ended(task: TaskRunRecord) -> None:
    work = work_with(task)
    await put(work, task, State.failed())
    verdict = await propose(work, task, State.running())
    assert (verdict.status, verdict.reason) == TERMINATED


@pytest.mark.parametrize(("allowed", "status"), [(1, "WAIT"), (0, "ABORT")])
async def test_the_run_count_is_restored_when_the_rerun_gets_no_slot(allowed: int, status: str) -> None:
    work, flow, task = await ended_task(StateType.FAILED, tags=("db",))
    work.limits[on_tag("db")] = limit_on("db", allowed, *[task_run()] * allowed)
    await rerun(work, flow)
    verdict = await propose(work, task, State.running())
    assert verdict.status == status
    assert verdict.reason != TERMINATED[1]
    assert (task.run_count, task.flow_run_run_count, task.state_type) == (2, 1, StateType.FAILED)


# -- flow runs ---------------------------------------------------------------------------------------------------------


async def ended_flow(terminal: StateType, *, deployed: bool) -> tuple[UnitOfWork, FlowRunRecord]:
    """Return a flow run that has ended in the type."""
    run = flow_run(deployment_id=IDS.new() if deployed else None)
    work = work_with(run)
    await put(work, run, State.running(), of_type(terminal))
    return work, run


@TERMINAL
async def test_an_ended_flow_run_with_a_deployment_can_await_a_retry(terminal: StateType) -> None:
    work, run = await ended_flow(terminal, deployed=True)
    verdict = await propose(work, run, State.awaiting_retry(NOW + seconds(5)))
    assert verdict.status is SetStateStatus.ACCEPT
    assert (run.state_name, run.next_scheduled_start_time, run.end_time) == ("AwaitingRetry", NOW + seconds(5), None)


@TERMINAL
async def test_an_ended_flow_run_without_a_deployment_cannot_be_restarted(terminal: StateType) -> None:
    work, run = await ended_flow(terminal, deployed=False)
    verdict = await propose(work, run, State.awaiting_retry(NOW))
    assert verdict.status is SetStateStatus.ABORT
    assert verdict.reason == "Cannot restart a run without an associated deployment."
    assert run.state_type is terminal


@pytest.mark.parametrize("deployed", [True, False])
@pytest.mark.parametrize(
    "proposed",
    [
        State.running(),
        State.failed(),
        State.scheduled(),
        State.scheduled(name="Rescheduled"),
        named(State.running(), "AwaitingRetry"),
    ],
)
async def test_an_ended_flow_run_can_enter_nothing_else(proposed: ProposedState, deployed: bool) -> None:
    work, run = await ended_flow(StateType.FAILED, deployed=deployed)
    verdict = await propose(work, run, proposed)
    assert (verdict.status, verdict.reason) == TERMINATED
    assert run.state_type is StateType.FAILED


# -- backwards and nowhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "proposed"),
    [
        ("SCHEDULED", "SCHEDULED"),
        ("PENDING", "SCHEDULED"),
        ("PENDING", "PENDING"),
        ("RUNNING", "SCHEDULED"),
        ("RUNNING", "PENDING"),
        ("RUNNING", "RUNNING"),
    ],
)
async def test_going_backwards_or_nowhere_is_aborted_with_both_types_named(current: str, proposed: str) -> None:
    for run in (flow_run(), task_run()):
        work = work_with(run)
        await put(work, run, of_type(StateType(current)))
        verdict = await propose(work, run, of_type(StateType(proposed)))
        assert verdict.status is SetStateStatus.ABORT
        assert verdict.reason == f"This run cannot transition to the {proposed} state from the {current} state."
        assert "PreventRedundantTransitions" in verdict.rule_signature


async def test_a_run_goes_forward_step_by_step() -> None:
    for run in (flow_run(), task_run()):
        work = work_with(run)
        for state in (State.scheduled(), State.pending(), State.running(), State.completed()):
            assert (await propose(work, run, state)).status is SetStateStatus.ACCEPT


async def test_a_redundant_transition_is_aborted_before_its_scheduled_time_is_looked_at() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(60)))
    assert (await propose(work, run, State.scheduled())).status is SetStateStatus.ABORT
