"""Reaching PostgreSQL: the engine and its pool, and the schema's migrations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from statewright.errors import ConfigurationError, PartitionCountMismatch
from statewright_worker.storage.statements import BATCH_SETTINGS

# One key for everyone who migrates, so that replicas that start together migrate once.
MIGRATION_LOCK: Final = 0x5747_4D49
MIGRATIONS: Final = Path(__file__).parent / "migrations"
POOL_TIMEOUT_SECONDS: Final = 10


def create_engine(
    database_url: str, pool_size: int, *, for_batches: bool = False, pooled_transactions: bool = False
) -> AsyncEngine:
    """Return an engine for `database_url` whose connections leave transactions to the caller.

    `for_batches` gives its connections BATCH_SETTINGS. `pooled_transactions` says that a transaction-mode pooler stands
    between, which prepared statements do not survive. Raises ConfigurationError when the URL is not one of PostgreSQL.
    """
    pooled = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    own = {"server_settings": BATCH_SETTINGS} if for_batches else {}
    return create_async_engine(
        asyncpg_url(database_url),
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=2,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        connect_args={"timeout": POOL_TIMEOUT_SECONDS, **(pooled if pooled_transactions else own)},
    )


def asyncpg_url(database_url: str) -> str:
    """Return the URL with the driver that Statewright uses. Raises ConfigurationError when it cannot be one."""
    try:
        url = make_url(database_url)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "STATEWRIGHT_DATABASE_URL must look like postgresql://user:password@host:5432/database"
        )
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection. Raises ConfigurationError, without the URL's secrets, when the database does not let us in."""
    try:
        connection = await engine.connect()
    except (OSError, DBAPIError, asyncpg.PostgresError, TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        raise ConfigurationError(f"cannot reach PostgreSQL (STATEWRIGHT_DATABASE_URL): {cause}") from error
    try:
        yield connection
    finally:
        await connection.close()


async def migrate(engine: AsyncEngine) -> str:
    """Bring the schema to the newest revision, and return it. Safe to call from many places at once.

    Raises ConfigurationError when the database does not answer.
    """
    async with connected(engine) as connection:
        await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        try:
            await _upgrade(engine)
        finally:
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
    return newest_revision()


async def check_schema(engine: AsyncEngine) -> None:
    """Raise ConfigurationError unless the database answers and its schema is of the newest revision."""
    async with connected(engine) as connection:
        revision = await connection.run_sync(lambda plain: MigrationContext.configure(plain).get_current_revision())
    if revision != newest_revision():
        raise ConfigurationError(
            f"the database's schema is at revision {revision or 'none'}, this version needs {newest_revision()};"
            " run `statewright migrate`"
        )


async def fix_partitions(engine: AsyncEngine, configured: int | None, default: int) -> int:
    """Return the deployment's number of partitions, creating them if this is its first start.

    Raises PartitionCountMismatch when `configured` is another number.
    """
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "INSERT INTO partition (id) SELECT generate_series(0, :count - 1)"
                " WHERE NOT EXISTS (SELECT FROM partition) ON CONFLICT DO NOTHING"
            ),
            {"count": configured or default},
        )
        actual: int = (await connection.execute(text("SELECT count(*) FROM partition"))).scalar_one()
    if configured is not None and configured != actual:
        raise PartitionCountMismatch(configured, actual)
    return actual


def newest_revision() -> str:
    """Return the newest revision of the schema that this version knows."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head() or ""


async def _upgrade(engine: AsyncEngine) -> None:
    async with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        await connection.run_sync(lambda plain: command.upgrade(_alembic(plain), "head"))


def _alembic(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config
