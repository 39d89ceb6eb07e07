"""Who owns which partition, and who is alive: short-lived keys that their holder renews."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from statewright.channels import Channels
from statewright.errors import RedisUnavailable
from statewright_worker.publishing.scripts import script_command

LEASE_MILLISECONDS: Final = 1_000
"""After this long without renewal a worker is given up."""

_RENEW: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_ANNOUNCE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('SET', KEYS[2], ARGV[3])
return redis.call('ZCARD', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look round has found."""

    live_workers: int
    lost: set[int]
    """Partitions that this worker believed to hold, and does not."""
    ownerless: set[int]


class Leases:
    """The owner keys of one deployment, as one worker sees and renews them."""

    def __init__(self, redis: Redis, channels: Channels, partitions: int, worker: str) -> None:
        self._redis = redis
        self._channels = channels
        self._partitions = partitions
        self._worker = worker

    async def announce(self) -> None:
        """Say that this worker is alive. Raises RedisUnavailable when Redis does not answer."""
        try:
            await self.look_round(())
        except RedisError as error:
            raise RedisUnavailable(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error

    async def acquire(self, partition: int) -> bool:
        """Become the partition's owner; return False when it has one."""
        key = self._channels.owner(partition)
        return bool(await self._redis.set(key, self._worker, nx=True, px=LEASE_MILLISECONDS))

    async def release(self, partition: int) -> None:
        """Give the partition up, if it is still this worker's."""
        # redis-py declares no types for it.
        run: Callable[..., Awaitable[object]] = self._redis.execute_command
        await run(*script_command(_RELEASE, [self._channels.owner(partition)], self._worker))

    async def look_round(self, held: Iterable[int]) -> Look:
        """Renew what this worker holds, announce it as alive, and see who owns what, in one round trip."""
        mine = sorted(held)
        pipeline = self._redis.pipeline(transaction=False)
        run: Callable[..., object] = pipeline.execute_command
        for partition in mine:
            run(*script_command(_RENEW, [self._channels.owner(partition)], self._worker, LEASE_MILLISECONDS))
        shared = [self._channels.workers, self._channels.partitions]
        run(*script_command(_ANNOUNCE, shared, self._worker, LEASE_MILLISECONDS, self._partitions))
        for partition in range(self._partitions):
            pipeline.exists(self._channels.owner(partition))
        answers = await pipeline.execute()
        renewed, (live, *owned) = answers[: len(mine)], answers[len(mine) :]
        return Look(
            live_workers=live,
            lost={partition for partition, kept in zip(mine, renewed, strict=True) if not kept},
            ownerless={partition for partition, owner in enumerate(owned) if not owner},
        )

    async def leave(self) -> None:
        """Say that this worker is gone, so that the others share its partitions at once."""
        await self._redis.zrem(self._channels.workers, self._worker)
