"""CacheRetrieval and CacheInsertion: a completed result is reused under its key until it expires."""

import pytest

from statewright import SetStateStatus, State, StateType, Verdict
from statewright_worker.orchestration import UnitOfWork
from tests.orchestration.builders import (
    IDS,
    NOW,
    cached,
    flow_run,
    limit_on,
    of_type,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

CACHED = (SetStateStatus.REJECT, "Retrieved state from cache", StateType.COMPLETED, "Cached")


def told(verdict: Verdict) -> tuple[object, ...]:
    """Return what the verdict tells, in short."""
    assert verdict.state is not None
    return verdict.status, verdict.reason, verdict.state.type, verdict.state.name


def keys(work: UnitOfWork) -> list[str]:
    """Return the keys under which this unit of work has cached something."""
    return [entry.cache_key for entry in work.cache_added]


async def test_running_with_a_cached_key_becomes_the_cached_state() -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed(data={"answer": 42}, message="done", cache_key="key"))
    verdict = await propose(work, run, State.running(cache_key="key"))
    assert told(verdict) == CACHED
    assert verdict.state is run.state is not None
    assert (run.state.data, run.state.message) == ({"answer": 42}, "done")
    assert verdict.rule_signature == ("CacheRetrieval",)


async def test_the_cached_state_is_written_as_a_new_state_of_the_run() -> None:
    run = task_run()
    work = work_with(run)
    original = cached(work, "key", State.completed(cache_key="key"))
    await propose(work, run, State.running(cache_key="key"), entered=NOW - seconds(9))
    assert run.state is not None
    assert run.state.id != original.id
    assert (run.state.timestamp, run.state.state_details.task_run_id) == (NOW, run.id)
    assert (original.name, original.state_details.task_run_id) == ("Completed", None)


async def test_a_run_served_from_the_cache_has_never_run() -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed())
    await propose(work, run, State.running(cache_key="key"))
    assert (run.run_count, run.start_time, run.end_time) == (0, None, None)


@pytest.mark.parametrize("cache_key", [None, "", "unknown"])
async def test_running_without_a_cached_key_runs(cache_key: str | None) -> None:
    run = task_run()
    work = work_with(run)
    for key in ("key", ""):
        cached(work, key, State.completed())
    verdict = await propose(work, run, State.running(cache_key=cache_key))
    assert verdict.status is SetStateStatus.ACCEPT
    assert run.state_type is StateType.RUNNING


@pytest.mark.parametrize(("left", "status"), [(1, "REJECT"), (0, "ACCEPT"), (-1, "ACCEPT")])
async def test_a_cached_state_serves_until_it_expires(left: float, status: str) -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed(), expiration=NOW + seconds(left))
    assert (await propose(work, run, State.running(cache_key="key"))).status == status


async def test_the_newest_cached_state_serves() -> None:
    run = task_run()
    work = work_with(run)
    for data in ("old", "new"):
        cached(work, "key", State.completed(data=data))
    await propose(work, run, State.running(cache_key="key"))
    assert run.state is not None
    assert run.state.data == "new"


@pytest.mark.parametrize("allowed", [0, 1])
async def test_a_cached_result_needs_no_slot(allowed: int) -> None:
    run = task_run(tags=("db",))
    limit = limit_on("db", allowed, *[task_run()] * allowed)
    work = work_with(run, limits=[limit])
    cached(work, "key", State.completed())
    assert told(await propose(work, run, State.running(cache_key="key"))) == CACHED
    assert run.id not in limit.holders


async def test_a_cached_result_does_not_wait_for_the_scheduled_time() -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed())
    await put(work, run, State.scheduled(NOW + seconds(60)))
    assert told(await propose(work, run, State.running(cache_key="key"))) == CACHED


async def test_the_cache_is_asked_only_by_running() -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed())
    assert (await propose(work, run, of_type(StateType.PENDING, cache_key="key"))).status is SetStateStatus.ACCEPT


async def test_force_runs_whatever_is_cached() -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed())
    await propose(work, run, State.running(cache_key="key"), force=True)
    assert run.state_type is StateType.RUNNING


async def test_flow_runs_do_not_ask_the_cache() -> None:
    run = flow_run()
    work = work_with(run)
    cached(work, "key", State.completed())
    await propose(work, run, State.running(cache_key="key"))
    assert run.state_type is StateType.RUNNING


# -- CacheInsertion ----------------------------------------------------------------------------------------------------


async def test_a_completed_state_is_cached_as_it_was_written() -> None:
    run = task_run()
    work = work_with(run)
    expiration = NOW + seconds(60)
    await propose(work, run, State.completed(data=1, cache_key="key", cache_expiration=expiration))
    (entry,) = work.cache_added
    assert (entry.cache_key, entry.cache_expiration) == ("key", expiration)
    assert entry.state is run.state is work.cached_state("key")
    assert entry.state.state_details.task_run_id == run.id


async def test_a_later_run_of_the_same_batch_is_served() -> None:
    first, second = task_run(), task_run()
    work = work_with(first, second)
    await propose(work, first, State.completed(data=[1, 2], cache_key="key"))
    assert told(await propose(work, second, State.running(cache_key="key"))) == CACHED
    assert second.state is not None
    assert second.state.data == [1, 2]


async def test_without_an_expiration_a_state_is_cached_for_ever() -> None:
    run = task_run()
    work = work_with(run)
    await propose(work, run, State.completed(cache_key="key"))
    assert [entry.cache_expiration for entry in work.cache_added] == [None]


@pytest.mark.parametrize("state_type", [t for t in StateType if t is not StateType.COMPLETED])
async def test_states_of_other_types_are_not_cached(state_type: StateType) -> None:
    run = task_run()
    work = work_with(run)
    await propose(work, run, of_type(state_type, cache_key="key"))
    assert run.state_type is state_type
    assert keys(work) == []


@pytest.mark.parametrize("cache_key", [None, ""])
async def test_a_completed_state_without_a_key_is_not_cached(cache_key: str | None) -> None:
    run = task_run()
    work = work_with(run)
    await propose(work, run, State.completed(cache_key=cache_key))
    assert keys(work) == []


async def test_an_aborted_completion_is_not_cached() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, State.failed())
    verdict = await propose(work, run, State.completed(cache_key="key"))
    assert verdict.status is SetStateStatus.ABORT
    assert keys(work) == []


async def test_a_delayed_completion_is_not_cached() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, State.scheduled(NOW + seconds(60)))
    verdict = await propose(work, run, State.completed(cache_key="key"))
    assert verdict.status is SetStateStatus.WAIT
    assert keys(work) == []


async def test_a_state_out_of_the_cache_is_not_cached_again() -> None:
    run = task_run()
    work = work_with(run)
    cached(work, "key", State.completed(cache_key="key"))
    await propose(work, run, State.running(cache_key="key"))
    assert keys(work) == []


async def test_a_forced_completion_is_not_cached() -> None:
    run = task_run()
    work = work_with(run)
    await propose(work, run, State.completed(cache_key="key"), force=True)
    assert keys(work) == []


async def test_the_completion_of_a_flow_run_is_not_cached() -> None:
    run = flow_run(deployment_id=IDS.new())
    work = work_with(run)
    await propose(work, run, State.completed(cache_key="key"))
    assert keys(work) == []
