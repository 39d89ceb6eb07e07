"""The newest events of all partitions, for whoever compares them with the histories."""

from typing import NamedTuple

import orjson
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.connection import Command, HeldConnection, passing
from statewright.protocol.channels import EVENT_BODY, Channels, sequence_of


class Tail(NamedTuple):
    """The newest events of a partition: their ids by their numbers, ascending. Without any, the stream is empty."""

    partition: int
    ids: dict[int, str]

    @property
    def ends_with(self) -> int:
        """The newest number, 0 without any."""
        return max(self.ids, default=0)


async def read_tails(pool: ConnectionPool, channels: Channels, partitions: int, length: int) -> list[Tail]:
    """Return up to `length` of the newest events of each partition whose stream is one.

    Raises what `statewright_worker.streams.errors.REDIS_FAILED` lists.
    """
    redis = HeldConnection(pool)
    tails: list[Tail] = []
    try:
        for partition in range(partitions):
            reading: Command = ("XREVRANGE", channels.events(partition), "+", "-", "COUNT", length)
            [answer] = await redis.exchange(reading)
            if isinstance(answer, ResponseError):
                if passing(answer):
                    raise answer
                continue
            tails.append(Tail(partition, {sequence_of(entry): _id(fields) for entry, fields in reversed(answer)}))
    finally:
        await redis.close()
    return tails


def _id(fields: list[bytes]) -> str:
    """Return the id of an entry's event, nothing where it is none."""
    body = dict(zip(fields[::2], fields[1::2], strict=True)).get(EVENT_BODY)
    try:
        return str(orjson.loads(body or b"null")["id"])
    except (ValueError, TypeError, KeyError):
        return ""
