"""The streams of a partition as its drain uses them: read requests, publish answers and events, trim."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import OutOfMemoryError, ResponseError

from statewright.channels import (
    DEAD_LETTER_ENTRY,
    DEAD_LETTER_FIELD,
    DEAD_LETTER_REASON,
    DEAD_LETTER_SIZE,
    ERA_BODY,
    EVENT_BODY,
    REQUEST_MESSAGE,
    Channels,
    following,
    sequence_of,
)
from statewright.connection import (
    EXCHANGE_SECONDS,
    Argument,
    Command,
    HeldConnection,
    accepted,
    entries_of,
    passing,
    reading,
    trimming,
)
from statewright_worker.publishing.owed import Owed, size_of
from statewright_worker.publishing.scripts import script_command

START: Final = "0-0"
"""Before the first entry of every stream."""
ROUND_TRIP_BYTES: Final = 8 * 1024 * 1024
"""About so much is sent together."""
ANSWERS_PER_ENTRY: Final = 256
ENTRY_BYTES: Final = 64 * 1024
"""An entry of a reply stream takes no further answer once it is so large."""
HEAD_BYTES: Final = 4_096
"""So much of a field is kept in a dead letter."""
OVERDRAFT_BYTES: Final = 1024 * 1024
"""So much a partition may put into Redis beyond its `maxmemory`, in answers."""
SUSPICION_SECONDS: Final = 3_600
CLIENTS_REMEMBERED: Final = 1_000
LIFETIME_GOES_STALE: Final = 0.05
"""A reply stream gets its lifetime anew once this part of it is over."""

# Appends events only where the stream ends with the sequence that the worker believes it ends with; otherwise tells
# where it ends, and the worker brings what is missing. So a stream has neither gaps nor duplicates, whoever crashed.
_APPEND_EVENTS: Final = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
-- An empty stream remembers the last id that it had, and would take no smaller one.
if not newest then redis.call('DEL', KEYS[1]) end
local ends_with = newest and string.match(newest[1], '^%d+') or '0'
if ends_with ~= ARGV[1] then return ends_with end
for i = 3, #ARGV, 3 do
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], ARGV[i] .. '-0', ARGV[i + 1], ARGV[i + 2])
end
return false
"""

# A full Redis refuses no script that has begun to write; so the first write is one that frees memory, if anything.
# What is to be sent: for each key behind the requests the number of its arguments, and these.
_MAKE_ROOM_AND_SEND: Final = """
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
local told, at = {}, 2
for i = 2, #KEYS do
    local last = at + tonumber(ARGV[at])
    told[i - 1] = redis.pcall('XADD', KEYS[i], unpack(ARGV, at + 1, last))
    at = last + 1
end
return told
"""
# For the same reason it is deleted first.
_NOTE_SUSPECT: Final = """
redis.call('DEL', KEYS[1])
return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
"""

log = structlog.get_logger()


class Entry(NamedTuple):
    """A request as it lies in its stream. `id` is `<milliseconds>-<number>`, the time being Redis' own unless the
    producer chose it."""

    id: str
    fields: Mapping[bytes, bytes]


class SequencedEvent(NamedTuple):
    """What has a place in the event stream: a change of state or the beginning of an era, as JSON."""

    sequence: int
    kind: bytes
    """EVENT_BODY or ERA_BODY."""
    body: bytes


@dataclass(frozen=True, slots=True)
class StreamBounds:
    """How much is kept in Redis. Durations are seconds."""

    events_kept: int = 10_000
    events_bytes: int = 32 * 1024 * 1024
    replies_kept: int = 4_096
    reply_seconds: int = 600
    dead_letters_kept: int = 1_000
    dead_letter_seconds: int = 30 * 86_400


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that could not be carried out, why, and which field was to blame."""

    entry: Entry
    reason: str
    field: str | None

    def fields(self) -> dict[bytes, bytes]:
        """Return the letter as a stream entry: the heads of the original fields, and what was wrong with them."""
        told = {name[:HEAD_BYTES]: value[:HEAD_BYTES] for name, value in [*self.entry.fields.items()][:_FIELDS_KEPT]}
        message = self.entry.fields.get(REQUEST_MESSAGE, b"")
        if len(message) > HEAD_BYTES:
            told[DEAD_LETTER_SIZE] = str(len(message)).encode()
        wrong = {DEAD_LETTER_REASON: self.reason.encode(), DEAD_LETTER_FIELD: (self.field or "").encode()}
        return {**told, **wrong}


_FIELDS_KEPT: Final = 16

Reply = tuple[bytes, bytes]
"""A request's id as it came, and the answer as JSON."""


