"""Subscribing: what a filter costs its subscriber, and what subscriptions cost the workers."""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from statewright import Client, Event, NamedSubscription, Subscription
from statewright.connection import connection_pool
from statewright.events import RelatedResource
from statewright.ids import IdSource, partition_of
from statewright.protocol.channels import EVENT_BODY, Channels
from statewright.states import StateType
from statewright_worker.bench.processes import Meter
from statewright_worker.bench.target import POSTGRESQL, Target, embedded_target
from tests.benchmarks.harness import measured, show
from tests.events import entered

NAMESPACE: Final = "filters"
PARTITIONS: Final = 8
WANTED: Final = "vip"
WANTED_PART: Final = 0.01
TICK_SECONDS: Final = 0.01
SETTLE_SECONDS: Final = 3.0
SUBSCRIPTIONS: Final = 20
RATE: Final = "500"
"""Proposals a second."""


# -- what a filter costs -----------------------------------------------------------------------------------------------


async def publish(redis_url: str, rate: float) -> None:
    """Publish so many events a second, as drains do: a few at a time, in each partition."""
    redis = Redis(connection_pool=connection_pool(redis_url))
    channels, ids = Channels(NAMESPACE), IdSource()
    numbers = [int(time.time() * 1_000_000)] * PARTITIONS
    began, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate)
        pipeline = redis.pipeline(transaction=False)
        for number in range(sent, due):
            run_id = ids.new()
            partition = partition_of(run_id, PARTITIONS)
            numbers[partition] += 1
            is_wanted = number % round(1 / WANTED_PART) == 0
            body = event(run_id, partition, numbers[partition], is_wanted=is_wanted).model_dump_json()
            stream = channels.events(partition)
            pipeline.xadd(stream, {EVENT_BODY: body}, id=f"{numbers[partition]}-0", maxlen=10_000, approximate=True)
        await pipeline.execute()
        sent = due
        await asyncio.sleep(TICK_SECONDS)


def event(run_id: UUID, partition: int, sequence: int, *, is_wanted: bool) -> Event:
    made = entered(
        run_id, StateType.RUNNING, state_id=run_id, time=datetime.now(UTC), partition=partition, sequence=sequence
    )
    related = [RelatedResource(role="tag", id=tag) for tag in ("etl", WANTED if is_wanted else "usual")]
    return made.replaced(data=made.data.replaced(related=tuple(related)))


async def subscribe(redis_url: str, seconds: float, filters: dict[str, Any]) -> None:
    """Subscribe for some seconds, and print which part of a core that took, and how many events came."""
    async with Client(redis_url, namespace=NAMESPACE) as client, client.subscribe(**filters) as events:
        listening = asyncio.create_task(listen(events))
        await asyncio.sleep(SETTLE_SECONDS)
        before, began, count = cpu_seconds(), time.monotonic(), HEARD["events"]
        await asyncio.sleep(seconds)
        print((cpu_seconds() - before) / (time.monotonic() - began), (HEARD["events"] - count) / seconds)
        listening.cancel()


HEARD: Final = {"events": 0}


async def listen(events: Subscription | NamedSubscription) -> None:
    async for heard in events:
        HEARD["events"] += 1
        if isinstance(events, NamedSubscription):
            await events.acknowledge(heard)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def publishing(redis_url: str, rate: float) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, "--publish", redis_url, str(rate)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def filtering(target: Target, rate: float, seconds: float, tags: str) -> list[object]:
    """Return what a subscriber takes of one core, in percent, and how many events it is told in a second."""
    asyncio.run(announce(target.redis_url))
    told = []
    with publishing(target.redis_url, rate):
        for _ in range(3):
            command = [sys.executable, "-m", __spec__.name, "--subscribe", target.redis_url, str(seconds), tags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told.append([float(number) for number in done.stdout.split()])
    return [
        f"{rate:,.0f} events/s, {'all' if not tags else '1 %'} of them told",
        *(
            100 * median(cpu for cpu, _ in told),
            median(number for _, number in told),
        ),
    ]


async def announce(redis_url: str) -> None:
    redis = Redis(connection_pool=connection_pool(redis_url))
    await redis.set(Channels(NAMESPACE).partitions, PARTITIONS)
    await redis.aclose(close_connection_pool=True)


# -- what subscriptions cost the workers -------------------------------------------------------------------------------


async def hold(redis_url: str, kind: str) -> None:
    """Hold some subscriptions and handle everything, until killed."""
    async with Client(redis_url, answer_timeout=60) as client, AsyncExitStack() as stack:
        for number in range(SUBSCRIPTIONS):
            # Names that are new: others still have members that were killed, and await their end.
            name = f"subscription {os.getpid()}-{number}" if kind == "named" else None
            events: Any = await stack.enter_async_context(client.subscribe(name))
            stack.callback(asyncio.create_task(listen(events)).cancel)
        print("ready", flush=True)
        await asyncio.Event().wait()


@contextmanager
def holding(redis_url: str, kind: str) -> Iterator[None]:
    if kind == "no":
        yield
        return
    command = [sys.executable, "-m", __spec__.name, "--hold", redis_url, kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def costing(target: Target, kind: str, rate: str, seconds: float) -> list[object]:
    """Return the CPU of the worker and of the servers, in percent of one core, and the latency of proposals."""
    with holding(target.redis_url, kind):
        time.sleep(SETTLE_SECONDS)
        meter = Meter(target.pids, with_children=[POSTGRESQL])
        meter.open()
        latency = {"p50": "-", "p99": "-"}
        if rate == "0":
            time.sleep(seconds)
        else:
            latency = measured(target, "--seconds", str(seconds), "--warm-up", "1.5", "--rate", rate)["latency_ms"]
        usages = {usage.name: usage.cpu_percent for usage in meter.close()}
    cpu = [usages[name] for name in ("worker 1", "redis", POSTGRESQL)]
    return [f"{rate} proposals/s, {kind} subscriptions", *cpu, latency["p50"], latency["p99"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="how long to measure each")
    parser.add_argument("--publish", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--subscribe", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.publish:
        asyncio.run(publish(given.publish[0], float(given.publish[1])))
    elif given.subscribe:
        url, seconds, tags = given.subscribe
        asyncio.run(subscribe(url, float(seconds), {"tags": tags} if tags else {}))
    elif given.hold:
        asyncio.run(hold(*given.hold))
    else:
        report(given.seconds)


def report(seconds: float) -> None:
    os.environ.pop("STATEWRIGHT_NAMESPACE", None)
    loads = ((50.0, ""), (5_000.0, WANTED), (5_000.0, ""))
    with embedded_target(1) as target:
        rows = [filtering(target, rate, seconds, tags) for rate, tags in loads]
        show("What a filter costs its subscriber", ["load", "CPU %", "told/s"], rows, target=target)
        header = ["load", "worker CPU %", "Redis CPU %", "PostgreSQL CPU %", "p50 ms", "p99 ms"]
        kinds = ("no", "unnamed", "named")
        rows = [costing(target, kind, rate, seconds) for rate in ("0", *[RATE] * 3) for kind in kinds]
        show(f"What {SUBSCRIPTIONS} subscriptions cost", header, rows, target=target)


if __name__ == "__main__":
    main()
