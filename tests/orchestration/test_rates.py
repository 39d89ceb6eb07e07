"""Rates: so many starts in a period, whose slots come back one by one, exactly by an injected clock."""

from datetime import datetime, timedelta
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from statewright import LimitScope, RunPolicy, SetStateStatus, State
from statewright_worker.facts.limits import limit_from, used_until
from statewright_worker.orchestration import UnitOfWork
from statewright_worker.orchestration.core_policy import SecureTaskConcurrencySlots
from statewright_worker.orchestration.records import LimitRecord
from tests.orchestration.builders import (
    IDS,
    NOW,
    engine_with,
    flow_run,
    limit_on,
    of_type,
    propose,
    put,
    seconds,
    task_run,
    work_with,
)

EXAMPLES = settings(max_examples=300, deadline=None, database=None, derandomize=True)
MINUTE: Final = timedelta(minutes=1)
MICROSECOND: Final = timedelta(microseconds=1)
PERIODS = st.timedeltas(timedelta(milliseconds=1), timedelta(days=400))
LIMITS = st.integers(1, 30)


class Stored:
    """A rate as it is stored: loaded at a moment, used, and stored again, as each batch does."""

    def __init__(self, concurrency_limit: int, period: timedelta) -> None:
        self.row: dict[str, Any] = {"id": 1, "scope": "tag", "key": "mail", "lease_seconds": None, "used_until": None}
        self.row |= {"concurrency_limit": concurrency_limit, "period": period}
        self.starts: list[datetime] = []

    def at(self, now: datetime) -> LimitRecord:
        row: Any = self.row
        return limit_from(row, now)

    def start(self, now: datetime) -> bool:
        """Let a run start at `now`, if the rate allows it, and return whether it did."""
        limit = self.at(now)
        if not limit.has_room_for(IDS.new()):
            return False
        UnitOfWork(now, IDS).take_slot(limit, IDS.new())
        self.row["used_until"] = used_until(limit, now)
        self.starts.append(now)
        return True


def rate(concurrency_limit: int, period: timedelta = MINUTE) -> LimitRecord:
    return limit_on("mail", concurrency_limit, period=period)


@EXAMPLES
@given(LIMITS, PERIODS, st.data())
def test_no_window_sees_more_starts_than_a_full_bucket_and_what_comes_back(
    number: int, period: timedelta, data: st.DataObject
) -> None:
    stored = Stored(number, period)
    gaps = st.floats(0, 2).map(lambda part: part * period / number)
    moment = NOW
    for gap in data.draw(st.lists(gaps, min_size=1, max_size=80)):
        # A batch may have looked at its clock before the one that has just used the rate.
        skew = data.draw(st.sampled_from([0, 0, 0, 0.5, 1]))
        moment += gap
        stored.start(moment - skew * period / number)
    interval = stored.at(NOW).interval
    starts = sorted(stored.starts)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            assert (last - first + 1 - number) * interval <= starts[last] - starts[first]
        within = [start for start in starts[first:] if start < starts[first] + period]
        assert len(within) <= 2 * number


@EXAMPLES
@given(LIMITS, PERIODS)
def test_a_rested_rate_allows_a_burst_of_the_limit_and_then_one_start_after_each_interval(
    number: int, period: timedelta
) -> None:
    stored = Stored(number, period)
    assert [stored.start(NOW) for _ in range(number + 1)] == [True] * number + [False]
    interval = stored.at(NOW).interval
    # Rounded up to whole microseconds, and no more.
    assert period <= interval * number < period + number * MICROSECOND
    for n in range(1, 4):
        assert not stored.start(NOW + n * interval - MICROSECOND)
        assert stored.start(NOW + n * interval)
        assert not stored.start(NOW + n * interval)


@EXAMPLES
@given(LIMITS, PERIODS, st.data())
def test_a_rate_says_exactly_when_so_many_slots_are_free(number: int, period: timedelta, data: st.DataObject) -> None:
    stored = Stored(number, period)
    moment = NOW
    for gap in data.draw(st.lists(st.floats(0, 2), max_size=30)):
        moment += gap * period / number
        stored.start(moment)
    limit = stored.at(moment)
    for wanted in range(1, number + 1):
        until = limit.turn_in(wanted - 1)
        assert until is not None
        assert stored.at(moment + until).free >= wanted
        if until:
            assert stored.at(moment + until - MICROSECOND).free == wanted - 1
    later = limit.turn_in(number)
    assert later is not None
    assert later >= limit.interval


@EXAMPLES
@given(LIMITS, LIMITS, PERIODS, PERIODS, st.integers(0, 30))
def test_what_is_used_stays_used_when_the_rate_is_changed(
    number: int, other: int, period: timedelta, others: timedelta, used: int
) -> None:
    limit = rate(number, period)
    work = work_with(limits=[limit])
    for _ in range(min(used, number)):
        work.take_slot(limit, IDS.new())
    changed = limit.changed(other, others, None)
    assert changed.free == max(other - min(used, number), 0)
    assert changed.turn_in(0) == (timedelta() if changed.free else changed.interval)


