"""The drain: works through one partition's requests while it is held, a batch to a transaction."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

import structlog

from statewright.ids import IdSource
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE
from statewright.protocol.replies import ErrorReply
from statewright_worker.drain.agenda import Agenda, due_request
from statewright_worker.drain.attempts import Attempts, Decoded, HoldEnded
from statewright_worker.drain.decoding import Malformed, Place, decode, is_nudge
from statewright_worker.drain.feed import Feed
from statewright_worker.drain.flood import Flood
from statewright_worker.drain.suspicion import Suspicion
from statewright_worker.facts.batch import Batch
from statewright_worker.facts.parked import count_parked
from statewright_worker.facts.timers import due_timers
from statewright_worker.holding.hold import Hold
from statewright_worker.observing.outages import Outage
from statewright_worker.orchestration.engine import Engine
from statewright_worker.orchestration.records import TimerKind
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.requests.answering import answer, asked_by
from statewright_worker.requests.base import AnyReply, InBatch, Incoming, LateAnswer, encoded
from statewright_worker.requests.forbidding import refusals
from statewright_worker.requests.kinds import kind_of
from statewright_worker.storage.errors import HoldLost
from statewright_worker.storage.transactions import Fence, Storage
from statewright_worker.streams.dead_letters import DeadLetter
from statewright_worker.streams.errors import REDIS_SILENT
from statewright_worker.streams.partition import PartitionStreams, Publication
from statewright_worker.streams.proposals import START, Entry

BLOCK_MILLISECONDS: Final = 2_000
OWING_MILLISECONDS: Final = 100
"""How long a read waits for requests while Redis is full: nothing tells a drain that a reader has made room."""
BATCH_SECONDS: Final = 1.0
"""A batch decides no more after this long, and is written: PostgreSQL ends transactions that are idle for longer."""
SEGMENT_BYTES: Final = 16 * 1024 * 1024
"""How many bytes of messages and answers a transaction takes, about; one message fits in any case."""
YIELD_BYTES: Final = 128 * 1024
"""After decoding so many bytes, a drain lets the event loop turn."""
FEED_PAUSE_SECONDS: Final = 1.0
DUE_AT_ONCE: Final = 128
"""How many due things a drain reads at once: parked proposals have messages, which take memory."""
LOOK_AFTER_SECONDS: Final = 1.0
"""How often a drain looks at the sizes of its streams while there is work."""

log = structlog.get_logger()

Answered = tuple[Decoded, AnyReply | None]


class Outcome(NamedTuple):
    """What comes out of a transaction: what to publish, how many requests it has answered, and which parked ones."""

    publication: Publication
    done: int
    told: Sequence[UUID]


@dataclass(frozen=True, slots=True)
class DrainTools:
    """What every drain of a worker shares."""

    storage: Storage
    streams: Callable[[int], PartitionStreams]
    engine: Engine
    ids: IdSource
    partitions: int
    batch_size: int
    max_message_bytes: int
    max_backlog: int
    max_backlog_bytes: int
    max_parked: int
    forbidden: frozenset[str]
    """What producers may not do; see `requests.forbidding`."""
    prunes_after: timedelta | None
    """How long trees must be unchanged that producers may prune."""
    postgresql: Outage
    redis: Outage

    async def drain(self, hold: Hold) -> None:
        """Take the hold's partition up and work through it until the hold ends or is lost."""
        async with AsyncExitStack() as stack:
            streams = self.streams(hold.partition)
            stack.push_async_callback(streams.close)
            stack.push_async_callback(self.storage.release, hold.partition)
            attempts = Attempts(hold, self.storage.can_write, postgresql=self.postgresql, redis=self.redis)
            stack.callback(attempts.end)
            try:
                await Drain(self, hold, streams, attempts).run()
            except HoldLost as lost:
                log.warning("a partition is lost", partition=hold.partition, reason=str(lost))
            except HoldEnded:
                log.debug("a partition is given back", partition=hold.partition)


