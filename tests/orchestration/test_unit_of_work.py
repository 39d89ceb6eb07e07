"""The unit of work: what a proposal did can be kept or undone as a whole, and the next one sees what was kept."""

from copy import copy

import pytest

from statewright import State, StateType
from statewright_worker.orchestration import Proposal, UnitOfWork
from statewright_worker.orchestration.records import AnyRunRecord, CacheEntry, FlowRunRecord, LimitRecord
from tests.orchestration.builders import (
    CORE,
    IDS,
    NOW,
    cached,
    flow_run,
    limit_on,
    on_tag,
    propose,
    seconds,
    task_run,
    types,
    work_with,
    written,
)


def slots(work: UnitOfWork, limit: LimitRecord) -> tuple[object, ...]:
    """Return all that is known of the limit's slots."""
    return limit.slots_held, limit.holders.copy(), work.slots_taken.copy(), work.slots_released.copy()


def found(work: UnitOfWork, run: FlowRunRecord) -> FlowRunRecord:
    """Return the run as a rule gets it."""
    record = work.run(run.id)
    assert isinstance(record, FlowRunRecord)
    return record


# -- runs and states ---------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_id() -> None:
    run = flow_run()
    work = work_with(run)
    assert work.run(run.id) is run
    assert work.run(IDS.new()) is None
    assert work.run(None) is None


def test_rolling_back_restores_every_field_of_every_run() -> None:
    first, second = flow_run(), flow_run()
    work = work_with(first, second)
    before = copy(first), copy(second)
    work.begin()
    found(work, first).run_count = 7
    found(work, second).tags = ("changed",)
    found(work, second).start_time = NOW
    work.roll_back()
    assert (first, second) == before
    assert work.changed_runs == {}


def test_rolling_back_takes_written_states_back() -> None:
    run = flow_run()
    work = work_with(run)
    work.begin()
    work.write_state(found(work, run), written(State.pending()))
    work.commit()
    pending = run.state
    work.begin()
    work.write_state(found(work, run), written(State.running()))
    work.write_state(found(work, run), written(State.completed()))
    work.roll_back()
    assert run.state is pending
    assert types(work, run) == [StateType.PENDING]
    assert run.state_count == 1


def test_rolling_back_takes_a_created_run_and_its_first_state_back() -> None:
    parent, run = task_run(), flow_run()
    work = work_with(parent)
    work.begin()
    work.create_run(run, {"team": "data"})
    work.write_state(found(work, run), written(State.pending()))
    work.roll_back()
    assert (set(work.runs), work.created_runs, work.labels, work.state_changes) == ({parent.id}, {}, {}, [])
    work.begin()
    work.create_run(run, {"team": "data"})
    work.commit()
    work.begin()
    work.roll_back()
    assert work.created_runs == {run.id: run}
    assert work.labels == {run.id: {"team": "data"}}


def test_a_run_is_described_anew_until_that_is_rolled_back() -> None:
    run = flow_run(tags=("a",))
    work = work_with(run)
    for undo in (True, False):
        work.begin()
        found(work, run).name, found(work, run).tags = "new", ("b",)
        (work.roll_back if undo else work.commit)()
        assert (run.name, run.tags) == (("a flow run", ("a",)) if undo else ("new", ("b",)))
        assert work.redescribed_runs == set(work.changed_runs) == (set() if undo else {run.id})
    # What was kept before stays when a later one is rolled back.
    work.begin()
    found(work, run).name = "newest"
    work.roll_back()
    assert (run.name, work.redescribed_runs) == ("new", {run.id})


def test_what_was_committed_outlives_a_later_roll_back() -> None:
    run = flow_run()
    work = work_with(run)
    work.begin()
    found(work, run).run_count = 1
    work.commit()
    work.begin()
    found(work, run).run_count = 2
    work.roll_back()
    assert run.run_count == 1
    assert set(work.changed_runs) == {run.id}


