"""Who waits for a limit, whose turn it is, and who is called: without servers."""

from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

from statewright.ids import IdSource
from statewright.limits import LimitScope
from statewright_worker.orchestration.records import (
    CALLED_AT_ONCE,
    QUEUE_LOADED,
    LimitRecord,
    ParkedProposal,
    Queued,
    TimerKind,
    TimerName,
)
from statewright_worker.orchestration.unit_of_work import UnitOfWork

IDS = IdSource()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TICKETS = count(1)


def limit(
    number: int = 1, *queue: Queued, period: timedelta | None = None, used: timedelta = timedelta()
) -> LimitRecord:
    return LimitRecord(1, LimitScope.TAG, "db", number, period=period, used=used, queue=list(queue))


def queued(priority: int = 0, partition: int = 3) -> Queued:
    return Queued(IDS.new(), partition, priority, next(TICKETS))


def parked(proposal_id: UUID, priority: int = 0, **fields: object) -> ParkedProposal:
    known: dict[str, object] = {"run_id": IDS.new(), "digest": 0, "message": "", "reply_to": None, "entry_id": "1-0"}
    return ParkedProposal(proposal_id, since=NOW, until=None, priority=priority, **{**known, **fields})  # type: ignore[arg-type]


def work(*limits: LimitRecord) -> UnitOfWork:
    made = UnitOfWork(NOW, IDS, 0)
    made.limits.update((one.name, one) for one in limits)
    return made


def due(made: UnitOfWork, waiter: Queued) -> datetime | None:
    """Return when the waiter is looked at as far as this batch says."""
    name = TimerName(TimerKind.PARKED, waiter.proposal_id)
    timer = made.waiting.timers_called.get(name) or made.waiting.timers_set.get(name)
    return None if timer is None else timer.due


def test_a_newcomer_stands_behind_waiters_of_its_priority() -> None:
    urgent, first, last = queued(5), queued(), queued(-1)
    named = limit(3, urgent, first, last)
    assert [named.ahead_of(None, (-priority, next(TICKETS))) for priority in (6, 5, 1, 0, -1)] == [0, 1, 1, 2, 3]
    assert [named.ahead_of(waiter.proposal_id, waiter.turn) for waiter in (urgent, first, last)] == [0, 1, 2]


def test_nobody_has_room_whom_others_wait_before_for_every_free_slot() -> None:
    named = limit(2, queued(), queued())
    run_id = IDS.new()
    assert [named.has_room_for(run_id, ahead) for ahead in range(3)] == [True, True, False]
    named.slots_held = 1
    assert [named.has_room_for(run_id, ahead) for ahead in range(3)] == [True, False, False]


def test_who_holds_a_slot_has_room_whoever_waits() -> None:
    named = limit(1, queued())
    run_id = IDS.new()
    named.slots_held, named.holders = 1, {run_id}
    assert named.has_room_for(run_id, 1)


def test_behind_a_queue_that_is_not_known_to_its_end_nobody_has_room() -> None:
    named = limit(QUEUE_LOADED * 10, *[queued() for _ in range(QUEUE_LOADED - 1)])
    named.is_cut = True
    assert not named.has_room_for(IDS.new(), named.ahead_of(IDS.new(), (0, next(TICKETS))))


def test_as_many_are_called_as_slots_become_free() -> None:
    waiters = [queued(partition=number) for number in range(3)]
    named = limit(2, *waiters)
    held = [IDS.new(), IDS.new()]
    named.slots_held, named.holders = 2, set(held)
    made = work(named)
    made.release_slot(named, held[0])
    made.waiting.call_waiters()
    assert [due(made, waiter) for waiter in waiters] == [NOW, None, None]
    assert (made.waiting.woken, made.waiting.next_due) == (set(), NOW)


def test_other_partitions_are_woken() -> None:
    waiters = [queued(partition=4), queued(partition=0)]
    named = limit(2, *waiters)
    held = [IDS.new(), IDS.new()]
    named.slots_held, named.holders = 2, set(held)
    made = work(named)
    for run_id in held:
        made.release_slot(named, run_id)
    made.waiting.call_waiters()
    assert (made.waiting.woken, made.waiting.next_due) == ({4}, NOW)


def test_nobody_is_called_where_nothing_became_free() -> None:
    waiter = queued()
    made = work(limit(1, waiter))
    made.waiting.call_waiters()
    assert due(made, waiter) is None
    assert not made.waiting.has_changed


def test_who_leaves_a_queue_calls_the_next_one() -> None:
    leaving, behind = queued(), queued()
    named = limit(1, leaving, behind)
    made = work(named)
    made.waiting.parked[leaving.proposal_id] = parked(leaving.proposal_id, waits_on=(named.name,))
    made.waiting.answer(made.waiting.parked[leaving.proposal_id])
    made.waiting.call_waiters()
    assert due(made, behind) == NOW
    assert made.waiting.waiters_removed == {(named.id, leaving.proposal_id)}
    assert named.queue == [behind]


def test_a_proposal_stands_in_the_queues_of_what_it_waits_for_now() -> None:
    old, both, new = (LimitRecord(number, LimitScope.NAME, str(number), 1) for number in range(3))
    made = work(old, both, new)
    proposal = parked(IDS.new())
    for waits_for in ([old, both], [both, new]):
        made.begin()
        made.waiting.wait_for(waits_for, None)
        made.waiting.park(proposal)
    assert {limit_id for limit_id, _ in made.waiting.waiters_added} == {both.id, new.id}
    assert made.waiting.parked[proposal.proposal_id].waits_on == (both.name, new.name)
    assert [len(named.queue) for named in (old, both, new)] == [0, 1, 1]


