"""How things stand in Redis, for people: what waits in each partition, who holds it, and which workers there are."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

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


def _milliseconds(told: Sequence[Any]) -> int:
    return int(told[0]) * 1_000 + int(told[1]) // 1_000


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1_000, UTC)