def test_rolling_back_twice_undoes_nothing_more() -> None:
    run = flow_run()
    work = work_with(run)
    work.begin()
    work.write_state(found(work, run), written(State.pending()))
    work.commit()
    work.roll_back()
    assert run.state_count == 1
    assert types(work, run) == [StateType.PENDING]


def test_only_runs_that_differ_count_as_changed() -> None:
    read, changed = flow_run(), flow_run()
    work = work_with(read, changed)
    work.begin()
    found(work, read)
    found(work, changed).run_count += 1
    work.commit()
    assert list(work.changed_runs) == [changed.id]


def test_states_are_numbered_and_know_the_one_before() -> None:
    run, other = flow_run(), flow_run()
    work = work_with(run, other)
    first = work.write_state(run, written(State.pending()))
    work.write_state(other, written(State.pending()))
    second = work.write_state(run, written(State.running()))
    mine = [change for change in work.state_changes if change.run is run]
    assert [(change.ordinal, change.previous, change.state) for change in mine] == [
        (1, None, first),
        (2, first, second),
    ]


def test_the_failed_task_runs_of_a_flow_run_are_returned_by_id() -> None:
    flow, other = flow_run(), flow_run()
    tasks = [task_run(flow, state_type=StateType.FAILED) for _ in range(3)]
    strangers: list[AnyRunRecord] = [
        task_run(flow, state_type=StateType.CRASHED),
        task_run(flow, state_type=StateType.RUNNING),
        task_run(flow),
        task_run(other, state_type=StateType.FAILED),
        task_run(state_type=StateType.FAILED),
        flow_run(state_type=StateType.FAILED),
    ]
    work = work_with(*reversed(tasks), flow, other)
    work.runs.update({run.id: run for run in strangers})
    assert work.failed_task_runs(flow.id) == tasks


def test_changes_to_failed_task_runs_are_undone_too() -> None:
    flow = flow_run()
    task = task_run(flow, state_type=StateType.FAILED, run_count=3)
    work = work_with(flow, task)
    work.begin()
    work.failed_task_runs(flow.id)[0].run_count = 0
    work.roll_back()
    assert task.run_count == 3


async def test_a_proposal_sees_what_the_one_before_it_did() -> None:
    flow = flow_run()
    task = task_run(flow)
    work = work_with(flow, task)
    await propose(work, flow, State.running())
    await propose(work, task, State.running())
    assert task.flow_run_run_count == 1


# -- slots -------------------------------------------------------------------------------------------------------------


def test_the_limits_on_tags_are_each_returned_once_in_ascending_order_of_the_tag() -> None:
    a, b, capital = limit_on("a", 1), limit_on("b", 1), limit_on("Z", 1)
    work = work_with(limits=[b, a, capital, limit_on("c", 1)])
    assert work.limits_on(["b", "unlimited", "a", "Z", "b"]) == [capital, a, b]
    assert work.limits_on([]) == []


def test_a_slot_is_taken_once() -> None:
    run, limit = task_run(), limit_on("db", 2)
    work = work_with(run, limits=[limit])
    assert work.take_slot(limit, run.id)
    assert not work.take_slot(limit, run.id)
    assert slots(work, limit) == (1, {run.id}, {(limit.id, run.id)}, set())


def test_a_slot_that_is_not_held_cannot_be_released() -> None:
    holder, run = task_run(), task_run()
    limit = limit_on("db", 2, holder)
    work = work_with(holder, run, limits=[limit])
    work.release_slot(limit, run.id)
    assert slots(work, limit) == (1, {holder.id}, set(), set())


def test_taking_and_releasing_in_one_batch_leaves_nothing_to_write() -> None:
    run, limit = task_run(), limit_on("db", 1)
    work = work_with(run, limits=[limit])
    work.take_slot(limit, run.id)
    work.release_slot(limit, run.id)
    assert slots(work, limit) == (0, set(), set(), set())


