"""The number of partitions of a deployment: workers announce it in Redis, and clients need it."""

from functools import partial
from typing import Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from statewright.connection import DROPPED, EXCHANGE_SECONDS, HeldConnection, unavailable
from statewright.errors import ConfigurationError, PartitionCountMismatch, RedisUnavailable
from statewright.protocol.channels import Channels
from statewright.settings import ClientSettings

POLL_SECONDS: Final = 0.05


async def announced_partitions(pool: ConnectionPool, settings: ClientSettings) -> int:
    """Return how many partitions the deployment has; wait `answer_timeout` seconds at most until a worker says so.

    Raises ConfigurationError when none does, PartitionCountMismatch when the settings say another number, and
    RedisUnavailable when Redis is away or refuses, which is NotPermitted when the user lacks the right to ask.
    """
    redis = HeldConnection(pool)
    timeout = settings.answer_timeout
    key = Channels(settings.namespace).partitions
    retrying = AsyncRetrying(
        retry=retry_if_result(lambda announced: announced is None),
        wait=wait_fixed(POLL_SECONDS),
        stop=stop_after_delay(timeout),
    )
    try:
        actual = int(await retrying(partial(redis.ask, "GET", key, seconds=min(EXCHANGE_SECONDS, timeout))))
    except RetryError:
        raise ConfigurationError(
            f"no worker has announced itself in namespace {settings.namespace!r} of this Redis within"
            f" {timeout:g} s; start one with `statewright worker` or `statewright dev`"
        ) from None
    except DROPPED as error:
        raise RedisUnavailable(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
    except ResponseError as refusal:
        raise unavailable("Redis refused to tell the number of partitions", refusal) from refusal
    finally:
        await redis.close()
    if settings.partitions not in (None, actual):
        raise PartitionCountMismatch(settings.partitions or 0, actual)
    return actual
