"""Lifetimes: every reply stream ends some time, whoever crashed before it could say when."""

from typing import Final

from redis.asyncio import Redis

from statewright.channels import Channels

SCANNED_AT_A_TIME: Final = 500
NO_LIFETIME: Final = -1


async def give_lifetimes(redis: Redis, channels: Channels, seconds: int) -> int:
    """Let reply streams that have no lifetime end in `seconds`; return how many there were. Raises RedisError."""
    given = 0
    async for stream in redis.scan_iter(match=channels.replies("*"), count=SCANNED_AT_A_TIME):
        if await redis.ttl(stream) == NO_LIFETIME:
            await redis.expire(stream, seconds)
            given += 1
    return given
