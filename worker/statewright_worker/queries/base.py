"""A kind of query: what it reads, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

from asyncpg import Connection

from statewright.protocol.channels import Channels
from statewright.protocol.replies import Reply
from statewright_worker.streams.queries import QueryStream

Asked = TypeVar("Asked")

PAGE_BYTES: Final = 256 * 1024
"""About how many bytes a page of an answer may have; it has one row at least, however large."""


@dataclass(frozen=True, slots=True)
class Looking:
    """What a query is answered with: PostgreSQL, for whoever opens it, and Redis."""

    moment: Callable[[], AbstractAsyncContextManager[Connection]]
    """Opens a connection to PostgreSQL that reads everything as it is at one moment, and writes nothing."""
    redis: QueryStream
    channels: Channels
    partitions: int
    """How many partitions the deployment has."""


class QueryKind(ABC, Generic[Asked]):
    """One kind of query. It has no effect, and holds nobody up."""

    WHEN_TOO_SLOW: ClassVar[str] = "ask again when the database has less to do"
    """What its asker can do when it takes too long."""

    @abstractmethod
    async def answer(self, query: Asked, looking: Looking) -> Reply:
        """Return the reply. Raises what the driver and Redis raise: the asker is told, nobody else suffers from it."""
