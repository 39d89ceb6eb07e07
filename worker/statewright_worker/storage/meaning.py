"""What an error of the driver's or of SQLAlchemy's says about PostgreSQL and the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
from sqlalchemy.connectors.asyncio import AsyncAdapt_Error
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from statewright_worker.storage.errors import Away, ConnectionLost, Crossed, NotWritable, StorageError

# What tells of the server, and not of what the batch does.
_AWAY: Final = (
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DatabaseDroppedError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    # A standby, or a server that was told to take no writes.
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
    """Raise what the database raises as what it says about PostgreSQL and the batch."""
    try:
        yield
    except (*_AWAY, *LOST, asyncpg.PostgresError, SQLAlchemyError) as error:
        raise meaning_of(error)(said(error)) from error


def meaning_of(error: BaseException) -> type[StorageError]:
    """Return what an error says."""
    cause = cause_of(error)
    if isinstance(cause, _AWAY):
        return Away
    if isinstance(cause, _CROSSED):
        return Crossed
    # A value that does not fit is an InterfaceError of the driver's too.
    lost = isinstance(cause, LOST) and not isinstance(cause, ValueError)
    if lost or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return ConnectionLost
    return NotWritable


def is_own_doing(error: BaseException) -> bool:
    """Return whether what crossed a statement's way is the statement itself: it took too long, or repeats a row."""
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
