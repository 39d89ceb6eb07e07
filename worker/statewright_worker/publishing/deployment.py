"""Which database a namespace in Redis belongs to."""

from uuid import UUID

from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from statewright.channels import Channels
from statewright.connection import HeldConnection
from statewright.errors import ConfigurationError, RedisUnavailable


async def claim_namespace(pool: ConnectionPool, channels: Channels, deployment: UUID) -> None:
    """Make the namespace the deployment's, unless it is another one's.

    Raises RedisUnavailable when Redis does not answer, and ConfigurationError when the namespace belongs to another
    database: two of them would answer each other's requests.
    """
    redis = HeldConnection(pool)
    try:
        await redis.ask("SET", channels.database, str(deployment), "NX")
        owner = (await redis.ask("GET", channels.database)).decode()
    except (RedisError, OSError) as error:
        raise RedisUnavailable(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
    finally:
        await redis.close()
    if owner != str(deployment):
        raise ConfigurationError(
            f"the namespace {channels.namespace!r} in this Redis belongs to another database (deployment {owner}, and"
            f" STATEWRIGHT_DATABASE_URL names deployment {deployment}); set another STATEWRIGHT_NAMESPACE, or, when the"
            f" other database is gone for good, delete the key {channels.database!r}"
        )
