"""The bookkeeping of the global policies, transform by transform."""

from typing import Any

import pytest

from statewright import TERMINAL_STATES, ProposedState, RunPolicy, SetStateStatus, State, StateDetails, StateType
from statewright_worker.orchestration import UnitOfWork
from statewright_worker.orchestration.records import FlowRunRecord, TaskRunRecord
from tests.orchestration.builders import (
    IDS,
    NOW,
    dated,
    flow_run,
    history,
    limit_on,
    named,
    of_type,
    on_tag,
    propose,
    put,
    seconds,
    task_run,
    types,
    work_with,
)

MAKERS = pytest.mark.parametrize("make_run", [flow_run, task_run])
ENDINGS = pytest.mark.parametrize("ending", sorted(TERMINAL_STATES))
GOING_ON = sorted(set(StateType) - TERMINAL_STATES)


def at(seconds_ago: float, state: ProposedState) -> ProposedState:
    """Date the proposal that long before NOW."""
    return dated(state, NOW - seconds(seconds_ago))


# -- SetRunStateType, SetRunStateName, SetRunStateTimestamp ------------------------------------------------------------


@MAKERS
async def test_a_run_carries_its_states_type_name_and_timestamp(make_run: Any) -> None:
    run = make_run()
    await propose(work_with(run), run, named(at(60, State.pending()), "Submitting"))
    assert (run.state_type, run.state_name) == (StateType.PENDING, "Submitting")
    assert run.state_timestamp == NOW - seconds(60)


@MAKERS
async def test_after_a_rejection_it_carries_what_was_written_instead(make_run: Any) -> None:
    run = make_run(policy=RunPolicy(retries=1))
    work = work_with(run)
    await put(work, run, State.running())
    await propose(work, run, at(60, State.failed()))
    assert (run.state_type, run.state_name, run.state_timestamp) == (StateType.SCHEDULED, "AwaitingRetry", NOW)


@MAKERS
@pytest.mark.parametrize("earlier", [State.completed(), State.scheduled(NOW + seconds(60))])
async def test_when_nothing_is_written_nothing_is_booked(make_run: Any, earlier: ProposedState) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, at(60, State.running()), at(30, earlier))
    before = vars(run).copy()
    verdict = await propose(work, run, State.running())
    assert verdict.status in (SetStateStatus.ABORT, SetStateStatus.WAIT)
    assert vars(run) == before


# -- SetStartTime, SetEndTime ------------------------------------------------------------------------------------------


@MAKERS
async def test_the_start_time_is_that_of_the_first_running(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, at(90, State.pending()))
    assert run.start_time is None
    await put(work, run, at(60, State.running()), at(30, State.pending()), at(10, State.running()))
    assert run.start_time == NOW - seconds(60)


@MAKERS
@ENDINGS
async def test_the_end_time_is_that_of_the_terminal_state(make_run: Any, ending: StateType) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, at(60, State.running()), at(10, of_type(ending)))
    assert run.end_time == NOW - seconds(10)


@MAKERS
@ENDINGS
async def test_a_run_that_never_started_has_no_end_time(make_run: Any, ending: StateType) -> None:
    run = make_run()
    await put(work_with(run), run, State.pending(), of_type(ending))
    assert (run.state_type, run.start_time, run.end_time) == (ending, None, None)


@MAKERS
async def test_the_end_time_stays_while_one_terminal_state_follows_another(make_run: Any) -> None:
    run = make_run()
    await put(work_with(run), run, at(60, State.running()), at(20, State.failed()), at(10, State.completed()))
    assert run.end_time == NOW - seconds(20)


@MAKERS
@pytest.mark.parametrize("going_on", GOING_ON)
async def test_leaving_a_terminal_state_clears_the_end_time(make_run: Any, going_on: StateType) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, at(60, State.running()), at(20, State.failed()), at(10, of_type(going_on)))
    assert run.end_time is None
    await put(work, run, at(5, State.completed()))
    assert run.start_time == NOW - seconds(60)
    assert run.end_time == NOW - seconds(5)


# -- IncrementRunTime --------------------------------------------------------------------------------------------------


@MAKERS
async def test_the_run_time_adds_up_when_running_is_left(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, at(100, State.pending()), at(90, State.running()))
    assert run.total_run_time == seconds(0)
    await put(work, run, at(80, State.paused()), at(50, State.running()), at(49.5, State.completed()))
    assert run.total_run_time == seconds(10.5)


@MAKERS
async def test_the_run_time_includes_attempts_that_are_retried(make_run: Any) -> None:
    run = make_run(policy=RunPolicy(retries=1))
    work = work_with(run)
    await put(work, run, at(60, State.running()))
    await propose(work, run, at(20, State.failed()))
    assert run.total_run_time == seconds(60)  # the retry is dated now, whatever the failure said


@MAKERS
async def test_running_by_force_while_running_counts_what_has_passed(make_run: Any) -> None:
    run = make_run()
    await put(work_with(run), run, at(60, State.running()), at(20, State.running()))
    assert run.total_run_time == seconds(40)


