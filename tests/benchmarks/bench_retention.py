"""Retention: the same load with and without it, and how large the database and Redis are meanwhile.

The load are whole trees, each a flow run with ten task runs that all come to their end: what retention may delete.
"""

import argparse
import asyncio
import itertools
import os
import time
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from statewright import Client, State
from statewright_worker.bench.target import Target, embedded_target
from statewright_worker.loop import run
from tests.benchmarks.harness import show

WARM_UP: Final = 4.0
TASKS: Final = 10
TRANSITIONS: Final = 2 + 3 * TASKS
KEEP_RUNS: Final = "STATEWRIGHT_KEEP_RUNS"
MEGABYTE: Final = 1_000_000
WEIGH: Final = """
    SELECT (SELECT count(*) FROM flow_run) + (SELECT count(*) FROM task_run), (SELECT count(*) FROM verdict),
        pg_database_size(current_database()), (SELECT count(*) FROM pruned)
"""


class Size(NamedTuple):
    """How large everything is, so many seconds after the load began."""

    seconds: float
    runs: int
    verdicts: int
    remembered: int
    database_megabytes: float
    redis_megabytes: float


class Producer:
    """Lets so many trees at a time live and come to their end, and takes the time of each transition."""

    def __init__(self, client: Client, began: float, ends: float, rate: float | None) -> None:
        self._client = client
        self._ends = ends
        self._begins = itertools.repeat(began) if rate is None else (began + n / rate for n in itertools.count())
        self.latencies: list[float] = []
        self.counts_from = 0.0

    async def produce(self, trees: int) -> None:
        await asyncio.gather(*[self._go_on() for _ in range(trees)])

    async def _go_on(self) -> None:
        while (begins := next(self._begins)) < self._ends and time.perf_counter() < self._ends:
            await asyncio.sleep(max(begins - time.perf_counter(), 0))
            flow = await self._client.create_flow_run("bench")
            await self._propose(flow.id, State.running())
            await asyncio.gather(*[self._task(flow.id, number) for number in range(TASKS)])
            await self._propose(flow.id, State.completed())

    async def _task(self, flow_run: object, number: int) -> None:
        task = self._client.create_task_run(f"bench {number}", flow_run=flow_run)  # type: ignore[arg-type]
        for state in (State.pending(), State.running(), State.completed(data={"rows": number})):
            await self._propose(task.run_id, state)

    async def _propose(self, run_id: object, state: object) -> None:
        began = time.perf_counter()
        await self._client.propose(run_id, state)  # type: ignore[arg-type]
        answered = time.perf_counter()
        if answered > self.counts_from:
            self.latencies.append(answered - began)


class Measured(NamedTuple):
    """How a load went: its rate in transitions a second, its latencies in seconds, rising, and the sizes meanwhile."""

    rate: float
    latencies: list[float]
    sizes: list[Size]

    def milliseconds(self, percent: int) -> float:
        return 1_000 * self.latencies[len(self.latencies) * percent // 100]


class Load(NamedTuple):
    """How many trees are under way at a time, and at most how many begin in a second."""

    trees: int
    rate: float | None


def measure(load: Load, seconds: float, every: float) -> Measured:
    with embedded_target(1) as target:
        return run(_measure(target, load, seconds, every))


async def _measure(target: Target, load: Load, seconds: float, every: float) -> Measured:
    began = time.perf_counter()
    async with Client(target.redis_url) as client:
        producer = Producer(client, began, began + WARM_UP + seconds, load.rate)
        producer.counts_from = began + WARM_UP
        producing = asyncio.create_task(producer.produce(load.trees))
        sizes: list[Size] = []
        while not producing.done():
            sizes.append(await _size(target, time.perf_counter() - began))
            await asyncio.wait({producing}, timeout=every)
        await producing
        took = time.perf_counter() - producer.counts_from
    return Measured(len(producer.latencies) / took, sorted(producer.latencies), sizes)


async def _size(target: Target, elapsed: float) -> Size:
    connection = await asyncpg.connect(target.database_url)
    try:
        runs, verdicts, size, remembered = await connection.fetchrow(WEIGH)
    finally:
        await connection.close()
    async with Redis.from_url(target.redis_url) as redis:
        memory = (await redis.info("memory"))["used_memory"]
    return Size(elapsed, runs, verdicts, remembered, size / MEGABYTE, memory / MEGABYTE)


def row(name: str, told: Measured, without: float | None) -> list[object]:
    against = "-" if without is None else f"{100 * (told.rate / without - 1):+.1f} %"
    last = told.sizes[-1]
    percentiles = [told.milliseconds(percent) for percent in (50, 95, 99)]
    return [name, told.rate, against, *percentiles, last.runs, last.database_megabytes, last.redis_megabytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240, help="how long the load with retention lasts")
    parser.add_argument("--without", type=float, default=60, help="how long the one without lasts, before and after")
    parser.add_argument("--keep", default="30", help="STATEWRIGHT_KEEP_RUNS")
    parser.add_argument("--trees", type=int, default=30, help="how many trees are under way at a time")
    parser.add_argument("--rate", type=float, help="how many trees begin in a second; by default as many as end")
    given = parser.parse_args()
    load = Load(given.trees, given.rate)
    os.environ.pop(KEEP_RUNS, None)
    before = measure(load, given.without, given.without / 4)
    os.environ[KEEP_RUNS] = given.keep
    pruned = measure(load, given.seconds, given.seconds / 20)
    del os.environ[KEEP_RUNS]
    after = measure(load, given.without, given.without / 4)
    # What else the machine does changes meanwhile.
    without = (before.rate + after.rate) / 2
    header = ["load", "transitions/s", "against", "p50 ms", "p95 ms", "p99 ms", "runs", "database MB", "Redis MB"]
    rows = [
        row("runs are kept, before", before, None),
        row(f"runs are kept for {given.keep} s", pruned, without),
        row("runs are kept, after", after, None),
    ]
    show("Retention", header, rows)
    sizes = ["s", "runs", "verdicts", "remembered", "database MB", "Redis MB"]
    show("Sizes with retention", sizes, pruned.sizes)


if __name__ == "__main__":
    main()
