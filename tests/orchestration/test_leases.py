"""Leases in the unit of work: whatever lets a run enter or leave RUNNING begins and ends them, and can be undone."""

from copy import deepcopy
from typing import Any
from uuid import UUID

from statewright import ProposedState, State, StateType
from statewright.ids import id_of_executor
from statewright_worker.orchestration import UnitOfWork
from statewright_worker.orchestration.records import LeaseRecord, TimerKind, TimerName
from tests.orchestration.builders import (
    NOW,
    flow_run,
    history,
    limit_on,
    of_type,
    propose,
    put,
    seconds,
    task_run,
    work_with,
    written,
)


def leased(lease: float = 30, **details: Any) -> ProposedState:
    return of_type(StateType.RUNNING, lease=lease, **details)


def changes(work: UnitOfWork) -> tuple[object, ...]:
    """Return all that a batch writes of leases and timers."""
    waiting, leases = work.waiting, work.leases
    return deepcopy((leases.known, leases.changed, waiting.timers_set, waiting.timers_cleared))


def on_run(run_id: UUID) -> TimerName:
    return TimerName(TimerKind.LEASE, run_id)


async def test_running_with_a_lease_begins_one_and_sets_its_timer() -> None:
    run = task_run()
    work = work_with(run)
    verdict = await propose(work, run, leased())
    assert verdict.state is not None
    ends = NOW + seconds(30)
    assert work.leases.changed == {run.id: LeaseRecord(run.id, verdict.state.id, 30, ends)}
    assert {name: timer.due for name, timer in work.waiting.timers_set.items()} == {on_run(run.id): ends}


async def test_without_leases_nothing_is_noted() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, State.pending(), State.running(), State.completed())
    assert changes(work) == changes(work_with())


async def test_whatever_ends_running_ends_its_lease() -> None:
    for state in (State.completed(), State.crashed(), State.running(), State.awaiting_retry(NOW)):
        run = task_run()
        work = work_with(run)
        await put(work, run, leased(), state)
        assert work.leases.changed == {run.id: None}
        assert work.leases.known == {}
        assert (work.waiting.timers_set, work.waiting.timers_cleared) == ({}, {on_run(run.id)})


async def test_a_new_lease_takes_the_place_of_the_old_one() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, leased(), leased(5))
    assert run.state is not None
    assert work.leases.known == {run.id: LeaseRecord(run.id, run.state.id, 5, NOW + seconds(5))}
    assert work.waiting.timers_set[on_run(run.id)].due == NOW + seconds(5)


async def test_an_executor_has_one_timer_for_all_its_runs() -> None:
    runs = [task_run() for _ in range(3)]
    work = work_with(*runs)
    for run in runs:
        await put(work, run, leased(executor="e"))
    assert set(work.waiting.timers_set) == {TimerName(TimerKind.EXECUTOR, id_of_executor("e", 0))}
    assert work.waiting.timers_cleared == set()
    assert [lease and lease.executor for lease in work.leases.changed.values()] == ["e"] * 3


async def test_an_executor_that_takes_a_leased_run_over_leaves_no_timer_behind() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, leased(), leased(executor="e"))
    assert set(work.waiting.timers_set) == {TimerName(TimerKind.EXECUTOR, id_of_executor("e", 0))}
    assert work.waiting.timers_cleared == {on_run(run.id)}


async def test_rolling_back_restores_leases_and_timers() -> None:
    kept, fresh = task_run(), task_run()
    work = work_with(kept, fresh)
    await put(work, kept, leased())
    before = changes(work)
    work.begin()
    for run, state in ((kept, State.completed()), (fresh, leased(executor="e")), (fresh, State.failed())):
        found = work.run(run.id)
        assert found is not None
        work.write_state(found, written(state))
    assert changes(work) != before
    work.roll_back()
    assert changes(work) == before


async def test_only_running_is_leased() -> None:
    run = task_run()
    work = work_with(run)
    await put(work, run, of_type(StateType.PENDING, lease=30))
    assert work.leases.known == {}
    assert work.waiting.timers_set == {}


async def test_the_parent_task_run_of_a_leased_subflow_has_no_lease() -> None:
    parent = task_run()
    subflow = flow_run(parent_task_run_id=parent.id)
    work = work_with(parent, subflow)
    await propose(work, subflow, leased(executor="e"))
    assert set(work.leases.changed) == {subflow.id}
    [mirrored] = history(work, parent)
    assert (mirrored.state_details.lease, mirrored.state_details.executor) == (None, None)


async def test_a_run_that_asks_for_no_lease_gets_the_shortest_of_its_limits() -> None:
    run, own = (task_run(tags=("a", "b", "c")) for _ in range(2))
    limits = [limit_on("a", 5), limit_on("b", 5), limit_on("c", 5)]
    limits[0].lease_seconds, limits[1].lease_seconds = 60, 20
    work = work_with(run, own, limits=limits)
    verdicts = [await propose(work, run, State.running()), await propose(work, own, leased(90))]
    assert [verdict.state and verdict.state.state_details.lease for verdict in verdicts] == [20, 90]
    assert {lease and lease.seconds for lease in work.leases.changed.values()} == {20, 90}