class Drain:
    """One drain on one partition: read, decode, lock, load, decide, write, commit, publish, trim."""

    def __init__(self, tools: DrainTools, hold: Hold, streams: PartitionStreams, attempts: Attempts) -> None:
        self._tools = tools
        self._hold = hold
        self._streams = streams
        self._attempts = attempts
        self._place = Place(hold.partition, tools.partitions, tools.max_message_bytes)
        self._flood = Flood(streams, self._place, tools.max_backlog, tools.max_backlog_bytes)
        self._clock = asyncio.get_running_loop().time
        self._answered = START
        """The last answered request; the stream may lose everything up to it."""
        self._fit = max(SEGMENT_BYTES // tools.max_message_bytes, 1)
        self._count = min(tools.batch_size, self._fit)
        """How many requests the next read takes; it grows while requests are small."""
        self._bring_at = self._look_at = 0.0
        self._agenda = Agenda(self._clock)
        self._parked = 0
        """How many proposals of the partition are parked."""
        self._told: set[UUID] = set()
        """Parked proposals whose answers were published, and whose rows are still there."""
        self._fence: Fence
        self._feed: Feed

    async def run(self) -> None:
        """Take the partition up, and answer requests, oldest first; publish what the previous holder did not.

        Requests whose answers got lost are still in the stream: the ledger answers them again. Raises HoldLost or
        HoldEnded.
        """
        self._hold.busy()
        await self._attempts.until_postgresql_takes_it(self._take_up)
        suspicion = Suspicion(self._streams.proposals, self._attempts) if self._hold.vanished else None
        while self._hold.held:
            if self._agenda.is_due():
                await self._work_through_what_is_due()
            entries = await self._read()
            if entries:
                if suspicion is not None:
                    await self._work_through_with(suspicion, entries)
                    suspicion = None
                else:
                    await self._work_through(entries)
            elif self._streams.owes:
                await self._settle(self._answered)
            await self._keep_up()
        await self._settle(self._answered)

    async def _take_up(self) -> None:
        taken_up = await self._tools.storage.take_up(self._hold.partition)
        self._fence = taken_up.fence
        self._parked = await count_parked(self._tools.storage, self._hold.partition)
        self._feed = Feed(self._tools.storage, self._streams.events, taken_up)
        await self._attempts.until_redis_takes_it(self._feed.begin)

    async def _read(self) -> list[Entry]:
        waits = self._agenda.milliseconds(BLOCK_MILLISECONDS)
        if self._streams.owes:
            waits = min(waits, OWING_MILLISECONDS)
        elif self._feed.is_behind and self._clock() >= self._bring_at:
            waits = 1
        with self._hold.waiting():
            entries = await self._attempts.until_redis_takes_it(partial(self._read_once, waits))
            self._adapt(max([len(entry.fields.get(REQUEST_MESSAGE, b"")) for entry in entries], default=0))
            if len(entries) == self._count:
                self._count = min(4 * self._count, self._fit, self._tools.batch_size)
            return entries
        return []

    async def _read_once(self, waits: int) -> list[Entry]:
        try:
            return await self._streams.proposals.read(self._answered, self._answered, self._count, waits)
        except REDIS_SILENT:
            # The read may have been too large for the time limit.
            self._count = max(self._count // 10, 1)
            raise

    def _adapt(self, largest: int) -> None:
        """Let the next read take as many as stay within bounds if they, or their answers, are as large as `largest`."""
        self._fit = max(SEGMENT_BYTES // max(largest, 1), 1)
        self._count = min(self._count, self._fit)

    async def _work_through_with(self, suspicion: Suspicion, entries: Sequence[Entry]) -> None:
        async for some in suspicion.portions(entries):
            await self._work_through(some)

    async def _work_through(self, entries: Sequence[Entry]) -> None:
        await self._carry_through(await self._decode(entries))
        # The last entries may be nudges.
        self._answered = entries[-1].id

    async def _work_through_what_is_due(self) -> None:
        """Carry out what is due as one reads it: before the requests that were pushed meanwhile."""
        self._hold.busy()
        partition, count = self._hold.partition, min(self._fit, DUE_AT_ONCE)
        look = partial(due_timers, self._tools.storage, partition, count)
        due, again_seconds = await self._attempts.until_postgresql_takes_it(look)
        self._adapt(max([len(timer.message) for timer in due if timer.message is not None], default=0))
        self._agenda.looked(again_seconds)
        await self._carry_through([due_request(timer, self._place, self._told) for timer in due])
        self._told.difference_update([timer.name.id for timer in due if timer.decided])

    async def _carry_through(self, decoded: Sequence[Decoded]) -> None:
        for segment in segments(decoded):
            rest = segment
            while rest:
                outcome = await self._attempts.carry_through(rest, self._transact)
                last = rest[outcome.done - 1]
                # What has come due stands in no stream.
                answered = last.entry.id if last.timer is None else self._answered
                await self._publish(outcome.publication, answered)
                self._told.update(outcome.told)
                self._answered = answered
                self._adapt(outcome.publication.largest_reply)
                for one in rest[: outcome.done]:
                    self._attempts.condemned.pop(one.entry.id, None)
                rest = rest[outcome.done :]
                if rest and not self._hold.held:
                    raise HoldEnded

    async def _decode(self, entries: Sequence[Entry]) -> list[Decoded]:
        decoded: list[Decoded] = []
        size = 0
        for entry in entries:
            one = decode(entry, self._place)
            if isinstance(one, Malformed) and is_nudge(entry):
                self._agenda.nudged()
                continue
            decoded.append(one)
            size += len(entry.fields.get(REQUEST_MESSAGE, b""))
            if size > YIELD_BYTES:
                self._hold.progressed()
                await asyncio.sleep(0)
                size = 0
        return decoded

    async def _transact(self, decoded: Sequence[Decoded]) -> Outcome:
        condemned: Mapping[str, ErrorReply] = self._attempts.condemned
        requests = [one for one in decoded if isinstance(one, Incoming)]
        if self._tools.forbidden:
            condemned = {**condemned, **refusals(requests, self._tools.forbidden)}
        asked = asked_by(requests, self._tools.engine, condemned)
        async with self._tools.storage.transaction(self._fence.partition) as transaction:
            batch = Batch(transaction, self._fence)
            read_at = self._clock()
            work = await batch.load(asked, self._tools.ids)
            self._hold.progressed()
            if batch.sequence >= self._feed.committed:
                answered, late = await self._carry_out(decoded, batch, work, condemned)
                await batch.write(work)
        if batch.sequence < self._feed.committed:
            await self._feed.went_back(batch.sequence)
            return await self._transact(decoded)
        if work.waiting.has_changed:
            self._agenda.set(work.waiting.next_due, work.now, read_at)
            self._parked += len(work.waiting.added) - len(work.waiting.removed)
        return self._outcome(answered, late, batch.sequence, work)

    async def _carry_out(
        self, decoded: Sequence[Decoded], batch: Batch, work: UnitOfWork, condemned: Mapping[str, ErrorReply]
    ) -> tuple[list[Answered], list[LateAnswer]]:
        engine, read_back = self._tools.engine, self._feed.read_back
        room = self._tools.max_parked - self._parked
        within = InBatch(
            engine,
            work,
            batch.sessions,
            self._hold.partition,
            batch.sequence,
            read_back,
            room,
            self._tools.prunes_after,
        )
        closes = self._clock() + BATCH_SECONDS
        answered: list[Answered] = []
        for one in decoded:
            if isinstance(one, Malformed):
                reply: AnyReply | None = one.problem
            else:
                reply = await answer(one, within, condemned.get(one.entry.id) if condemned else None)
            answered.append((one, reply))
            # The rules of each proposal may take up to their time limit.
            self._hold.progressed()
            if self._clock() > closes:
                break
        return answered, within.late

    def _outcome(
        self, answered: Sequence[Answered], late: Sequence[LateAnswer], sequence: int, work: UnitOfWork
    ) -> Outcome:
        publication = _publication(answered, late)
        if work.waiting.has_changed:
            publication.wakes = work.waiting.woken
        feed, changes = self._feed, work.state_changes
        # Any numbers between come from our own transaction, the answer to whose commit was lost.
        follows_on = sequence == feed.committed and not feed.is_behind
        feed.wrote(sequence + len(changes))
        if changes and follows_on:
            publication.follows = feed.ends_with or 0
            publication.events = feed.events_of(changes, sequence)
        publication.erased = self._streams.events.that_may_be_kept(work.deleting.numbers_gone, sequence)
        return Outcome(publication, len(answered), work.waiting.answered)

    async def _publish(self, publication: Publication, last: str) -> None:
        appended = await self._attempts.until_redis_takes_it(partial(self._streams.publish, publication))
        if appended is not None:
            await self._feed.appended(appended)
        if self._streams.owes:
            await self._settle(last)

    async def _settle(self, answered: str) -> None:
        """Delete what is answered, and send what Redis had no room for.

        When Redis is full, answered requests are deleted before their answers are sent: nothing else makes room. When
        that frees too little, the drain does not wait: it answers the next requests, which makes more room. If this
        worker ends before the answers are sent, the ledger has them for clients that ask again.
        """
        self._attempts.owing(await self._attempts.until_redis_takes_it(partial(self._streams.settle, answered)))

    async def _keep_up(self) -> None:
        """Do the work between batches: append missing events, and keep the streams within their bounds."""
        now = self._clock()
        if self._feed.is_behind and now >= self._bring_at and not self._streams.owes:
            brought = await self._attempts.aside(self._feed.bring_some)
            if brought:
                self._hold.progressed()
            if not brought or self._feed.ends_with is None:
                self._bring_at = now + FEED_PAUSE_SECONDS
        if now >= self._look_at:
            self._look_at = now + LOOK_AFTER_SECONDS
            await self._attempts.aside(self._look_after)

    async def _look_after(self) -> None:
        await self._streams.events.keep_small()
        await self._flood.stem(self._answered)


def segments(decoded: Sequence[Decoded]) -> Iterator[Sequence[Decoded]]:
    """Yield the requests in segments, each of which fits one transaction."""
    start = size = 0
    is_alone = False
    for index, one in enumerate(decoded):
        added = len(one.entry.fields.get(REQUEST_MESSAGE, b""))
        was_alone, is_alone = is_alone, False
        if isinstance(one, Incoming):
            kind = kind_of(one.request)
            added += kind.answer_bytes
            is_alone = kind.is_alone
        if index > start and (is_alone or was_alone or size + added > SEGMENT_BYTES):
            yield decoded[start:index]
            start, size = index, 0
        size += added
    yield decoded[start:]


def _publication(answered: Sequence[Answered], late: Sequence[LateAnswer]) -> Publication:
    publication = Publication()
    for one, reply in answered:
        if reply is None or (one.timer is not None and reply.type == "parked"):
            # Whose proposal is parked has heard so.
            continue
        if one.reply_to is not None and one.id is not None:
            body = encoded(reply)
            publication.largest_reply = max(publication.largest_reply, len(body))
            publication.replies.setdefault(one.reply_to, []).append((one.entry.fields[REQUEST_ID], body))
        if reply.type == "error" and (one.timer is None or one.timer.kind is TimerKind.PARKED):
            publication.dead_letters.append(DeadLetter(one.entry, reply.message, reply.field))
    # Behind the others: a proposal that was parked and then answered in one batch has two answers, of which the last
    # one counts.
    for reply_to, request_id, told in late:
        body = encoded(told)
        publication.replies.setdefault(reply_to, []).append((str(request_id).encode(), body))
    return publication
