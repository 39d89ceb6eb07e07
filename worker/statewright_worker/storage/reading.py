"""Reading beside the batches: a few connections, on which nothing can be written and nothing takes long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from statewright_worker.storage.errors import TooSlow
from statewright_worker.storage.meaning import translated
from statewright_worker.storage.statements import BEGIN_READING

READING_CONNECTIONS: Final = 2
"""How many connections a worker reads with, and so how many queries it answers at a time."""
READING_SECONDS: Final = 6.0
"""How long all statements of a query may take together; PostgreSQL gives each up a little earlier."""


class Reading:
    """PostgreSQL as queries use it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection that reads everything as it is now, and writes nothing.

        Raises TooSlow when it takes longer than READING_SECONDS, or when PostgreSQL says that a statement does, and
        else one of the errors of `storage.errors`.
        """
        with translated():
            try:
                async with asyncio.timeout(READING_SECONDS), self._engine.connect() as connection:
                    driver: asyncpg.Connection = (await connection.get_raw_connection()).driver_connection
                    try:
                        await driver.execute(BEGIN_READING)
                        yield driver
                        await driver.execute("COMMIT")
                    except BaseException:
                        # Nobody knows what it is doing, and a new one costs little.
                        driver.terminate()
                        await connection.invalidate()
                        raise
            except (asyncpg.QueryCanceledError, TimeoutError) as error:
                raise TooSlow(str(error) or f"it took longer than {READING_SECONDS:g} s") from error