def test_a_rate_of_zero_is_never_free() -> None:
    limit = rate(0)
    assert (limit.free, limit.has_room_for(IDS.new())) == (0, False)


def test_a_rate_that_was_zero_for_a_while_remembers_what_was_used_before() -> None:
    limit = rate(10)
    for _ in range(10):
        work_with().take_slot(limit, IDS.new())
    back = limit.changed(0, MINUTE, None).changed(10, MINUTE, None)
    assert (back.free, back.used) == (0, limit.used)


def test_a_limit_of_slots_becomes_free_by_no_time() -> None:
    limit = limit_on("db", 2, task_run())
    assert (limit.free, limit.turn_in(0), limit.turn_in(2)) == (1, None, None)


def test_a_limit_that_becomes_a_rate_begins_unused_and_keeps_its_holders() -> None:
    holder = task_run()
    limit = limit_on("db", 2, holder)
    changed = limit.changed(2, seconds(60), None)
    assert (changed.free, changed.holders, used_until(changed, NOW)) == (2, {holder.id}, NOW)
    back = changed.changed(2, None, None)
    assert (back.free, used_until(back, NOW)) == (1, None)


# -- within the rules --------------------------------------------------------------------------------------------------


async def test_a_full_rate_delays_until_the_next_slot() -> None:
    limit = rate(2, seconds(25))
    runs = [task_run(tags=("mail",)) for _ in range(3)]
    work = work_with(*runs, limits=[limit])
    verdicts = [await propose(work, run, State.running()) for run in runs]
    assert [verdict.status for verdict in verdicts] == [SetStateStatus.ACCEPT] * 2 + [SetStateStatus.WAIT]
    # 12.5 s, rounded up.
    assert verdicts[-1].delay_seconds == 13
    assert verdicts[-1].reason == "Concurrency limit for the mail tag has been reached"
    assert (limit.holders, limit.slots_held, work.slots_taken) == (set(), 0, set())
    assert work.rates_used == {limit.id: limit}


async def test_a_delay_until_the_next_slot_is_a_second_at_least() -> None:
    limit = rate(1, seconds(0.01))
    runs = [task_run(tags=("mail",)) for _ in range(2)]
    work = work_with(*runs, limits=[limit])
    assert [(await propose(work, run, State.running())).delay_seconds for run in runs] == [None, 1]


async def test_leaving_running_gives_nothing_back() -> None:
    limit = rate(1)
    run, other = task_run(tags=("mail",)), task_run(tags=("mail",))
    work = work_with(run, other, limits=[limit])
    await propose(work, run, State.running())
    await propose(work, run, State.completed())
    assert (await propose(work, other, State.running())).status is SetStateStatus.WAIT


async def test_a_start_that_does_not_happen_is_given_back() -> None:
    limit, full = rate(1), limit_on("z", 1, task_run())
    run = task_run(tags=("mail",))
    work = work_with(run, limits=[limit, full])
    await put(work, run, State.scheduled(NOW + seconds(60)))
    verdict = await propose(work, run, State.running())
    assert (verdict.status, verdict.delay_seconds) == (SetStateStatus.WAIT, 60)
    assert (limit.free, limit.used) == (1, timedelta())
    # All or nothing: another limit is full.
    both = task_run(tags=("mail", "z"))
    work.runs[both.id] = both
    assert (await propose(work, both, State.running())).status is SetStateStatus.WAIT
    assert limit.free == 1


async def test_a_run_that_is_running_already_does_not_start_again() -> None:
    limit = rate(1)
    run = task_run(tags=("mail",))
    work = work_with(run, limits=[limit])
    engine = engine_with(SecureTaskConcurrencySlots)
    for _ in range(2):
        assert (await propose(work, run, of_type(State.running().type), engine=engine)).status is SetStateStatus.ACCEPT
    assert limit.used == limit.interval


async def test_a_named_rate_counts_starts_of_both_kinds() -> None:
    limit = limit_on("mail", 1, scope=LimitScope.NAME, period=seconds(60))
    policy = RunPolicy(limits=("mail",))
    flow, task = flow_run(policy=policy), task_run(policy=policy)
    work = work_with(flow, task, limits=[limit])
    statuses = [(await propose(work, run, State.running())).status for run in (flow, task)]
    assert statuses == [SetStateStatus.ACCEPT, SetStateStatus.WAIT]


def test_rolling_back_gives_what_was_used_of_a_rate_back() -> None:
    limit = rate(2)
    work = work_with(limits=[limit])
    work.begin()
    work.take_slot(limit, IDS.new())
    work.commit()
    assert work.rates_used == {limit.id: limit}
    work.begin()
    work.take_slot(limit, IDS.new())
    work.roll_back()
    assert (limit.used, work.rates_used) == (limit.interval, {limit.id: limit})
