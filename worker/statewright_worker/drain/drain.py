"""The drain: holds one partition for a while and works through its requests, a batch to a transaction."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from pydantic_core import to_json
from redis.asyncio import Redis
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from statewright.channels import REQUEST_ID, REQUEST_MESSAGE, Channels
from statewright.connection import persist
from statewright.ids import IdSource
from statewright.messages import ErrorCode, ErrorReply, Reply
from statewright_worker.drain.carrying_out import BatchSpoiled, Office, needs_of
from statewright_worker.drain.decoding import Incoming, Malformed, decode
from statewright_worker.drain.lease import Lease
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.instrumentation_policies import event_body
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.publishing.streams import START, DeadLetter, Entry, Publication, Streams
from statewright_worker.storage.batches import Batch, Lane, Storage
from statewright_worker.storage.errors import LeaseLost, Overtaken, Unavailable

BLOCK_MILLISECONDS: Final = 5_000
BATCH_SECONDS: Final = 1.0
"""After this long a batch is closed with what it has decided: PostgreSQL ends transactions that sit idle for longer."""
EVENTS_PER_CATCH_UP: Final = 1_000
SEGMENT_BYTES: Final = 128 * 1024 * 1024
"""So many bytes of messages, or one message, go into a transaction: PostgreSQL takes no statement beyond 1 GB."""

log = structlog.get_logger()

Taken = Incoming | Malformed
Answered = tuple[Taken, Reply]


@dataclass(frozen=True, slots=True)
class DrainTools:
    """What every drain of a worker shares."""

    storage: Storage
    redis: Redis
    channels: Channels
    engine: Engine
    ids: IdSource
    batch_size: int
    max_message_bytes: int
    events_kept: int

    async def drain(self, lease: Lease) -> None:
        """Take the lease's partition up and work through it until the lease ends or is lost."""
        async with AsyncExitStack() as stack:
            streams = Streams(self.redis.connection_pool, self.channels, lease.partition, self.events_kept)
            stack.push_async_callback(streams.close)
            stack.push_async_callback(self.storage.release, lease.partition)
            try:
                lane, sequence = await self.storage.take_up(lease.partition)
                await Drain(self, lease, lane, streams).run(sequence)
            except LeaseLost:
                log.warning("another drain has taken the partition up", partition=lease.partition)


