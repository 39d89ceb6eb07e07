"""Waiting: from a release to the next verdict, how fast a queue of parked proposals passes, and what many cost."""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from statistics import median, quantiles
from typing import Any, Final

import asyncpg

from statewright import Client, State, TaskRun
from statewright_worker.bench.processes import Meter, Usage
from statewright_worker.bench.target import Target, embedded_target
from statewright_worker.loop import run
from tests.benchmarks.harness import show

AT_ONCE: Final = 500
WARM_UPS: Final = 20
IDLE_SECONDS: Final = 5.0
"""Before the workers' rest is measured, so that what parking has begun is over."""
IN_ORDER: Final = """
    SELECT parked.place FROM unnest($1::uuid[]) WITH ORDINALITY AS parked (run_id, place)
    JOIN task_run_state AS state ON state.run_id = parked.run_id AND state.type = 'RUNNING'
    ORDER BY state.timestamp, state.partition, state.sequence
"""


@asynccontextmanager
async def client_of(target: Target) -> AsyncIterator[Client]:
    async with Client(redis_url=target.redis_url, answer_timeout=60) as client:
        yield client


async def runs_on(client: Client, tag: str, number: int) -> list[TaskRun]:
    """Create so many task runs with the tag, each in a tree, and so perhaps a partition, of its own."""
    runs: list[TaskRun] = []
    for start in range(0, number, AT_ONCE):
        count = min(AT_ONCE, number - start)
        runs += await asyncio.gather(*(client.create_task_run("work", tags=[tag]).answer() for _ in range(count)))
    return runs


async def parked(client: Client, runs: Sequence[TaskRun]) -> list[Any]:
    """Park RUNNING for each run, some hundred at once, and return what was sent."""
    sent: list[Any] = []
    for start in range(0, len(runs), AT_ONCE):
        some = [client.propose(run, State.running(), on_wait="park") for run in runs[start : start + AT_ONCE]]
        await asyncio.gather(*(one.until_parked() for one in some))
        sent += some
    return sent


async def handing_over(target: Target, number: int) -> list[float]:
    """Return how many milliseconds lie between sending each release and having the next parked proposal's verdict."""
    took: list[float] = []
    async with client_of(target) as client:
        await client.set_limit("handed", 1)
        runs = await runs_on(client, "handed", number + WARM_UPS)
        holder, *others = runs
        assert (await client.propose(holder, State.running())).accepted
        for waiter in others:
            [sent] = await parked(client, [waiter])
            began = time.perf_counter()
            client.propose(holder, State.completed())
            verdict = await sent
            took.append(1_000 * (time.perf_counter() - began))
            assert verdict.accepted
            holder = waiter
        await client.propose(holder, State.completed())
    return took[WARM_UPS:]


async def passing(target: Target, number: int) -> tuple[float, int]:
    """Return in how many seconds so many parked proposals pass a limit of 1 one by one, and how many were overtaken."""
    async with client_of(target) as client:
        await client.set_limit("passed", 1)
        holder, *runs = await runs_on(client, "passed", number + 1)
        await client.propose(holder, State.running())
        sent = []
        for one in runs:
            # One by one, so that there is one order.
            sent += await parked(client, [one])
        began = time.perf_counter()
        await client.propose(holder, State.completed())
        await asyncio.gather(*(_work(client, one) for one in sent))
        took = time.perf_counter() - began
    connection = await asyncpg.connect(target.database_url)
    try:
        places = [row["place"] for row in await connection.fetch(IN_ORDER, [run.id for run in runs])]
    finally:
        await connection.close()
    assert len(places) == number
    return took, sum(before > after for before, after in pairwise(places))


async def _work(client: Client, sent: Any) -> None:
    assert (await sent).accepted
    await client.propose(sent.run_id, State.completed())


async def resting(target: Target, number: int, seconds: float) -> list[tuple[str, float, float]]:
    """Return of each worker by how many MB it has grown with so many parked proposals, and its CPU while idle."""
    workers = {name: pid for name, pid in target.pids.items() if name.startswith("worker")}
    async with client_of(target) as client:
        await client.set_limit("many", 1)
        runs = await runs_on(client, "many", number)
        await client.propose(runs[0], State.running())
        # Before: all runs are created, and nothing is parked.
        before = await _watched(workers, 1.0)
        began = time.perf_counter()
        for start in range(1, number, AT_ONCE):
            some = [client.propose(one, State.running(), on_wait="park") for one in runs[start : start + AT_ONCE]]
            await asyncio.gather(*(one.until_parked() for one in some))
        print(f"{number:,} parked in {time.perf_counter() - began:.1f} s", flush=True)
    # Without the client, which would ask now and then whether its proposals are parked.
    await asyncio.sleep(IDLE_SECONDS)
    after = await _watched(workers, seconds)
    return [
        (now.name, now.memory_megabytes - was.memory_megabytes, now.cpu_percent)
        for was, now in zip(before, after, strict=True)
    ]


async def _watched(pids: dict[str, int], seconds: float) -> list[Usage]:
    meter = Meter(pids)
    meter.open()
    await asyncio.sleep(seconds)
    return meter.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=int, default=500, help="how many slots are handed over, one after another")
    parser.add_argument("--queue", type=int, default=1_000, help="how many parked proposals pass a limit of 1")
    parser.add_argument("--parked", type=int, default=100_000, help="how many parked proposals rest")
    parser.add_argument("--seconds", type=float, default=20, help="how long the resting workers are watched")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    given = parser.parse_args()
    with embedded_target(given.workers) as target:
        took = run(handing_over(target, given.releases))
        header = ["releases", "p50 ms", "p99 ms", "greatest ms"]
        row = [len(took), median(took), quantiles(took, n=100)[98], max(took)]
        show("From a release to the next parked proposal's verdict", header, [row], target=target)
        seconds, overtaken = run(passing(target, given.queue))
        header = ["parked proposals", "seconds", "a second", "overtaken"]
        row = [given.queue, seconds, given.queue / seconds, overtaken]
        show("Parked proposals that pass a limit of 1, with instant work", header, [row], target=target)
        rested = run(resting(target, given.parked, given.seconds))
        header = [f"{given.parked:,} parked proposals", "grown by MB", "CPU while idle, % of a core"]
        show("What resting parked proposals cost", header, rested, target=target)


if __name__ == "__main__":
    main()
