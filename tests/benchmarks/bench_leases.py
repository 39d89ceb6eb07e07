"""Leases: what keeping many runs alive costs all processes together, against a deployment that does nothing."""

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import asyncpg

from statewright import Client, State, Verdict
from statewright_worker.bench.processes import Meter, Usage
from statewright_worker.bench.target import POSTGRESQL, Target, embedded_target
from statewright_worker.loop import run
from tests.benchmarks.harness import show

AT_ONCE: Final = 500
BEATS_PER_LEASE: Final = 3
UPDATES: Final = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = $1"

Load = Callable[[Client, list[Verdict], float, AsyncExitStack], Coroutine[Any, Any, None]]


async def leased_runs(client: Client, number: int, lease: float) -> list[Verdict]:
    """Return the verdicts on RUNNING of new runs, ten to a flow run."""
    verdicts: list[Verdict] = []
    for start in range(0, number, AT_ONCE):
        flows = [client.create_flow_run("flow") for _ in range(start, min(start + AT_ONCE, number), 10)]
        tasks = [client.create_task_run("task", flow_run=flow) for flow in flows for _ in range(10)]
        verdicts += await asyncio.gather(*(client.propose(task, State.running(), lease=lease) for task in tasks))
    return verdicts


async def nothing(client: Client, verdicts: list[Verdict], lease: float, stack: AsyncExitStack) -> None:
    """The leases outlast the measurement: nobody renews them."""


async def kept_alive(client: Client, verdicts: list[Verdict], lease: float, stack: AsyncExitStack) -> None:
    """Each run is kept alive by itself."""
    for verdict in verdicts:
        await stack.enter_async_context(client.keep_alive(verdict))


async def beaten(client: Client, verdicts: list[Verdict], lease: float, stack: AsyncExitStack) -> None:
    """All runs are named to `heartbeat` again and again."""

    async def beat() -> None:
        while True:
            began = time.monotonic()
            lost = await client.heartbeat(verdicts)
            assert not lost, lost[0]
            await asyncio.sleep(lease / BEATS_PER_LEASE - (time.monotonic() - began))

    beating = asyncio.create_task(beat())
    stack.callback(beating.cancel)


async def held(client: Client, verdicts: list[Verdict], lease: float, stack: AsyncExitStack) -> None:
    """Ten executors hold the runs."""
    executors = [
        await stack.enter_async_context(client.executor(f"executor {number}", lease=lease)) for number in range(10)
    ]
    for start in range(0, len(verdicts), AT_ONCE):
        chosen = enumerate(verdicts[start : start + AT_ONCE])
        await asyncio.gather(
            *(executors[n % 10].propose(verdict.run_id, State.running(), force=True) for n, verdict in chosen)
        )


LOADS: Final[dict[str, Load]] = {
    "no heartbeats": nothing,
    "keep_alive": kept_alive,
    "heartbeat": beaten,
    "executor": held,
}


async def measure(target: Target, name: str, number: int, lease: float, seconds: float) -> list[object]:
    """Return a row: CPU in percent of one core of each process, and what PostgreSQL has updated."""
    load = LOADS[name]
    watched = {"client": os.getpid(), **target.pids}
    async with Client(redis_url=target.redis_url, answer_timeout=60) as client, AsyncExitStack() as stack:
        verdicts = await leased_runs(client, number, 86_400 if load is nothing else lease)
        await load(client, verdicts, lease, stack)
        # Until then the timers of the first leases have come due, and the runs beat together.
        await asyncio.sleep(lease * 1.5)
        meter = Meter(watched, with_children=[POSTGRESQL])
        before = await updates(target)
        meter.open()
        await asyncio.sleep(seconds)
        usages = meter.close()
        after = await updates(target)
        states = {verdict.run_id for verdict in verdicts} and await still_running(target)
        await end(client, stack, verdicts)
    total = sum(usage.cpu_percent for usage in usages)
    changed = [f"{(after[n] - before[n]) / seconds:.0f}" for n in (0, 1, 2)]
    return [name, states, *(cpu(usages, one) for one in ("client", "worker 1", "redis", POSTGRESQL)), total, *changed]


def cpu(usages: list[Usage], name: str) -> float:
    return next(usage.cpu_percent for usage in usages if usage.name == name)


async def updates(target: Target) -> tuple[int, int, int]:
    """Return how many rows of leases were updated, how many of these without an index, and how many timers were."""
    connection = await asyncpg.connect(target.database_url)
    try:
        lease, timer = [await connection.fetchrow(UPDATES, table) for table in ("lease", "timer")]
    finally:
        await connection.close()
    return lease[0], lease[1], timer[0]


async def still_running(target: Target) -> int:
    connection = await asyncpg.connect(target.database_url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM task_run WHERE state_type = 'RUNNING'"))
    finally:
        await connection.close()


async def end(client: Client, stack: AsyncExitStack, verdicts: list[Verdict]) -> None:
    """Stop renewing, and end the runs."""
    await stack.aclose()
    for start in range(0, len(verdicts), AT_ONCE):
        some = verdicts[start : start + AT_ONCE]
        await asyncio.gather(*(client.propose(verdict.run_id, State.completed()) for verdict in some))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="how many runs are leased")
    parser.add_argument(
        "--lease", type=float, default=30, help="how many seconds a lease has; renewed at a third of it"
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long each measurement takes")
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS), help="what is measured")
    given = parser.parse_args()
    header = ["leases", "RUNNING", "client %", "worker %", "Redis %", "PostgreSQL %", "together %"]
    header += ["leases renewed/s", "of these HOT", "timers moved/s"]
    with embedded_target(1) as target:
        rows = [run(measure(target, name, given.runs, given.lease, given.seconds)) for name in given.loads]
        show(f"{given.runs:,} leases of {given.lease:g} s, in percent of one core", header, rows, target=target)


if __name__ == "__main__":
    main()
