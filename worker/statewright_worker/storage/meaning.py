"""What an error of the driver or of SQLAlchemy means for PostgreSQL and for the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
from sqlalchemy.connectors.asyncio import AsyncAdapt_Error
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from statewright_worker.storage.errors import Away, ConnectionLost, Crossed, NotWritable, StorageError

# Errors that concern the server, and not what the batch does.
_AWAY: Final = (
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DatabaseDroppedError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # A standby, or a server that is set to take no writes.
    asyncpg.ReadOnlySQLTransactionError,
    PoolTimeout,
)
LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # The driver lost its connection in the middle of an operation.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_CROSSED: Final = (
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.UniqueViolationError,
)
_OWN_DOING: Final = (asyncpg.UniqueViolationError, asyncpg.QueryCanceledError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise each error of the database as the StorageError that says what it means."""
    try:
        yield
    except (*_AWAY, *LOST, asyncpg.PostgresError, SQLAlchemyError) as error:
        raise meaning_of(error)(said(error)) from error


def meaning_of(error: BaseException) -> type[StorageError]:
    """Return the class that says what an error means."""
    cause = cause_of(error)
    if isinstance(cause, _AWAY):
        return Away
    if isinstance(cause, _CROSSED):
        return Crossed
    # The driver also raises InterfaceError for a value that does not fit its column.
    lost = isinstance(cause, LOST) and not isinstance(cause, ValueError)
    if lost or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return ConnectionLost
    return NotWritable


def is_own_doing(error: BaseException) -> bool:
    """Return whether a statement failed by its own doing: it took too long, or writes a row that exists."""
    return isinstance(cause_of(error), _OWN_DOING)


def said(error: BaseException) -> str:
    """Return the error in one line."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


def cause_of(error: BaseException) -> BaseException:
    """Return what the driver raised, without SQLAlchemy's wrappings."""
    while isinstance(error, DBAPIError | AsyncAdapt_Error):
        wrapped = error.orig if isinstance(error, DBAPIError) else error.__cause__
        if wrapped is None:
            break
        error = wrapped
    return error
