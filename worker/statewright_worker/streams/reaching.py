"""Reaching Redis: the worker's connections, and the check that there is a Redis which serves.

The check tells errors that may pass from errors that a setting must cure.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError

from statewright.connection import DROPPED, connection_pool
from statewright.errors import ConfigurationError
from statewright_worker.starting import ServerAway

SHOWN_AS: Final = "statewright-worker"
"""How Redis shows a worker's connections."""
ANSWER_SECONDS: Final = 5.0

# These errors will not pass. Elsewhere, the first two count as lost connections.
_REFUSALS: Final = (AuthenticationError, AuthorizationError, ResponseError)


def worker_pool(url: str) -> ConnectionPool:
    """Return a pool that connects when it is first used; the caller disconnects it."""
    return connection_pool(url, shown_as=SHOWN_AS)


@asynccontextmanager
async def open_pool(url: str) -> AsyncIterator[ConnectionPool]:
    """Yield a pool of connections, and disconnect them at the end."""
    pool = worker_pool(url)
    try:
        yield pool
    finally:
        await pool.disconnect()


async def check_redis(pool: ConnectionPool) -> None:
    """Return when Redis answers, lets us in and is a single server.

    Raises ServerAway when it is not there, and ConfigurationError, without the URL's secrets, when a setting is wrong.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            told: dict[str, Any] = await Redis(connection_pool=pool).info("server")
    except NoPermissionError:
        # `check_rights` says so, and names the right.
        return
    except (RedisError, *DROPPED, TimeoutError) as error:
        if isinstance(error, _REFUSALS) or any(isinstance(cause, ssl.SSLError) for cause in _chain(error)):
            raise ConfigurationError(f"Redis refuses us (STATEWRIGHT_REDIS_URL): {error}") from error
        said = str(error) or "it does not answer"
        raise ServerAway(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {said}") from error
    # Redis and Valkey name the field differently.
    mode = told.get("redis_mode") or told.get("server_mode", "standalone")
    if mode != "standalone":
        raise ConfigurationError(
            f"STATEWRIGHT_REDIS_URL leads to a server in {mode} mode, which is not served: name a single Redis, such as"
            " the primary that a Sentinel watches, or an address that always leads to it"
        )


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
