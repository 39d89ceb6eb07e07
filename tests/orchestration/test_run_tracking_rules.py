"""RenameReruns and UpdateFlowRunTrackerOnTasks."""

import pytest

from statewright import SetStateStatus, State, StateType
from statewright_worker.orchestration.errors import RuleFailed
from tests.orchestration.builders import (
    NOW,
    cached,
    flow_run,
    named,
    of_type,
    propose,
    put,
    seconds,
    task_run,
    types,
    work_with,
)


async def test_the_first_run_keeps_its_name() -> None:
    run = task_run()
    await propose(work_with(run), run, State.running())
    assert run.state_name == "Running"


async def test_a_run_after_awaiting_retry_is_retrying() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, State.running(), State.awaiting_retry(NOW))
    await propose(work, run, State.running())
    assert (run.state_name, run.run_count) == ("Retrying", 2)


@pytest.mark.parametrize("initial", [StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING])
async def test_any_other_repeated_run_is_rerunning(initial: StateType) -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, State.running(), of_type(initial))
    await propose(work, run, State.running())
    assert (run.state_name, run.run_count) == ("Rerunning", 2)


async def test_a_repeated_run_without_any_state_is_rerunning() -> None:
    run = task_run(run_count=1)
    await propose(work_with(run), run, State.running())
    assert run.state_name == "Rerunning"


async def test_awaiting_retry_is_told_by_its_name_alone() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, State.running(), named(State.pending(), "AwaitingRetry"))
    await propose(work, run, State.running())
    assert run.state_name == "Retrying"


async def test_a_name_of_the_producers_own_gives_way() -> None:
    run = task_run(run_count=1)
    await propose(work_with(run), run, named(State.running(), "Jogging"))
    assert run.state_name == "Rerunning"


async def test_a_first_run_keeps_a_name_of_the_producers_own() -> None:
    run = task_run()
    await propose(work_with(run), run, named(State.running(), "Jogging"))
    assert run.state_name == "Jogging"


async def test_flow_runs_and_forced_runs_are_not_renamed() -> None:
    flow, task = flow_run(run_count=1), task_run(run_count=1)
    work = work_with(flow, task)
    await propose(work, flow, State.running())
    await propose(work, task, State.running(), force=True)
    assert (flow.state_name, task.state_name) == ("Running", "Running")


# -- UpdateFlowRunTrackerOnTasks ---------------------------------------------------------------------------------------


async def test_a_task_run_notes_the_attempt_of_its_flow_run_in_which_it_runs() -> None:
    flow = flow_run(run_count=3)
    task = task_run(flow)
    work = work_with(flow, task)
    await propose(work, task, State.pending())
    assert task.flow_run_run_count == 0
    verdict = await propose(work, task, State.running())
    assert task.flow_run_run_count == 3
    assert "UpdateFlowRunTrackerOnTasks" in verdict.finalization_signature


async def test_a_task_run_without_a_flow_run_runs_untracked() -> None:
    task = task_run()
    assert (await propose(work_with(task), task, State.running())).status is SetStateStatus.ACCEPT
    assert task.flow_run_run_count == 0


async def test_a_task_run_whose_flow_run_is_gone_cannot_run() -> None:
    flow = flow_run()
    task = task_run(flow)
    work = work_with(task)
    with pytest.raises(RuleFailed, match=f"UpdateFlowRunTrackerOnTasks failed: .*{flow.id}"):
        await propose(work, task, State.running())
    assert (task.state, types(work, task)) == (None, [])


async def test_a_task_run_that_does_not_run_in_the_end_is_not_tracked() -> None:
    flow = flow_run(run_count=3)
    fresh, waiting = task_run(flow), task_run(flow)
    work = work_with(flow, fresh, waiting)
    cached(work, "key", State.completed())
    await put(work, waiting, State.scheduled(NOW + seconds(60)))
    await propose(work, fresh, State.running(cache_key="key"))
    await propose(work, waiting, State.running())
    assert (fresh.flow_run_run_count, waiting.flow_run_run_count) == (0, 0)


async def test_force_does_not_track() -> None:
    flow = flow_run(run_count=3)
    task = task_run(flow)
    await propose(work_with(flow, task), task, State.running(), force=True)
    assert task.flow_run_run_count == 0