def test_who_waits_for_something_else_leaves_the_queues_and_calls_the_next_one() -> None:
    leaving, behind = queued(), queued()
    named = limit(1, leaving, behind)
    made = work(named)
    proposal = parked(leaving.proposal_id, waits_on=(named.name,), ticket=leaving.ticket)
    made.waiting.parked[proposal.proposal_id] = proposal
    made.begin()
    made.waiting.park(proposal)
    made.waiting.call_waiters()
    assert made.waiting.waiters_removed == {(named.id, leaving.proposal_id)}
    assert (due(made, leaving), due(made, behind)) == (None, NOW)


def test_a_place_that_is_given_up_in_the_batch_that_took_it_is_never_written() -> None:
    named = limit(1)
    made = work(named)
    proposal = parked(IDS.new())
    made.waiting.wait_for([named], None)
    made.waiting.park(proposal)
    made.waiting.answer(made.waiting.parked[proposal.proposal_id])
    assert (made.waiting.waiters_added, made.waiting.waiters_removed, named.queue) == ({}, set(), [])


def test_a_place_that_is_taken_again_in_the_batch_that_gave_it_up_stays() -> None:
    waiter = queued()
    named = limit(1, waiter)
    made = work(named)
    proposal = parked(waiter.proposal_id, waits_on=(named.name,), ticket=waiter.ticket)
    made.waiting.parked[proposal.proposal_id] = proposal
    made.waiting.park(proposal)
    made.waiting.wait_for([named], None)
    made.waiting.park(proposal)
    assert (made.waiting.waiters_added, made.waiting.waiters_removed) == ({}, set())
    assert [again.ticket for again in named.queue] == [waiter.ticket]


def test_two_stand_in_the_same_order_in_every_queue() -> None:
    one, two = LimitRecord(1, LimitScope.NAME, "1", 1), LimitRecord(2, LimitScope.NAME, "2", 1)
    made = work(one, two)
    first, second = parked(IDS.new()), parked(IDS.new())
    for proposal, waits_for in ((first, [one]), (second, [one, two]), (first, [one, two])):
        made.begin()
        made.waiting.wait_for(waits_for, None)
        made.waiting.park(proposal)
    order = [first.proposal_id, second.proposal_id]
    assert [waiter.proposal_id for waiter in one.queue] == [waiter.proposal_id for waiter in two.queue] == order


def test_who_was_queued_for_a_limit_that_is_removed_looks_again() -> None:
    named = limit(1)
    made = work(named)
    proposal = parked(IDS.new())
    made.waiting.wait_for([named], None)
    made.waiting.park(proposal)
    made.remove_limit(named.name)
    assert made.waiting.waiters_added == {}
    assert made.waiting.timers_set[TimerName(TimerKind.PARKED, proposal.proposal_id)].due == NOW


def test_a_limit_that_is_removed_and_set_again_keeps_its_queue() -> None:
    named = limit(1, queued())
    made = work(named)
    made.remove_limit(named.name)
    made.set_limit(named.name, 2)
    assert made.limits[named.name].queue == named.queue


def test_a_greater_priority_is_queued_before_others() -> None:
    named = limit(0, queued(5), queued(0))
    made = work(named)
    for priority in (1, 5):
        made.begin()
        made.waiting.wait_for([named], None)
        made.waiting.park(parked(IDS.new(), priority))
    assert [waiter.priority for waiter in named.queue] == [5, 5, 1, 0]


def test_a_limit_of_zero_calls_everybody_to_be_told_so_some_at_a_time() -> None:
    named = limit(0, *[queued() for _ in range(CALLED_AT_ONCE + 1)])
    assert len(list(named.next_waiters())) == CALLED_AT_ONCE


def test_waiters_of_a_rate_are_told_when_their_turn_comes() -> None:
    waiters = [queued() for _ in range(3)]
    named = limit(2, *waiters, period=MINUTE, used=MINUTE / 2)
    assert [waits for _, waits in named.next_waiters()] == [timedelta(), MINUTE / 2, MINUTE]
    assert [named.turn_in(ahead) for ahead in range(3)] == [timedelta(), MINUTE / 2, MINUTE]


def test_a_timer_is_called_sooner_and_never_later() -> None:
    waiter = queued(partition=0)
    named = limit(1, waiter)
    run_id = IDS.new()
    named.slots_held, named.holders = 1, {run_id}
    made = work(named)
    made.waiting.set_timer(TimerKind.PARKED, waiter.proposal_id, NOW + MINUTE)
    made.release_slot(named, run_id)
    made.waiting.call_waiters()
    assert due(made, waiter) == NOW


def test_what_a_proposal_sets_is_undone_with_it() -> None:
    made = work()
    kept, undone = IDS.new(), IDS.new()
    made.begin()
    made.waiting.set_timer(TimerKind.LEASE, kept, NOW)
    made.commit()
    made.waiting.clear_timer(TimerKind.LEASE, kept)
    made.waiting.set_timer(TimerKind.LEASE, undone, NOW)
    made.roll_back()
    assert set(made.waiting.timers_set) == {TimerName(TimerKind.LEASE, kept)}
    assert not made.waiting.timers_cleared
