"""To which namespace and which deployment the database belongs."""

from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from statewright.errors import ConfigurationError
from statewright_worker.storage.database import connected

_CLAIM: Final = text("INSERT INTO deployment (namespace) VALUES (:namespace) ON CONFLICT DO NOTHING")
_READ: Final = text("SELECT id, namespace FROM deployment")


async def claim_database(engine: AsyncEngine, namespace: str) -> UUID:
    """Record at the first start that the database belongs to the namespace; return the deployment's id.

    Raises ConfigurationError when it belongs to another namespace: two of them would fight over the partitions, and
    each would publish the other's events.
    """
    async with connected(engine) as connection:
        await connection.execute(_CLAIM, {"namespace": namespace})
        found = (await connection.execute(_READ)).one()
    if found.namespace != namespace:
        raise ConfigurationError(
            f"the database of STATEWRIGHT_DATABASE_URL belongs to the namespace {found.namespace!r}, and"
            f" STATEWRIGHT_NAMESPACE is {namespace!r}; give each namespace a database of its own"
        )
    deployment: UUID = found.id
    return deployment