def test_releasing_and_taking_again_in_one_batch_leaves_nothing_to_write() -> None:
    run = task_run()
    limit = limit_on("db", 1, run)
    work = work_with(run, limits=[limit])
    work.release_slot(limit, run.id)
    assert slots(work, limit) == (0, set(), set(), {(limit.id, run.id)})
    assert work.take_slot(limit, run.id)
    assert slots(work, limit) == (1, {run.id}, set(), set())


@pytest.mark.parametrize("held", [True, False])
def test_rolling_back_restores_the_slots(held: bool) -> None:
    run = task_run()
    limit = limit_on("db", 1, *[run] * held)
    work = work_with(run, limits=[limit])
    before = slots(work, limit)
    work.begin()
    for _ in range(2):
        work.release_slot(limit, run.id)
        work.take_slot(limit, run.id)
    if held:
        work.release_slot(limit, run.id)
    work.roll_back()
    assert slots(work, limit) == before


@pytest.mark.parametrize("held", [True, False])
def test_rolling_back_restores_the_slots_that_an_earlier_proposal_moved(held: bool) -> None:
    run = task_run()
    limit = limit_on("db", 1, *[run] * held)
    work = work_with(run, limits=[limit])
    work.begin()
    (work.release_slot if held else work.take_slot)(limit, run.id)
    work.commit()
    between = slots(work, limit)
    work.begin()
    (work.take_slot if held else work.release_slot)(limit, run.id)
    work.roll_back()
    assert slots(work, limit) == between


@pytest.mark.parametrize(("limit", "room"), [(limit_on("db", 2), True), (limit_on("db", 1), False)])
def test_a_limit_has_room_while_fewer_hold_it_than_it_allows(limit: LimitRecord, room: bool) -> None:
    limit.slots_held = 1
    assert limit.has_room_for(IDS.new()) is room


def test_a_run_that_holds_a_slot_has_room_even_when_the_limit_was_lowered() -> None:
    run = task_run()
    limit = limit_on("db", 0, run)
    assert limit.has_room_for(run.id)


# -- limits that are set -----------------------------------------------------------------------------------------------


def known_limits(work: UnitOfWork) -> tuple[object, ...]:
    """Return all that is known of limits, and of what is to be written of them."""
    return (
        {name: (limit.id, limit.concurrency_limit, limit.slots_held) for name, limit in work.limits.items()},
        work.limit_ids.copy(),
        {limit_id: limit.concurrency_limit for limit_id, limit in work.limits_set.items()},
        work.limits_removed.copy(),
        work.slots_taken.copy(),
        work.slots_released.copy(),
    )


def test_a_limit_that_is_changed_keeps_its_holders() -> None:
    run, limit = task_run(), limit_on("db", 1)
    work = work_with(run, limits=[limit])
    work.take_slot(limit, run.id)
    work.set_limit(on_tag("db"), 5)
    [changed] = work.limits_on(["db"])
    assert (changed.id, changed.concurrency_limit, changed.holders) == (limit.id, 5, {run.id})
    assert work.limits_set == {limit.id: changed}
    assert work.slots_taken == {(limit.id, run.id)}


def test_a_limit_that_is_new_has_the_id_that_was_kept_for_it() -> None:
    work = work_with()
    work.limit_ids[on_tag("db")] = 77
    work.set_limit(on_tag("db"), 0)
    [limit] = work.limits_on(["db"])
    assert (limit.id, limit.concurrency_limit, limit.slots_held) == (77, 0, 0)
    assert work.limits_set == {77: limit}


def test_removing_a_limit_frees_its_slots() -> None:
    holder, run = task_run(), task_run()
    limit = limit_on("db", 2, holder)
    work = work_with(holder, run, limits=[limit])
    work.take_slot(limit, run.id)
    work.remove_limit(on_tag("db"))
    assert work.limits_on(["db"]) == []
    assert (work.limits_removed, work.limits_set) == ({limit.id}, {})
    assert (work.slots_released, work.slots_taken) == ({(limit.id, holder.id)}, set())