_Sized = tuple[int, Command]
"""A command, and about how many bytes it takes."""


@dataclass(slots=True)
class Publication:
    """What a batch tells the world, once it is committed."""

    follows: int = 0
    """The sequence number with which the event stream ends before these events."""
    events: list[SequencedEvent] = field(default_factory=list)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    """The answers by client."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    largest_reply: int = 0
    """How many bytes the largest of the answers takes."""


class Appended(NamedTuple):
    """What became of events: whether they were appended, and the number that the stream ends with, None if unknown."""

    done: bool
    ends_with: int | None


class Backlog(NamedTuple):
    """How much waits in a partition: entries, and about how many bytes."""

    entries: int
    size: int


class Streams:
    """Redis as the drain of one partition uses it.

    Every method raises what `statewright.connection.DROPPED` lists when Redis does not answer, and ResponseError when
    it refuses for a reason that passes.
    """

    def __init__(self, pool: ConnectionPool, channels: Channels, partition: int, bounds: StreamBounds) -> None:
        self._redis = HeldConnection(pool)
        self._channels = channels
        self._proposals = channels.proposals(partition)
        self._events = channels.events(partition)
        self._dead_letters = channels.dead_letters(partition)
        self._suspect = channels.suspect(partition)
        self._bounds = bounds
        self._owed = Owed(bounds.reply_seconds)
        self._overdraft = OVERDRAFT_BYTES
        """How much may be put into Redis whether it is full or not, until it is known to have had room again."""
        self._unreachable: set[str] = set()
        self._clock = asyncio.get_running_loop().time
        self._lasting: dict[str, float] = {}
        """Until when, by the loop's clock, reply streams need no new lifetime."""

    async def close(self) -> None:
        """Give the connection back."""
        self._tell_what_was_given_up(len(self._owed))
        await self._redis.close()

    async def read(self, after: str, trim_to: str, count: int, block_milliseconds: int) -> list[Entry]:
        """Delete the requests up to `trim_to`, which are answered, and return up to `count` of those behind `after`.

        Waits for the first one, at most that long: a millisecond at least.
        """
        commands = [reading(self._proposals, after, count, block_milliseconds)]
        if trim_to != START:
            commands.insert(0, trimming(self._proposals, trim_to))
        # In one round trip: a request whose answer is out must not be carried out again by whoever comes after a crash.
        answers = await self._redis.exchange(*commands, seconds=EXCHANGE_SECONDS + block_milliseconds / 1_000)
        return [Entry(entry_id.decode(), fields) for entry_id, fields in entries_of(accepted(answers)[-1])]

    async def trim(self, up_to: str) -> None:
        """Delete the requests up to and including the entry `up_to`."""
        if up_to != START:
            await self._redis.ask(*trimming(self._proposals, up_to))

    async def backlog(self) -> Backlog:
        """Return how much waits in the partition."""
        length, size = accepted(
            await self._redis.exchange(("XLEN", self._proposals), ("MEMORY", "USAGE", self._proposals))
        )
        return Backlog(length, size or 0)

    async def newest(self, after: str, count: int) -> list[Entry]:
        """Return the `count` newest requests behind `after`, the newest one first."""
        found = await self._redis.ask("XREVRANGE", self._proposals, "+", f"({after}", "COUNT", count)
        return [Entry(entry_id.decode(), fields) for entry_id, fields in entries_of([(b"", found)])]

    async def delete(self, entry_ids: Sequence[str]) -> None:
        """Delete requests."""
        await self._redis.ask("XDEL", self._proposals, *entry_ids)

    async def publish(self, publication: Publication) -> Appended | None:
        """Send events, dead letters and answers, in this order; return what became of the events, None without any.

        An answer that cannot be delivered, because of what its client's key is, costs nobody else theirs. What a full
        Redis refuses is owed, until `settle` has sent it; events are not, because PostgreSQL has them.
        """
        commands, events = self._commands(publication), publication.events
        if self._owed:
            self._owed.add(command for _, command in commands if command[0] == "XADD")
            return Appended(False, None) if events else None
        refused: list[Command] = []
        if events:
            size = sum([len(event.body) for event in events])
            commands = chain([(size, self._appending(publication.follows, events))], commands)
        appended: Appended | None = None
        for together in _in_round_trips(commands):
            answers = await self._redis.exchange(*together)
            if events and appended is None:
                # Whatever is wrong with the event stream, answers go out.
                appended = self._appended(answers.pop(0), events)
                together.pop(0)
            for command, answer in zip(together, answers, strict=True):
                if isinstance(answer, OutOfMemoryError):
                    refused.append(command)
                elif isinstance(answer, ResponseError):
                    await self._refused(command, answer)
        if refused:
            self._owed.add(refused)
        return appended

    @property
    def owes(self) -> bool:
        """Whether there are answers or dead letters that Redis had no room for."""
        return bool(self._owed)

    async def settle(self, answered: str) -> OutOfMemoryError | None:
        """Delete the requests up to `answered`, and send what is owed; return what Redis says when it has no room.

        Producers who push all the time would take any room before an answer gets there. So answers are sent beyond the
        bound, up to an overdraft: as long as Redis is over it, nobody but whoever reads answers changes how full it is.
        """
        while True:
            owed = self._owed.oldest(ENTRY_BYTES)
            told = await self._make_room_and_send(answered, owed)
            full: OutOfMemoryError | None = None
            filled: set[str] = set()
            for command, answer in zip(owed, told, strict=True):
                if isinstance(answer, OutOfMemoryError):
                    full = answer
                elif isinstance(answer, ResponseError):
                    await self._refused(command, answer)
                else:
                    filled.add(str(command[1]))
            self._owed.settle([not isinstance(answer, OutOfMemoryError) for answer in told])
            # Nowhere else: a stream that nobody reads is to end, though more is owed to it.
            await self._give_lifetimes(filled)
            if full is not None and not filled:
                return full
            if not self._owed:
                self._tell_what_was_given_up()
                return None

    async def _make_room_and_send(self, answered: str, commands: Sequence[Command]) -> list[Any]:
        if self._overdraft > 0:
            self._overdraft -= sum(map(size_of, commands))
            keys = [self._proposals, *(str(command[1]) for command in commands)]
            flat = chain.from_iterable((len(command) - 2, *command[2:]) for command in commands)
            script = script_command(_MAKE_ROOM_AND_SEND, keys, following(answered), *flat)
            told: list[Any] = await self._redis.ask(*script)
            return told
        trimmed, *told = await self._redis.exchange(trimming(self._proposals, answered), *commands)
        accepted([trimmed])
        if not all(isinstance(answer, ResponseError) for answer in told):
            # There was room, so nothing lies beyond the bound any more.
            self._overdraft = OVERDRAFT_BYTES
        return told

    async def _give_lifetimes(self, streams: Iterable[str]) -> None:
        commands = [("EXPIRE", stream, self._lifetime_of(stream)) for stream in streams]
        if commands:
            await self._redis.exchange(*commands)

    def _lifetime_of(self, stream: str) -> int:
        letters = stream == self._dead_letters
        return self._bounds.dead_letter_seconds if letters else self._bounds.reply_seconds

    def _tell_what_was_given_up(self, left: int = 0) -> None:
        given_up, self._owed.given_up = self._owed.given_up + left, 0
        if given_up:
            log.warning(
                "Redis was full: answers were given up; who asks again is told", key=self._proposals, entries=given_up
            )

    async def append_events(self, ends_with: int, events: Sequence[SequencedEvent]) -> Appended:
        """Append events to a stream that ends with the sequence number `ends_with`, unless it ends with another one."""
        [answer] = await self._redis.exchange(self._appending(ends_with, events))
        return self._appended(answer, events)

    def _appending(self, ends_with: int, events: Sequence[SequencedEvent]) -> Command:
        kept = self._bounds.events_kept
        flat: Iterator[Argument] = chain.from_iterable(events)
        return script_command(_APPEND_EVENTS, [self._events], ends_with, kept, *flat)

    def _appended(self, answer: object, events: Sequence[SequencedEvent]) -> Appended:
        if isinstance(answer, ResponseError):
            if not passing(answer):
                self._warn(self._events, "events cannot be published", answer)
            return Appended(False, None)
        self._unreachable.discard(self._events)
        return Appended(True, events[-1].sequence) if answer is None else Appended(False, _number(answer))

    async def newest_event(self) -> int | None:
        """Return the sequence number that the event stream ends with, 0 when it is empty, None when it is no stream."""
        [answer] = await self._redis.exchange(("XREVRANGE", self._events, "+", "-", "COUNT", 1))
        if isinstance(answer, ResponseError):
            if passing(answer):
                raise answer
            self._warn(self._events, "events cannot be published", answer)
            return None
        return sequence_of(answer[0][0]) if answer else 0

    async def keep_events_small(self) -> None:
        """Delete the oldest events when the stream takes more memory than it may."""
        length, size = await self._redis.exchange(("XLEN", self._events), ("MEMORY", "USAGE", self._events))
        if isinstance(length, int) and isinstance(size, int) and size > self._bounds.events_bytes:
            kept = max(length * self._bounds.events_bytes // size, 1)
            await self._redis.exchange(("XTRIM", self._events, "MAXLEN", "~", kept))

    async def suspect(self) -> tuple[str | None, int]:
        """Return the request that the last holder was working on, and how many have vanished over it."""
        told = await self._redis.ask("GET", self._suspect)
        entry_id, _, times = (told or b"").decode().partition(" ")
        return (entry_id, int(times)) if times else (None, 0)

    async def suspect_of(self, entry_id: str, times: int) -> None:
        """Note that a request is about to be carried out for the n-th time."""
        noting = script_command(_NOTE_SUSPECT, [self._suspect], f"{entry_id} {times}", SUSPICION_SECONDS)
        await self._redis.ask(*noting)

    async def suspect_nothing(self) -> None:
        """Note that whatever was suspected is carried out."""
        await self._redis.ask("DEL", self._suspect)

    def _commands(self, publication: Publication) -> Iterator[_Sized]:
        bounds = self._bounds
        for letter in publication.dead_letters:
            # A dead letter keeps its request's id, so that Redis refuses it the second time.
            limit = ("MAXLEN", "~", bounds.dead_letters_kept)
            fields = [*chain.from_iterable(letter.fields().items())]
            yield sum(map(len, fields)), ("XADD", self._dead_letters, *limit, letter.entry.id, *fields)
        if publication.dead_letters:
            yield 0, ("EXPIRE", self._dead_letters, bounds.dead_letter_seconds)
        for client, answers in publication.replies.items():
            stream = self._channels.replies(client)
            for size, entry in _entries(answers):
                yield size, ("XADD", stream, "MAXLEN", "~", bounds.replies_kept, "*", *chain.from_iterable(entry))
            if self._is_to_last(stream):
                yield 0, ("EXPIRE", stream, bounds.reply_seconds)

    def _is_to_last(self, stream: str) -> bool:
        """Return whether a reply stream gets its whole lifetime anew: with each answer, it would be a good part of what
        the answer costs."""
        now = self._clock()
        if now < self._lasting.get(stream, 0.0):
            return False
        if len(self._lasting) == CLIENTS_REMEMBERED:
            self._lasting.clear()
        self._lasting[stream] = now + self._bounds.reply_seconds * LIFETIME_GOES_STALE
        return True

    async def _refused(self, command: Command, refusal: ResponseError) -> None:
        key = str(command[1])
        if passing(refusal):
            raise refusal
        if key == self._dead_letters and command[0] == "XADD" and "equal or smaller" in str(refusal):
            await self._keep_dead_letter(command)
        else:
            self._warn(key, "an answer or a dead letter cannot be delivered", refusal)

    async def _keep_dead_letter(self, command: Command) -> None:
        """Keep a letter whose id lies below an older one's, unless it is there already: producers may choose ids."""
        name, key, maxlen, about, kept, entry_id, *fields = command
        if not await self._redis.ask("XRANGE", key, entry_id, entry_id):
            await self._redis.exchange((name, key, maxlen, about, kept, "*", DEAD_LETTER_ENTRY, entry_id, *fields))

    def _warn(self, key: str, what: str, refusal: ResponseError) -> None:
        """Say it once for each key: a producer that reads a key of another kind would fill the log."""
        if key not in self._unreachable and len(self._unreachable) < CLIENTS_REMEMBERED:
            self._unreachable.add(key)
            log.warning(what, key=key, error=str(refusal))


def _number(answer: Any) -> int:
    return int(answer)


def _entries(answers: Sequence[Reply]) -> Iterator[tuple[int, list[Reply]]]:
    """Cut the answers to one client into entries of a bounded size; return each with its bytes."""
    entry: list[Reply] = []
    size = 0
    for answer in answers:
        if entry and (size + len(answer[1]) > ENTRY_BYTES or len(entry) == ANSWERS_PER_ENTRY):
            yield size, entry
            entry, size = [], 0
        entry.append(answer)
        size += len(answer[1])
    yield size, entry


def _in_round_trips(commands: Iterable[_Sized]) -> Iterator[list[Command]]:
    together: list[Command] = []
    size = 0
    for added, command in commands:
        together.append(command)
        size += added
        if size > ROUND_TRIP_BYTES:
            yield together
            together, size = [], 0
    if together:
        yield together


def event(sequence: int, body: bytes) -> SequencedEvent:
    """Return a change of state as it stands in the event stream."""
    return SequencedEvent(sequence, EVENT_BODY, body)


def era(sequence: int, body: bytes) -> SequencedEvent:
    """Return the beginning of an era as it stands in the event stream."""
    return SequencedEvent(sequence, ERA_BODY, body)
