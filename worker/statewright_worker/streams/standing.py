"""How things stand in Redis, for people: what waits in each partition, who holds it, and which workers there are."""

import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from statewright.overview import WorkerStatus
from statewright.protocol.channels import Channels
from statewright_worker.streams.queries import QueryStream


class Waits(NamedTuple):
    """How many requests are unanswered in a partition, and for how many seconds the oldest one has waited."""

    entries: int
    oldest_seconds: float


class Held(NamedTuple):
    """Who holds a partition, and since when."""

    worker: str
    since: datetime


async def waiting_in(redis: QueryStream, channels: Channels, partitions: Sequence[int]) -> list[Waits]:
    """Return what waits in each of the partitions."""
    streams = [channels.proposals(partition) for partition in partitions]
    lengths = [("XLEN", stream) for stream in streams]
    oldest = [("XRANGE", stream, "-", "+", "COUNT", 1) for stream in streams]
    told = await redis.ask(*lengths, *oldest, ("TIME",))
    now = _milliseconds(told[-1])
    return [
        Waits(length, max(0.0, (now - int(first[0][0].partition(b"-")[0])) / 1_000) if first else 0.0)
        for length, first in zip(told[: len(streams)], told[len(streams) : -1], strict=True)
    ]


async def held_partitions(redis: QueryStream, channels: Channels) -> dict[int, Held]:
    """Return who holds each partition that somebody holds."""
    flat, now = await redis.ask(("HGETALL", channels.holders), ("TIME",))
    held: dict[int, Held] = {}
    for partition, told in zip(flat[::2], flat[1::2], strict=True):
        worker, ends, since = told.decode().split()
        if int(ends) > _milliseconds(now):
            held[int(partition)] = Held(worker, _moment(since))
    return held


async def live_workers(redis: QueryStream, channels: Channels) -> list[WorkerStatus]:
    """Return the workers that have announced themselves and are alive."""
    flat, now = await redis.ask(("HGETALL", channels.announced), ("TIME",))
    held = await held_partitions(redis, channels)
    workers: list[WorkerStatus] = []
    for name, told in zip(flat[::2], flat[1::2], strict=True):
        ends, seeks, about = told.decode().split(" ", 2)
        if int(ends) > _milliseconds(now):
            worker = name.decode()
            partitions = tuple(sorted(partition for partition, holder in held.items() if holder.worker == worker))
            announced = {**json.loads(about), "worker": worker, "seeks": seeks == "1", "partitions": partitions}
            workers.append(WorkerStatus.model_validate(announced, extra="ignore"))
    return workers


def announcement(since: datetime) -> str:
    """Return what this process says of itself as a worker that was started at that time."""
    about = {"host": socket.gethostname(), "pid": os.getpid(), "version": _version(), "since": since.isoformat()}
    return json.dumps(about)


def _version() -> str:
    try:
        return version("statewright")
    except PackageNotFoundError:
        # Run from its sources.
        return "unknown"


def _milliseconds(told: Sequence[Any]) -> int:
    return int(told[0]) * 1_000 + int(told[1]) // 1_000


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1_000, UTC)
