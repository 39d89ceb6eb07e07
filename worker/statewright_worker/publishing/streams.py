"""The streams of a partition as its drain uses them: read requests, publish answers and events, trim."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.channels import (
    DEAD_LETTER_FIELD,
    DEAD_LETTER_REASON,
    REPLY_STREAM_TTL_SECONDS,
    Channels,
    sequence_of,
)
from statewright.connection import (
    EXCHANGE_SECONDS,
    Argument,
    Command,
    HeldConnection,
    accepted,
    entries_of,
    reading,
    trimming,
)
from statewright_worker.publishing.scripts import script_command

START: Final = "0-0"
"""Before the first entry of every stream."""
DEAD_LETTERS_KEPT: Final = 10_000

# Appends events only where the stream ends with the sequence that the worker believes it ends with; otherwise tells
# where it ends, and the worker brings what is missing. So a stream has neither gaps nor duplicates, whoever crashed.
_APPEND_EVENTS: Final = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local ends_with = newest and string.match(newest[1], '^%d+') or '0'
if ends_with ~= ARGV[1] then return ends_with end
for i = 3, #ARGV, 2 do
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], ARGV[i] .. '-0', 'event', ARGV[i + 1])
end
return false
"""


class Entry(NamedTuple):
    """A request as it lies in its stream. `id` is `<milliseconds>-<number>`, the time being Redis' own."""

    id: str
    fields: Mapping[bytes, bytes]


SequencedEvent = tuple[int, bytes]
"""An event's sequence number and its JSON."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that could not be carried out, why, and which field was to blame."""

    entry: Entry
    reason: str
    field: str | None

    def fields(self) -> dict[bytes, bytes]:
        """Return the letter as a stream entry: the original fields, and what was wrong with them."""
        wrong = {DEAD_LETTER_REASON: self.reason.encode(), DEAD_LETTER_FIELD: (self.field or "").encode()}
        return {**self.entry.fields, **wrong}


@dataclass(slots=True)
class Publication:
    """What a batch tells the world, once it is committed."""

    follows: int = 0
    """The sequence number before that of the first event."""
    events: list[SequencedEvent] = field(default_factory=list)
    replies: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    """Per client, the answers by request id."""
    dead_letters: list[DeadLetter] = field(default_factory=list)


class Streams:
    """Redis as the drain of one partition uses it."""

    def __init__(self, pool: ConnectionPool, channels: Channels, partition: int, events_kept: int) -> None:
        self._redis = HeldConnection(pool)
        self._channels = channels
        self._proposals = channels.proposals(partition)
        self._events = channels.events(partition)
        self._dead_letters = channels.dead_letters(partition)
        self._events_kept = events_kept

    async def close(self) -> None:
        """Give the connection back."""
        await self._redis.close()

    async def read(self, after: str, count: int, block_milliseconds: int) -> list[Entry]:
        """Delete the requests up to `after`, which are answered, and return up to `count` of those behind it.

        Waits for the first one, at most that long.
        """
        commands = [reading(self._proposals, after, count, block_milliseconds)]
        if after != START:
            commands.insert(0, trimming(self._proposals, after))
        # In one round trip: a request whose answer is out must not be carried out again by whoever comes after a crash.
        answers = await self._redis.exchange(*commands, seconds=block_milliseconds / 1_000 + EXCHANGE_SECONDS)
        return [Entry(entry_id.decode(), fields) for entry_id, fields in entries_of(accepted(answers)[-1])]

    async def publish(self, publication: Publication) -> int | None:
        """Send events, dead letters and answers, in this order, in one round trip.

        Returns None, or the sequence number that the event stream ends with when that is not the expected one; then no
        event was sent.
        """
        answers = await self._redis.exchange(*self._commands(publication))
        for answer in answers:
            if isinstance(answer, ResponseError) and not _is_known_already(answer):
                raise answer
        return _ends_with(answers[0]) if publication.events else None

    async def append_events(self, ends_with: int, events: Sequence[SequencedEvent]) -> int | None:
        """Append events to a stream that ends with the sequence number `ends_with`.

        Returns None, or what the stream ends with when that is something else; then nothing was appended.
        """
        return _ends_with(await self._redis.ask(*self._appending(ends_with, events)))

    async def newest_event(self) -> int:
        """Return the sequence number that the event stream ends with, 0 when it is empty."""
        newest = await self._redis.ask("XREVRANGE", self._events, "+", "-", "COUNT", 1)
        return sequence_of(newest[0][0]) if newest else 0

    async def trim(self, up_to: str) -> None:
        """Delete the requests up to and including the entry `up_to`."""
        if up_to != START:
            await self._redis.ask(*trimming(self._proposals, up_to))

    def _commands(self, publication: Publication) -> Iterator[Command]:
        if publication.events:
            yield self._appending(publication.follows, publication.events)
        for letter in publication.dead_letters:
            # A dead letter keeps its request's id, so that Redis refuses it the second time.
            limit = ("MAXLEN", DEAD_LETTERS_KEPT)
            yield ("XADD", self._dead_letters, *limit, letter.entry.id, *_flat(letter.fields().items()))
        for client, answers in publication.replies.items():
            stream = self._channels.replies(client)
            yield ("XADD", stream, "*", *_flat(answers.items()))
            yield ("EXPIRE", stream, REPLY_STREAM_TTL_SECONDS)

    def _appending(self, ends_with: int, events: Sequence[SequencedEvent]) -> Command:
        return script_command(_APPEND_EVENTS, [self._events], ends_with, self._events_kept, *_flat(events))


def _flat(pairs: Iterable[tuple[Argument, Argument]]) -> Iterator[Argument]:
    return chain.from_iterable(pairs)


def _ends_with(answer: bytes | None) -> int | None:
    return None if answer is None else int(answer)


def _is_known_already(error: ResponseError) -> bool:
    return "equal or smaller than the target stream top item" in str(error)
