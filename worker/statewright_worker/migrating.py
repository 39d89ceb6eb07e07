"""Bringing a database to the newest schema, as soon as the database is there."""

from typing import Final

import structlog

from statewright_worker.starting import when_there
from statewright_worker.storage import database

MIGRATION_SECONDS: Final = 3_600.0

log = structlog.get_logger()


async def migrate_database(database_url: str, *, pooled_transactions: bool = False, startup_seconds: float = 0) -> str:
    """Bring a database to the newest schema, and return the schema's revision.

    Waits up to `startup_seconds` for a database that is not there yet. Raises ConfigurationError when it is still not
    there by then, or when the URL is wrong.
    """
    engine = database.create_engine(
        database_url,
        pool_size=1,
        pooled_transactions=pooled_transactions,
        application="migrate",
        command_timeout=MIGRATION_SECONDS,
    )

    async def there() -> None:
        async with database.connected(engine):
            pass

    try:
        # The migration itself may take longer than its start.
        await when_there(there, startup_seconds, log.warning)
        return await database.migrate(engine)
    finally:
        await engine.dispose()
