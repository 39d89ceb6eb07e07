"""The database to which a namespace in Redis belongs."""

from typing import Final
from uuid import UUID

from redis.asyncio import ConnectionPool
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from statewright.connection import DROPPED, HeldConnection, passing
from statewright.errors import ConfigurationError
from statewright.protocol.channels import Channels
from statewright_worker.starting import ServerAway
from statewright_worker.streams.scripts import script_command

# The first write frees memory or does nothing, because a full Redis refuses no script that has begun to write.
_CLAIM: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], ARGV[1])
end
return false
"""


async def claim_namespace(pool: ConnectionPool, channels: Channels, deployment: UUID) -> None:
    """Record that the namespace belongs to the deployment, unless it belongs to another one.

    Raises ServerAway when Redis is not there or takes nothing for now, and ConfigurationError when it refuses us, or
    when the namespace belongs to another database: two of them would answer each other's requests.
    """
    redis = HeldConnection(pool)
    try:
        # Read first, and written only when it is missing: so a worker can also start while Redis takes no writes.
        named = await redis.ask("GET", channels.database)
        if named is None:
            await _claim(redis, channels.database, str(deployment))
            named = await redis.ask("GET", channels.database)
    except (*DROPPED, ResponseError) as error:
        if isinstance(error, NoPermissionError) or (isinstance(error, ResponseError) and not passing(error)):
            raise ConfigurationError(f"Redis refuses us (STATEWRIGHT_REDIS_URL): {error}") from error
        raise ServerAway(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
    finally:
        await redis.close()
    if named.decode() != str(deployment):
        raise ConfigurationError(
            f"the namespace {channels.namespace!r} in this Redis belongs to another database: to deployment"
            f" {named.decode()}, while STATEWRIGHT_DATABASE_URL names deployment {deployment}; set another"
            " STATEWRIGHT_NAMESPACE, or, when the other database is gone for good, delete the key"
            f" {channels.database!r}"
        )


async def _claim(redis: HeldConnection, key: str, deployment: str) -> None:
    try:
        await redis.ask("SET", key, deployment, "NX")
    except OutOfMemoryError:
        # Redis may be full of requests, and then nobody makes room unless a worker starts.
        await redis.ask(*script_command(_CLAIM, [key], deployment))