class Drain:
    """One drain on one partition: read, decode, lock, load, decide, write, commit, publish, trim."""

    def __init__(self, tools: DrainTools, lease: Lease, lane: Lane, streams: Streams) -> None:
        self._tools = tools
        self._lease = lease
        self._lane = lane
        self._streams = streams

    async def run(self, sequence: int) -> None:
        """Publish what the previous holder did not, up to `sequence`, then answer requests, oldest first.

        Requests whose answers got lost are still in the stream: the ledger answers them again.
        """
        await self._bring_missing_events(await self._streams.newest_event(), sequence)
        position = START
        while self._lease.held:
            entries = await self._read(position)
            if entries:
                await self._work_through(entries)
                position = entries[-1].id
        await self._streams.trim(position)

    async def _read(self, after: str) -> list[Entry]:
        async with self._lease.waiting():
            return await persist(partial(self._streams.read, after, self._tools.batch_size, BLOCK_MILLISECONDS))
        return []

    async def _work_through(self, entries: Sequence[Entry]) -> None:
        taken = [decode(entry, self._tools.max_message_bytes) for entry in entries]
        for segment in segments(taken):
            rest = segment
            while rest:
                publication, done = await self._decide(rest)
                await self._publish(publication)
                rest = rest[done:]

    async def _decide(self, taken: Sequence[Taken]) -> tuple[Publication, int]:
        """Decide on as many requests as fit in one transaction, at least one; return what to publish, and how many.

        A batch that cannot be written is halved until the guilty request stands alone; only that one is refused.
        """
        try:
            return await self._transact_on_what_is_so(taken)
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:
            if len(taken) > 1:
                return await self._decide(taken[: len(taken) // 2])
            log.exception("a request could not be carried out", entry=taken[0].entry.id)
            return _publication([(taken[0], _refusal(error))]), 1

    async def _transact_on_what_is_so(self, taken: Sequence[Taken]) -> tuple[Publication, int]:
        try:
            return await self._transact_when_available(taken)
        except Overtaken:
            # The second time it sees what it collided with.
            return await self._transact_when_available(taken)

    async def _transact_when_available(self, taken: Sequence[Taken]) -> tuple[Publication, int]:
        try:
            return await self._transact(taken)
        except Unavailable as error:
            log.warning("PostgreSQL is unavailable", error=str(error))
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_random_exponential(multiplier=0.05, max=1),
            stop=lambda _: not self._lease.held,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._transact(taken)
        raise AssertionError("tenacity raises the last failure")

    async def _transact(self, taken: Sequence[Taken]) -> tuple[Publication, int]:
        async with self._tools.storage.batch(self._lane) as batch:
            requests = [one for one in taken if isinstance(one, Incoming)]
            work = await batch.load(needs_of(requests), self._tools.ids)
            answered = await self._carry_out(taken, batch, work)
            await batch.write(work)
        return self._publication(answered, batch.sequence, work), len(answered)

    async def _carry_out(self, taken: Sequence[Taken], batch: Batch, work: UnitOfWork) -> list[Answered]:
        office = Office(self._tools.engine, work, batch.sessions)
        clock = asyncio.get_running_loop().time
        closes = clock() + BATCH_SECONDS
        answered: list[Answered] = []
        for one in taken:
            reply = one.problem if isinstance(one, Malformed) else await office.carry_out(one)
            answered.append((one, reply))
            if clock() > closes:
                break
        return answered

    def _publication(self, answered: Sequence[Answered], follows: int, work: UnitOfWork) -> Publication:
        publication = _publication(answered)
        publication.follows = follows
        publication.events = [
            (sequence, event_body(change, self._lane.partition, sequence))
            for sequence, change in enumerate(work.state_changes, follows + 1)
        ]
        return publication

    async def _publish(self, publication: Publication) -> None:
        ends_with = await persist(partial(self._streams.publish, publication))
        if ends_with is not None:
            await self._bring_missing_events(ends_with, publication.events[-1][0])

    async def _bring_missing_events(self, ends_with: int, up_to: int) -> None:
        """Append the events behind `ends_with` from PostgreSQL, as far back as the stream keeps them."""
        actual: int | None = ends_with
        while actual is not None and actual < up_to:
            ends_with, after = actual, max(actual, up_to - self._tools.events_kept)
            while after < up_to:
                last = min(after + EVENTS_PER_CATCH_UP, up_to)
                changes = await self._tools.storage.changes(self._lane.partition, after, last)
                events = [(sequence, event_body(c, self._lane.partition, sequence)) for sequence, c in changes]
                actual = await self._streams.append_events(ends_with, events) if events else None
                if actual is not None:
                    break
                ends_with = after = last


def _refusal(error: Exception) -> ErrorReply:
    if isinstance(error, BatchSpoiled):
        return error.reply
    message = f"the request could not be carried out: {error}".replace("\x00", "")[:10_000]
    return ErrorReply(code=ErrorCode.NOT_WRITABLE, message=message)


def segments(taken: Sequence[Taken]) -> Iterator[Sequence[Taken]]:
    """Cut before each SetLimit: what was pushed before it is decided under the old limit, the rest under the new.

    Also cut before a segment grows beyond what a statement can carry.
    """
    start = size = 0
    for index, one in enumerate(taken):
        added = len(one.entry.fields.get(REQUEST_MESSAGE, b""))
        sets_limit = isinstance(one, Incoming) and one.request.type == "set_limit"
        if index > start and (sets_limit or size + added > SEGMENT_BYTES):
            yield taken[start:index]
            start, size = index, 0
        size += added
    yield taken[start:]


def _publication(answered: Sequence[Answered]) -> Publication:
    publication = Publication()
    for one, reply in answered:
        if one.reply_to is not None and one.id is not None:
            to_client = publication.replies.setdefault(one.reply_to, {})
            to_client[one.entry.fields[REQUEST_ID]] = to_json(reply, exclude_none=True)
        if reply.type == "error":
            publication.dead_letters.append(DeadLetter(one.entry, reply.message, reply.field))
    return publication
