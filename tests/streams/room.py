"""The streams of one partition, on a Redis of the test's own that it may fill up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from statewright.connection import Command, connection_pool
from statewright.protocol.channels import Channels
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.partition import PartitionStreams, Publication
from tests.deployment import Deployment
from tests.end_to_end.own_redis import own_redis


@dataclass
class Room:
    """What the drain of partition 0 has of Redis, and the test's own connection to it."""

    streams: PartitionStreams
    redis: Redis
    channels: Channels

    async def fill(self) -> None:
        """Let Redis take nothing more."""
        await self.redis.config_set("maxmemory", 1)

    async def make_room(self) -> None:
        await self.redis.config_set("maxmemory", 0)


@asynccontextmanager
async def streams_room(deployment: Deployment, bounds: StreamBounds | None = None) -> AsyncIterator[Room]:
    async with own_redis(deployment) as own:
        pool = connection_pool(deployment.redis_url)
        streams = PartitionStreams(pool, deployment.channels, 0, bounds or StreamBounds())
        try:
            yield Room(streams, own.redis, deployment.channels)
        finally:
            await streams.close()
            await pool.disconnect()


def answers(count: int, size: int, client: str = "raw") -> Publication:
    return Publication(replies={client: [(b"%d" % number, b"x" * size) for number in range(count)]})


def name_and_key(command: Command) -> tuple[object, object]:
    """Return what a command does, and to which key: of a script the first one."""
    return (command[0], command[3] if command[0] == "EVAL" else command[1])
