"""WaitForScheduledTime, RetryFailedTasks and RetryFailedFlows."""

from datetime import UTC, datetime

import pytest

from statewright import InvalidRequest, RunPolicy, SetStateStatus, State, StateDetails, StateType
from statewright_worker.orchestration import UnitOfWork
from statewright_worker.orchestration.errors import RuleFailed
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, TaskRunRecord
from tests.orchestration.builders import (
    NOW,
    flow_run,
    of_type,
    propose,
    put,
    seconds,
    task_run,
    types,
    work_with,
)

MAKERS = pytest.mark.parametrize("make_run", [flow_run, task_run])


# -- WaitForScheduledTime ----------------------------------------------------------------------------------------------


@MAKERS
@pytest.mark.parametrize(("left", "delay"), [(90, 90), (90.999, 90), (1.5, 1), (1, 1)])
async def test_leaving_scheduled_waits_the_whole_seconds_that_are_left(make_run: type, left: float, delay: int) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(left)))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, delay)
    assert verdict.reason == "Scheduled time is in the future"
    assert types(work, run) == [StateType.SCHEDULED]


@MAKERS
@pytest.mark.parametrize("left", [0.999, 0, -1, -1e9])
async def test_less_than_a_second_left_is_no_delay(make_run: type, left: float) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(left)))
    assert (await propose(work, run, State.running())).status is SetStateStatus.ACCEPT


@MAKERS
async def test_who_is_scheduled_for_the_end_of_time_is_told_to_wait_ten_years(make_run: type) -> None:
    run = make_run()
    work = work_with(run)
    await put(work, run, State.scheduled(datetime(9999, 12, 31, tzinfo=UTC)))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 10 * 365 * 86_400)
    work.now += seconds(10 * 365 * 86_400)
    assert (await propose(work, run, State.running())).status is SetStateStatus.WAIT


async def test_the_clock_that_decides_is_the_databases_and_not_the_proposals() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(10)))
    ahead = State.running().model_copy(update={"timestamp": NOW + seconds(3600)})
    assert (await propose(work, run, ahead, entered=NOW + seconds(3600))).delay_seconds == 10
    work.now = NOW + seconds(10)
    behind = State.running().model_copy(update={"timestamp": NOW - seconds(3600)})
    assert (await propose(work, run, behind)).status is SetStateStatus.ACCEPT


async def test_a_retry_waits_for_its_time_too() -> None:
    run = task_run(policy=RunPolicy(retries=1, retry_delay=15))
    work = work_with(run)
    await put(work, run, State.running())
    await propose(work, run, State.failed())
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 15)


async def test_a_stored_state_that_is_scheduled_for_no_time_is_an_error() -> None:
    run = flow_run()
    work = work_with(run)
    await put(work, run, State.scheduled())
    assert run.state is not None
    run.state = run.state.model_copy(update={"state_details": StateDetails()})
    with pytest.raises(RuleFailed, match=r"WaitForScheduledTime failed: ValueError: .*without a scheduled time"):
        await propose(work, run, State.running())


# -- retries -----------------------------------------------------------------------------------------------------------


async def running(run: AnyRunRecord) -> UnitOfWork:
    """Return a world in which the run has entered RUNNING for the first time."""
    work = work_with(run)
    await put(work, run, State.running())
    return work


@MAKERS
@pytest.mark.parametrize("retries", [None, 0])
async def test_without_retries_a_failure_is_a_failure(make_run: type, retries: int | None) -> None:
    run = make_run(policy=RunPolicy(retries=retries, retry_delay=5))
    work = await running(run)
    assert (await propose(work, run, State.failed())).status is SetStateStatus.ACCEPT
    assert run.state_type is StateType.FAILED


@MAKERS
async def test_a_failure_with_retries_left_awaits_its_retry_instead(make_run: type) -> None:
    run = make_run(policy=RunPolicy(retries=1, retry_delay=5))
    work = await running(run)
    verdict = await propose(work, run, State.failed(message="oops", data={"code": 1}), entered=NOW - seconds(60))
    assert (verdict.status, verdict.reason) == (SetStateStatus.REJECT, "Retrying")
    assert verdict.state is run.state is not None
    assert (run.state.type, run.state.name) == (StateType.SCHEDULED, "AwaitingRetry")
    assert (run.state.message, run.state.data) == ("oops", {"code": 1})
    assert (run.state.timestamp, run.state.state_details.scheduled_time) == (NOW, NOW + seconds(5))


@MAKERS
async def test_a_run_is_retried_as_often_as_its_policy_says(make_run: type) -> None:
    run = make_run(policy=RunPolicy(retries=2))
    work = work_with(run)
    statuses = []
    for _ in range(3):
        await propose(work, run, State.running())
        statuses.append(str((await propose(work, run, State.failed())).status))
    assert statuses == ["REJECT", "REJECT", "ACCEPT"]
    assert (run.state_type, run.run_count) == (StateType.FAILED, 3)