def test_a_limit_that_does_not_exist_is_removed_by_doing_nothing() -> None:
    work = work_with()
    work.remove_limit(on_tag("db"))
    assert known_limits(work) == known_limits(work_with())


def test_a_limit_that_is_removed_and_set_again_is_the_same_one_without_holders() -> None:
    holder = task_run()
    limit = limit_on("db", 2, holder)
    work = work_with(holder, limits=[limit])
    work.remove_limit(on_tag("db"))
    work.set_limit(on_tag("db"), 1)
    [again] = work.limits_on(["db"])
    assert (again.id, again.slots_held, again.holders) == (limit.id, 0, set())
    assert (work.limits_removed, work.slots_released) == (set(), {(limit.id, holder.id)})
    # Whoever takes the slot that it held before has nothing to write.
    assert work.take_slot(again, holder.id)
    assert (work.slots_released, work.slots_taken) == (set(), set())


def test_rolling_back_restores_the_limits() -> None:
    holder = task_run()
    work = work_with(holder, limits=[limit_on("db", 2, holder), limit_on("gone", 1)])
    work.limit_ids[on_tag("new")] = 77
    before = known_limits(work)
    work.begin()
    work.set_limit(on_tag("db"), 5)
    work.remove_limit(on_tag("db"))
    work.set_limit(on_tag("db"), 1)
    work.take_slot(work.limits[on_tag("db")], holder.id)
    work.set_limit(on_tag("new"), 3)
    work.remove_limit(on_tag("gone"))
    work.roll_back()
    assert known_limits(work) == before
    assert work.limits[on_tag("db")].holders == {holder.id}


# -- cache -------------------------------------------------------------------------------------------------------------


def test_the_newest_cached_state_is_found() -> None:
    work = work_with()
    cached(work, "key", State.completed(data="old"))
    newest = cached(work, "key", State.completed(data="new"))
    cached(work, "other", State.completed())
    assert work.cached_state("key") is newest
    assert work.cached_state("unknown") is None


@pytest.mark.parametrize(("left", "found"), [(1e-6, True), (0, False), (-1, False)])
def test_a_cached_state_is_found_until_it_expires(left: float, found: bool) -> None:
    work = work_with()
    cached(work, "key", State.completed(), expiration=NOW + seconds(left))
    assert (work.cached_state("key") is not None) is found


def test_an_older_cached_state_serves_when_the_newest_has_expired() -> None:
    work = work_with()
    lasting = cached(work, "key", State.completed())
    cached(work, "key", State.completed(), expiration=NOW - seconds(1))
    assert work.cached_state("key") is lasting


def test_rolling_back_forgets_what_was_cached() -> None:
    work = work_with()
    kept = cached(work, "key", State.completed())
    work.begin()
    work.add_cache_entry(CacheEntry("key", None, written(State.completed())))
    work.add_cache_entry(CacheEntry("new", None, written(State.completed())))
    assert work.cached_state("key") is not kept
    work.roll_back()
    assert work.cached_state("key") is kept
    assert work.cached_state("new") is None
    assert work.cache_added == []


async def test_rolling_back_a_whole_proposal_restores_everything_at_once() -> None:
    limit = limit_on("db", 1)
    parent = task_run(tags=("db",))
    subflow = flow_run(parent_task_run_id=parent.id)
    work = work_with(parent, subflow, limits=[limit])
    await propose(work, parent, State.running())
    before = copy(parent), copy(subflow), slots(work, limit), len(work.state_changes)
    work.begin()
    await CORE.decide(Proposal(IDS.new(), subflow.id, State.completed(), NOW), work)
    assert (parent.state_type, limit.slots_held) == (StateType.COMPLETED, 0)
    work.roll_back()
    assert (parent, subflow, slots(work, limit), len(work.state_changes)) == before
