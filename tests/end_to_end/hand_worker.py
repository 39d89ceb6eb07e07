"""A worker played by hand: it answers when the test says so, whatever has become of the server meanwhile."""

from uuid import UUID

from redis.asyncio import Redis

from statewright.protocol.channels import REQUEST_ID, REQUEST_REPLY_TO
from tests.deployment import Deployment

ANSWER = b'{"type": "limit", "limit": null}'
"""What answers every request for a limit."""


async def announce(redis: Redis, deployment: Deployment, partitions: int = 1) -> None:
    """Announce the partitions as a worker does, without taking any request, so that requests stay in their streams."""
    await redis.set(deployment.channels.partitions, partitions)


async def requests(redis: Redis, deployment: Deployment, partition: int = 0) -> list[UUID]:
    """Return the ids of the requests of a partition, oldest first."""
    entries = await redis.xrange(deployment.channels.proposals(partition))
    return [UUID(fields[REQUEST_ID].decode()) for _, fields in entries]


async def answer(redis: Redis, deployment: Deployment, partition: int = 0) -> None:
    """Answer all requests of a partition, and delete them."""
    stream = deployment.channels.proposals(partition)
    for entry_id, fields in await redis.xrange(stream):
        client = fields[REQUEST_REPLY_TO].decode()
        await redis.xadd(deployment.channels.replies(client), {fields[REQUEST_ID]: ANSWER})
        await redis.xdel(stream, entry_id)