@MAKERS
@pytest.mark.parametrize(
    ("delay", "expected"),
    [(None, [0, 0, 0]), (2.5, [2.5, 2.5, 2.5]), ((), [0, 0, 0]), ((1,), [1, 1, 1]), ((1, 20, 300), [1, 20, 300])],
)
async def test_the_delay_is_one_number_or_one_per_attempt(
    make_run: type, delay: float | tuple[float, ...] | None, expected: list[float]
) -> None:
    run = make_run(policy=RunPolicy(retries=4, retry_delay=delay))
    work = work_with(run)
    for attempt in [*expected, expected[-1]]:
        await put(work, run, State.running())
        await propose(work, run, State.failed())
        assert run.next_scheduled_start_time == NOW + seconds(attempt)


@MAKERS
@pytest.mark.parametrize("ending", [StateType.CRASHED, StateType.CANCELLED, StateType.COMPLETED, StateType.PAUSED])
async def test_only_failures_are_retried(make_run: type, ending: StateType) -> None:
    run = make_run(policy=RunPolicy(retries=1))
    work = await running(run)
    assert (await propose(work, run, of_type(ending))).status is SetStateStatus.ACCEPT
    assert run.state_type is ending


@MAKERS
@pytest.mark.parametrize("initial", [StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING])
async def test_a_failure_from_elsewhere_than_running_is_not_retried(make_run: type, initial: StateType) -> None:
    run = make_run(policy=RunPolicy(retries=1))
    work = work_with(run)
    await put(work, run, of_type(initial))
    await propose(work, run, State.failed())
    assert run.state_type is StateType.FAILED


@MAKERS
async def test_a_forced_failure_is_not_retried(make_run: type) -> None:
    run = make_run(policy=RunPolicy(retries=1))
    work = await running(run)
    await propose(work, run, State.failed(), force=True)
    assert run.state_type is StateType.FAILED


def test_a_retry_delay_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="retry_delay"):
        RunPolicy(retries=1, retry_delay=1e12)


# -- flow runs of older producers --------------------------------------------------------------------------------------


async def failed_tree() -> tuple[UnitOfWork, FlowRunRecord, list[TaskRunRecord]]:
    """Return a RUNNING flow run with one retry, two FAILED task runs and one that is COMPLETED."""
    flow = flow_run(policy=RunPolicy(retries=1, retry_delay=5))
    tasks = [task_run(flow) for _ in range(3)]
    work = work_with(flow, *tasks)
    await put(work, flow, State.running())
    for task, end in zip(tasks, (State.failed(), State.failed(), State.completed()), strict=True):
        await put(work, task, State.running(), end)
    return work, flow, tasks


@pytest.mark.parametrize("api_version", ["0.8.2", "0.8", "0.7.99"])
async def test_below_0_8_3_the_failed_task_runs_of_a_retried_flow_run_await_it(api_version: str) -> None:
    work, flow, (first, second, completed) = await failed_tree()
    await propose(work, flow, State.failed(message="oops"), api_version=api_version)
    for run in (flow, first, second):
        assert (run.state_name, run.next_scheduled_start_time) == ("AwaitingRetry", NOW + seconds(5))
    assert (first.run_count, second.run_count, flow.run_count) == (0, 0, 1)
    assert first.state is not None
    assert (first.state.message, first.state.state_details.task_run_id) == (None, first.id)
    assert (completed.state_type, completed.run_count) == (StateType.COMPLETED, 1)


@pytest.mark.parametrize("api_version", [None, "0.8.3", "0.8.10", "0.10.0", "1.0"])
async def test_from_0_8_3_on_the_task_runs_are_the_producers_business(api_version: str | None) -> None:
    work, flow, tasks = await failed_tree()
    verdict = await propose(work, flow, State.failed(), api_version=api_version)
    assert (verdict.status, flow.state_name) == (SetStateStatus.REJECT, "AwaitingRetry")
    assert [task.state_name for task in tasks] == ["Failed", "Failed", "Completed"]
    assert [task.run_count for task in tasks] == [1, 1, 1]


async def test_the_task_runs_of_other_flow_runs_are_left_alone() -> None:
    work, flow, _ = await failed_tree()
    other = flow_run()
    strangers = [task_run(other), task_run()]
    work.runs.update({other.id: other, **{run.id: run for run in strangers}})
    for stranger in strangers:
        await put(work, stranger, State.running(), State.failed())
    await propose(work, flow, State.failed(), api_version="0.8.2")
    assert [stranger.state_name for stranger in strangers] == ["Failed", "Failed"]


async def test_a_flow_run_without_retries_left_leaves_its_failed_task_runs_alone() -> None:
    work, flow, tasks = await failed_tree()
    flow.policy = RunPolicy(retries=0)
    verdict = await propose(work, flow, State.failed(), api_version="0.8.2")
    assert verdict.status is SetStateStatus.ACCEPT
    assert [task.state_name for task in tasks] == ["Failed", "Failed", "Completed"]


async def test_an_old_producers_retried_task_runs_can_be_retried_again() -> None:
    work, flow, (first, *_) = await failed_tree()
    first.policy = RunPolicy(retries=1)
    await propose(work, flow, State.failed(), api_version="0.8.2")
    work.now = NOW + seconds(5)
    assert (await propose(work, first, State.running())).status is SetStateStatus.ACCEPT
    assert (await propose(work, first, State.failed())).status is SetStateStatus.REJECT


async def test_an_old_producers_retry_signs_only_for_the_flow_run() -> None:
    work, flow, _ = await failed_tree()
    verdict = await propose(work, flow, State.failed(), api_version="0.8.2")
    assert verdict.rule_signature == ("RetryFailedFlows",)