@MAKERS
async def test_timestamps_that_run_backwards_subtract(make_run: Any) -> None:
    run = make_run()
    await put(work_with(run), run, at(20, State.running()), at(60, State.completed()))
    assert run.total_run_time == seconds(-40)


# -- SetExpectedStartTime, SetNextScheduledStartTime -------------------------------------------------------------------


@MAKERS
async def test_a_run_is_expected_when_its_first_state_was_made(make_run: Any) -> None:
    run = make_run()
    await put(work_with(run), run, at(60, State.pending()), at(10, State.scheduled(NOW + seconds(5))))
    assert run.expected_start_time == NOW - seconds(60)


@MAKERS
async def test_a_run_whose_first_state_is_scheduled_is_expected_at_that_time(make_run: Any) -> None:
    run = make_run()
    await put(work_with(run), run, State.scheduled(NOW + seconds(5)), State.awaiting_retry(NOW + seconds(60)))
    assert run.expected_start_time == NOW + seconds(5)


@MAKERS
async def test_the_next_scheduled_start_stands_while_the_run_is_scheduled(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(5)))
    assert run.next_scheduled_start_time == NOW + seconds(5)
    await put(work, run, State.awaiting_retry(NOW + seconds(60)))
    assert run.next_scheduled_start_time == NOW + seconds(60)


@MAKERS
@pytest.mark.parametrize("proposed", [t for t in StateType if t is not StateType.SCHEDULED])
async def test_leaving_scheduled_clears_the_next_scheduled_start(make_run: Any, proposed: StateType) -> None:
    run = make_run()
    await put(work_with(run), run, State.scheduled(NOW - seconds(5)), of_type(proposed))
    assert run.next_scheduled_start_time is None


# -- UpdateStateDetails ------------------------------------------------------------------------------------------------


async def test_a_flow_runs_state_refers_to_it() -> None:
    run = flow_run()
    await propose(work_with(run), run, State.running())
    assert run.state is not None
    assert run.state.state_details == StateDetails(flow_run_id=run.id)


async def test_a_task_runs_state_refers_to_it_and_its_flow_run() -> None:
    flow = flow_run()
    task = task_run(flow)
    await propose(work_with(flow, task), task, State.running())
    assert task.state is not None
    assert task.state.state_details == StateDetails(flow_run_id=flow.id, task_run_id=task.id)


async def test_what_a_producer_claims_about_whose_state_it_is_is_corrected() -> None:
    task = task_run()
    claimed = of_type(StateType.RUNNING, flow_run_id=IDS.new(), task_run_id=IDS.new(), pause_key="kept")
    await propose(work_with(task), task, claimed)
    assert task.state is not None
    assert task.state.state_details == StateDetails(task_run_id=task.id, pause_key="kept")


# -- UpdateSubflowParentTask, UpdateSubflowStateDetails ----------------------------------------------------------------


def family(**parent_fields: Any) -> tuple[UnitOfWork, TaskRunRecord, FlowRunRecord]:
    """Return a subflow with its parent task run, and the world that they live in."""
    flow = flow_run()
    parent = task_run(flow, **parent_fields)
    subflow = flow_run(parent_task_run_id=parent.id)
    return work_with(flow, parent, subflow), parent, subflow


async def test_a_subflows_state_refers_to_its_parent_task_run() -> None:
    work, parent, subflow = family()
    await propose(work, subflow, State.running())
    assert subflow.state is not None
    assert subflow.state.state_details == StateDetails(flow_run_id=subflow.id, task_run_id=parent.id)


@pytest.mark.parametrize("state_type", StateType)
async def test_the_parent_task_run_enters_every_type_that_its_subflow_enters(state_type: StateType) -> None:
    work, parent, subflow = family()
    await propose(work, subflow, of_type(state_type))
    assert parent.state_type is subflow.state_type is state_type


async def test_the_parents_state_is_a_copy_that_refers_to_the_subflow_and_is_dated_now() -> None:
    work, parent, subflow = family()
    await propose(work, subflow, named(at(60, State.completed(data=[1], message="done")), "Finished"))
    assert parent.state is not None
    assert subflow.state is not None
    assert (parent.state.name, parent.state.data, parent.state.message) == ("Finished", [1], "done")
    assert parent.state.id != subflow.state.id
    assert (parent.state.timestamp, subflow.state.timestamp) == (NOW, NOW - seconds(60))
    assert parent.state.state_details == StateDetails(
        flow_run_id=parent.flow_run_id, task_run_id=parent.id, child_flow_run_id=subflow.id
    )
    assert subflow.state.state_details.child_flow_run_id is None


async def test_the_parent_keeps_its_own_books() -> None:
    work, parent, subflow = family()
    await put(work, parent, at(90, State.pending()))
    await propose(work, subflow, at(60, State.running()))
    assert (parent.run_count, parent.start_time, parent.expected_start_time) == (1, NOW, NOW - seconds(90))
    work.now = NOW + seconds(30)
    await propose(work, subflow, at(0, State.completed()))
    assert (parent.total_run_time, subflow.total_run_time) == (seconds(30), seconds(60))
    assert (parent.end_time, subflow.end_time) == (NOW + seconds(30), NOW)


