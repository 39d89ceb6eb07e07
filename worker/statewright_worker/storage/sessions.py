"""The database session that a user's rule may use: in the batch's transaction, in a savepoint for its proposal."""

from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, NoReturn

import asyncpg
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from statewright_worker.storage.errors import Away, ConnectionLost, Crossed, NotWritable
from statewright_worker.storage.meaning import is_own_doing, meaning_of


class RuleSession(AsyncSession):
    """A session in the batch's transaction: what a rule writes is kept when its proposal is decided, and undone when
    the proposal fails."""

    async def commit(self) -> None:
        """Send pending changes to the database; they are committed together with the verdict."""
        await self.flush()

    def begin(self) -> NoReturn:
        """Refuse: the transaction has begun already."""
        raise RuntimeError("a rule's session is in a transaction already; use it directly, or begin_nested()")


class RuleSessions:
    """Opens one session per proposal, when a rule first asks for it."""

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection) -> None:
        self._connection = connection
        self._driver = driver
        self._session: RuleSession | None = None

    def open(self) -> AsyncSession:
        """Return the proposal's session; its first statement opens the savepoint."""
        if self._session is None:
            plain = self._connection.sync_connection
            if plain is not None and not plain.in_transaction():
                # The batch's transaction has begun already; this tells SQLAlchemy so, and sends nothing.
                plain.begin()
            options: dict[str, Any] = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
            self._session = RuleSession(bind=self._connection, **options)
        return self._session

    async def keep(self) -> None:
        """Keep what the proposal's rules wrote. Raises NotWritable when the database does not take it."""
        if self._session is not None:
            await _taken(AsyncSession.commit(self._session))
            await self._close()

    async def send(self) -> None:
        """Send what the rules wrote, to be undone. Raises NotWritable when the database does not take it."""
        if self._session is not None:
            await _taken(self._session.flush())

    async def undo(self) -> bool:
        """Undo what the proposal's rules wrote; return whether the batch's transaction can go on.

        It cannot when a rule ran out of time within a statement: then the connection is lost.
        """
        if self._session is None:
            return True
        with suppress(SQLAlchemyError):
            await self._session.rollback()
        await self._close()
        return not self._driver.is_closed()

    def raise_what_is_not_the_rules(self, error: BaseException | None) -> None:
        """Raise the error that a rule met in its session when PostgreSQL or another transaction's lock caused it.

        The rule is not at fault, so the batch will be tried again.
        """
        if isinstance(error, SQLAlchemyError | asyncpg.PostgresError | asyncpg.InterfaceError):
            meaning = meaning_of(error)
            if meaning in (Away, ConnectionLost) or (meaning is Crossed and not is_own_doing(error)):
                raise meaning(str(error)) from error

    async def _close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def _taken(sending: Awaitable[None]) -> None:
    try:
        await sending
    except (IntegrityError, DataError, ProgrammingError) as error:
        raise NotWritable(str(error.orig)) from error
