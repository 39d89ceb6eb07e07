"""The watch on a connection: it cuts a connection on which an answer is overdue, and no other."""

import asyncio

import pytest

from statewright_worker.storage.watch import Watch
from tests.deployment import until

SECONDS = 0.2


class Connection:
    def __init__(self, seconds: float = SECONDS) -> None:
        self.cuts = 0
        self.watch = Watch(self.cut, seconds)

    def cut(self) -> None:
        self.cuts += 1

    async def is_cut(self) -> bool:
        return self.cuts > 0


async def test_an_answer_that_is_overdue_cuts_the_connection() -> None:
    connection = Connection()
    loop = asyncio.get_running_loop()
    began = loop.time()
    connection.watch.begin()
    await until(connection.is_cut)
    # The loop's own clock is compared, and it may round a timer down by its resolution.
    assert loop.time() - began >= SECONDS - 0.01
    await asyncio.sleep(2 * SECONDS)
    assert connection.cuts == 1


async def test_an_answer_in_time_cuts_nothing() -> None:
    connection = Connection()
    connection.watch.begin()
    connection.watch.end()
    await asyncio.sleep(2 * SECONDS)
    assert not connection.cuts
    # It goes on watching.
    connection.watch.begin()
    await until(connection.is_cut)


async def test_each_statement_has_the_whole_time_and_one_timer_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), 0
    call_at, now = loop.call_at, loop.time()

    def counted(*arguments: object) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return call_at(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_at", counted)
    monkeypatch.setattr(loop, "time", lambda: now)
    connection = Connection(60)
    for _ in range(1_000):
        now += 1
        connection.watch.begin()
        connection.watch.end()
    assert timers == 1
    connection.watch.begin()
    connection.watch._look()
    assert (connection.cuts, timers) == (0, 2)
    now += 61
    connection.watch._look()
    assert connection.cuts == 1
    connection.watch.close()


async def test_a_watch_that_is_closed_cuts_nothing() -> None:
    connection = Connection()
    connection.watch.begin()
    connection.watch.close()
    await asyncio.sleep(2 * SECONDS)
    assert not connection.cuts
