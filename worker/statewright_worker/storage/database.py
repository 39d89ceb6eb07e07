"""Connecting to PostgreSQL: the engine with its pool, and the migrations of the schema."""

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from statewright.errors import ConfigurationError, PartitionCountMismatch
from statewright_worker.starting import ServerAway
from statewright_worker.storage.database_url import DatabaseUrl, parse_database_url
from statewright_worker.storage.meaning import cause_of

# All migrations take the same lock, so that replicas that start together migrate once.
MIGRATION_LOCK: Final = 0x5747_4D49
MIGRATIONS: Final = Path(__file__).parent / "migrations"
POOL_TIMEOUT_SECONDS: Final = 10.0
COMMAND_SECONDS: Final = 30.0
NEXT_SERVER: Final = (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
"""Errors after which the next of several servers is tried."""
AWAY: Final = (
    OSError,
    PoolTimeout,
    asyncpg.InsufficientResourcesError,
    # The driver lost its connection in the middle of an operation.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""Errors that may pass: PostgreSQL is away, starts, stops, has no connection left, or is a standby."""


def create_engine(
    database_url: str,
    pool_size: int,
    *,
    settings: Mapping[str, str] | None = None,
    pooled_transactions: bool = False,
    application: str = "",
    command_timeout: float | None = COMMAND_SECONDS,
) -> AsyncEngine:
    """Return an engine for `database_url`, read as libpq does, whose connections leave transactions to the caller.

    With a `pool_size` of 0 none is kept: each is closed when it is given back. Their sessions have the `settings`,
    unless `pooled_transactions` says that a transaction-mode pooler stands between: its sessions are nobody's own, so
    that each transaction makes its settings itself, and prepared statements do not survive. PostgreSQL shows the
    connections as `statewright`, followed by `application`, unless the URL names another application. A command that
    takes longer than `command_timeout` (seconds) is given up; with None, whoever uses the connections watches them.
    Raises ConfigurationError when the URL is wrong.
    """
    url = parse_database_url(database_url)
    own = {} if pooled_transactions or settings is None else settings
    told = {"application_name": f"statewright {application}".rstrip(), **own, **url.server_settings}
    cached = {"statement_cache_size": 0} if pooled_transactions else {}

    async def connect() -> asyncpg.Connection:
        return await _connect(url, server_settings=told, command_timeout=command_timeout, **cached)

    pool: dict[str, Any] = (
        {"pool_size": pool_size, "max_overflow": 2, "pool_timeout": POOL_TIMEOUT_SECONDS}
        if pool_size
        else {"poolclass": NullPool}
    )
    return create_async_engine(
        # `_connect` reads the URL: SQLAlchemy reads URLs in another way than libpq.
        "postgresql+asyncpg://",
        isolation_level="AUTOCOMMIT",
        connect_args={
            "async_creator_fn": connect,
            **({"prepared_statement_cache_size": 0} if pooled_transactions else {}),
        },
        **pool,
    )


async def _connect(url: DatabaseUrl, **options: Any) -> asyncpg.Connection:
    """Connect to the first server that will do. Each has its own time limit, so that a silent one hides no other."""
    timeout = url.connect_seconds or POOL_TIMEOUT_SECONDS

    async def to(target: str, server: tuple[str | None, int | None]) -> asyncpg.Connection:
        host, port = server
        return await asyncpg.connect(
            url.dsn, host=host, port=port, target_session_attrs=target, timeout=timeout, **options
        )

    # When no server is of the preferred kind, a second round takes any.
    targets = ("standby", "any") if url.target == "prefer-standby" else (url.target,)
    *others, last = product(targets, url.servers)
    for other in others:
        with suppress(*NEXT_SERVER):
            return await to(*other)
    return await to(*last)


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection; an error on it becomes one sentence without the URL's secrets.

    Raises ServerAway when PostgreSQL is not there, and ConfigurationError when it does not let us in or do what we ask.
    """
    with _connection_errors():
        async with engine.connect() as connection:
            yield connection


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except (*AWAY, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        cause = cause_of(error)
        if _is_away(cause):
            said = str(cause) or "it does not answer"
            raise ServerAway(f"cannot reach PostgreSQL (STATEWRIGHT_DATABASE_URL): {said}") from error
        raise ConfigurationError(f"PostgreSQL refuses us (STATEWRIGHT_DATABASE_URL): {cause}") from error


def _is_away(error: BaseException) -> bool:
    """Return whether the error may pass by itself, as opposed to one that a setting must cure."""
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    if "rejected SSL upgrade" in str(error) or isinstance(error, PermissionError):
        return False
    return isinstance(error, AWAY)


async def migrate(engine: AsyncEngine) -> str:
    """Bring the schema to the newest revision, and return it. Safe to call from many places at once.

    Raises what `connected` raises, and ConfigurationError when the schema is newer than this version.
    """
    # The lock is the transaction's own, not the session's: a pooler may give each transaction another session.
    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    async with connected(transactional) as connection, connection.begin():
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        _refuse_a_newer(await _revision(connection))
        await connection.run_sync(lambda plain: command.upgrade(_alembic(plain), "head"))
    return newest_revision()


async def check_schema(engine: AsyncEngine) -> None:
    """Raise ConfigurationError unless the schema is of the newest revision; and what `connected` raises."""
    async with connected(engine) as connection:
        revision = await _revision(connection)
    _refuse_a_newer(revision)
    if revision != newest_revision():
        raise ConfigurationError(
            f"the database's schema is at revision {revision or 'none'}, this version needs {newest_revision()};"
            " run `statewright migrate`"
        )


async def _revision(connection: AsyncConnection) -> str | None:
    return await connection.run_sync(lambda plain: MigrationContext.configure(plain).get_current_revision())


def _refuse_a_newer(revision: str | None) -> None:
    if revision is not None and revision not in {known.revision for known in _scripts().walk_revisions()}:
        raise ConfigurationError(
            f"the database's schema is at revision {revision}, which this version does not know; upgrade this worker"
        )


async def fix_partitions(engine: AsyncEngine, configured: int | None, default: int) -> int:
    """Return the deployment's number of partitions, creating them if this is its first start.

    Raises PartitionCountMismatch when `configured` is another number.
    """
    async with connected(engine) as connection:
        await connection.execute(
            text(
                "INSERT INTO partition (id) SELECT generate_series(0, :count - 1)"
                " WHERE NOT EXISTS (SELECT FROM partition) ON CONFLICT DO NOTHING"
            ),
            {"count": configured or default},
        )
    actual = await known_partitions(engine)
    if configured is not None and configured != actual:
        raise PartitionCountMismatch(configured, actual)
    return actual


async def known_partitions(engine: AsyncEngine) -> int:
    """Return the deployment's number of partitions, 0 before its first start."""
    async with connected(engine) as connection:
        count: int = (await connection.execute(text("SELECT count(*) FROM partition"))).scalar_one()
    return count


def newest_revision() -> str:
    """Return the newest revision of the schema that this version knows."""
    return _scripts().get_current_head() or ""


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(MIGRATIONS))


def _alembic(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config
