"""The one place where a connection to Redis is made, for clients and workers alike."""

import asyncio
from contextlib import suppress
from typing import Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

DROPPED: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""What is raised when a connection is lost or refused: worth another try, unlike an answer that says no."""

CONNECT_TIMEOUT_SECONDS: Final = 5


def connection_pool(url: str) -> ConnectionPool:
    """Return a pool for `url` (redis://, rediss:// or unix://) that connects when it is first used.

    A command may block for as long as it likes: a dead peer is noticed by keep-alive, not by a read timeout.
    """
    keepalive = {} if url.startswith("unix://") else {"socket_keepalive": True}
    pool: ConnectionPool = ConnectionPool.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT_SECONDS, **keepalive)
    return pool


def until_connected() -> AsyncRetrying:
    """Retry while the connection is dropped, for as long as it takes; the pauses grow to one second."""
    return AsyncRetrying(
        retry=retry_if_exception_type(DROPPED), wait=wait_random_exponential(multiplier=0.05, max=1), reraise=True
    )


async def cancel(task: "asyncio.Task[None]") -> None:
    """Cancel a task that runs for ever, and wait until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
