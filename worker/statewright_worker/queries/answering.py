"""Answering queries: a worker takes a few at a time from the common stream, and reads what they ask for.

Nothing here may hold up or end what partitions wait for: whatever goes wrong, queries are refused, and lanes go on.
"""

import asyncio
from contextlib import suppress
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from pydantic_core import to_json

from statewright.protocol.channels import Channels
from statewright.protocol.queries import Query, query_from
from statewright.protocol.replies import ErrorCode, ErrorReply, Reply
from statewright_worker.observing.outages import Outage
from statewright_worker.queries.base import Looking
from statewright_worker.queries.kinds import kind_of
from statewright_worker.storage.errors import Away, ConnectionLost, StorageError, TooSlow
from statewright_worker.storage.reading import READING_CONNECTIONS, Reading
from statewright_worker.streams.entries import BadEntry, client_of, id_of, message_of
from statewright_worker.streams.errors import REDIS_FAILED
from statewright_worker.streams.queries import QueryStream, Waiting

BLOCK_MILLISECONDS: Final = 1_000
AGAIN_SECONDS: Final = 1.0
STOP_SECONDS: Final = 4.0

log = structlog.get_logger()


class _Asked(NamedTuple):
    """A query, its id, and the client that waits for the answer."""

    id: UUID
    client: str
    query: Query


class Answering:
    """Answers the queries of the deployment together with the other workers."""

    def __init__(
        self,
        stream: QueryStream,
        reading: Reading,
        channels: Channels,
        partitions: int,
        max_message_bytes: int,
        *,
        redis: Outage,
    ) -> None:
        self._stream = stream
        self._reading = reading
        self._channels = channels
        self._partitions = partitions
        self._max_message_bytes = max_message_bytes
        self._redis = redis
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, until: asyncio.Event) -> None:
        """Answer queries until `until` is set; then finish those under way."""
        taking = asyncio.create_task(self._take_for_ever())
        await until.wait()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        unfinished = self._under_way
        if unfinished:
            _, unfinished = await asyncio.wait(unfinished, timeout=STOP_SECONDS)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self._stream.close()

    async def _take_for_ever(self) -> None:
        while True:
            try:
                await self._take()
            except Exception as error:
                # Perhaps Redis is away, or its user may not read queries: proposals must not suffer from it.
                self._redis.failed(error, self)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self._redis.over(self)

    async def _take(self) -> None:
        free = READING_CONNECTIONS - len(self._under_way)
        if not free:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            return
        # No more than can be read at once: the others are for other workers.
        for waiting in await self._stream.read(free, BLOCK_MILLISECONDS):
            task = asyncio.create_task(self._answer(waiting))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _answer(self, waiting: Waiting) -> None:
        try:
            client, request_id, reply = await self._replied(waiting)
            sent = None if request_id is None or reply is None else (str(request_id).encode(), _encoded(reply))
            await self._stream.answer(waiting, client, sent)
        except Exception as error:
            # It is claimed again, by this worker or another one, as long as somebody waits for it.
            self._redis.failed(error, self)

    async def _replied(self, waiting: Waiting) -> tuple[str | None, UUID | None, Reply | None]:
        client: str | None = None
        request_id: UUID | None = None
        try:
            client = client_of(waiting.entry)
            request_id = id_of(waiting.entry)
            query = message_of(waiting.entry, self._max_message_bytes, query_from)
        except BadEntry as bad:
            return client, request_id, bad.problem
        if client is None or waiting.age > query.seconds:
            # Nobody waits for the answer.
            return None, None, None
        return client, request_id, await self._looked(query)

    async def _looked(self, query: Query) -> Reply:
        try:
            return await self._look(query)
        except REDIS_FAILED:
            raise
        except TooSlow as slow:
            message = f"the query took too long ({slow}) and was given up; {kind_of(query).WHEN_TOO_SLOW}"
            return ErrorReply(code=ErrorCode.QUERY_TOO_SLOW, message=message)
        except StorageError as problem:
            message = f"PostgreSQL does not answer queries of this worker: {problem}"
            return ErrorReply(code=ErrorCode.QUERY_FAILED, message=message)
        except Exception as error:
            log.exception("a query failed", query=query.type)
            message = f"the query failed in the worker, whose log says more: {type(error).__name__}"
            return ErrorReply(code=ErrorCode.QUERY_FAILED, message=message)

    async def _look(self, query: Query) -> Reply:
        looking = Looking(self._reading.moment, self._stream, self._channels, self._partitions)
        for _ in range(READING_CONNECTIONS):
            # Each idle connection may have been broken for long. A query changes nothing, so it can be asked again.
            with suppress(Away, ConnectionLost):
                return await kind_of(query).answer(query, looking)
        return await kind_of(query).answer(query, looking)


def _encoded(reply: Reply) -> bytes:
    return to_json(reply, exclude_none=True)