async def test_the_subflows_change_comes_before_its_parents() -> None:
    work, parent, subflow = family()
    await propose(work, subflow, State.running())
    await propose(work, subflow, State.completed())
    assert [change.run for change in work.state_changes] == [subflow, parent, subflow, parent]


async def test_the_parent_follows_its_subflow_under_the_minimal_policy() -> None:
    work, parent, subflow = family(tags=("db",), policy=RunPolicy(retries=5), run_count=1)
    work.limits[on_tag("db")] = limit_on("db", 0)
    await put(work, parent, State.completed())
    await propose(work, subflow, State.running())
    assert (parent.state_type, parent.state_name) == (StateType.RUNNING, "Running")
    await propose(work, subflow, State.failed())
    assert parent.state_type is StateType.FAILED


async def test_the_parent_of_a_retried_subflow_awaits_the_retry_with_it() -> None:
    work, parent, subflow = family()
    subflow.policy = RunPolicy(retries=1, retry_delay=5)
    await propose(work, subflow, State.running())
    await propose(work, subflow, State.failed())
    assert parent.state_name == subflow.state_name == "AwaitingRetry"
    assert parent.next_scheduled_start_time == NOW + seconds(5)


async def test_a_subflow_that_stays_where_it_is_leaves_its_parent_where_it_is() -> None:
    work, parent, subflow = family()
    await propose(work, subflow, State.running())
    await put(work, parent, State.paused())
    assert (await propose(work, subflow, State.pending())).status is SetStateStatus.ABORT
    assert parent.state_type is StateType.PAUSED


async def test_a_forced_subflow_takes_its_parent_along() -> None:
    work, parent, subflow = family()
    await propose(work, subflow, State.crashed(), force=True)
    assert parent.state_type is StateType.CRASHED


async def test_the_parents_flow_run_is_not_touched() -> None:
    work, parent, subflow = family()
    await propose(work, subflow, State.running())
    flow = work.run(parent.flow_run_id)
    assert flow is not None
    assert (flow.state, history(work, flow)) == (None, [])


async def test_a_parents_change_does_not_reach_its_subflow() -> None:
    work, parent, subflow = family()
    await propose(work, parent, State.cancelled())
    assert types(work, parent) == [StateType.CANCELLED]
    assert subflow.state is None


# -- IncrementFlowRunCount, IncrementTaskRunCount, RemoveResumingIndicator ---------------------------------------------


@MAKERS
async def test_the_run_count_counts_the_entries_into_running(make_run: Any) -> None:
    run = make_run()
    work = work_with(run)
    counts = []
    for state in (State.pending(), State.running(), State.paused(), State.running(), State.running(), State.failed()):
        await put(work, run, state)
        counts.append(run.run_count)
    assert counts == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("api_version", "counted", "still_resuming"),
    [(None, 0, False), ("0.8.4", 0, False), ("0.10.0", 0, False), ("0.8.3", 1, True), ("0.8", 1, True)],
)
async def test_resuming_is_not_counted_by_producers_that_know_of_it(
    api_version: str | None, counted: int, still_resuming: bool
) -> None:
    run = flow_run(policy=RunPolicy(resuming=True))
    work = work_with(run)
    await put(work, run, State.paused())
    await propose(work, run, State.running(), api_version=api_version)
    assert (run.run_count, run.policy.resuming) == (counted, still_resuming)


async def test_the_run_after_a_resumed_one_is_counted_again() -> None:
    run = flow_run(policy=RunPolicy(resuming=True))
    await put(work_with(run), run, State.running(), State.paused(), State.running())
    assert run.run_count == 1


@ENDINGS
async def test_an_end_clears_the_mark_of_resuming(ending: StateType) -> None:
    run = flow_run(policy=RunPolicy(resuming=True))
    await put(work_with(run), run, of_type(ending))
    assert not run.policy.resuming


@pytest.mark.parametrize("state_type", [t for t in GOING_ON if t is not StateType.RUNNING])
async def test_other_states_keep_the_mark_of_resuming(state_type: StateType) -> None:
    run = flow_run(policy=RunPolicy(resuming=True))
    await put(work_with(run), run, of_type(state_type))
    assert run.policy.resuming


async def test_clearing_the_mark_of_resuming_leaves_the_rest_of_the_policy() -> None:
    policy = RunPolicy(retries=3, retry_delay=(1, 2), pause_keys=frozenset({"lunch"}), resuming=True)
    run = flow_run(policy=policy)
    await put(work_with(run), run, State.running())
    assert run.policy == policy.model_copy(update={"resuming": False})
    assert policy.resuming


async def test_a_proposal_that_writes_nothing_keeps_the_mark_of_resuming() -> None:
    run = flow_run(policy=RunPolicy(resuming=True))
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(60)))
    await propose(work, run, State.running())
    assert (run.run_count, run.policy.resuming) == (0, True)


async def test_task_runs_know_no_resuming() -> None:
    run = task_run(policy=RunPolicy(resuming=True))
    await put(work_with(run), run, State.running())
    assert (run.run_count, run.policy.resuming) == (1, True)
