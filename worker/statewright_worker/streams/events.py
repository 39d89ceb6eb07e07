"""A partition's events: the stream that subscribers read, without gaps and without duplicates."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import structlog
from redis.exceptions import ResponseError

from statewright.connection import Argument, Command, HeldConnection, passing, permitted
from statewright.protocol.channels import EVENT_BODY, Channels, sequence_of
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.encoding import EventEncoding
from statewright_worker.streams.scripts import script_command

# Appends events only when the stream ends with the sequence number that the worker expects. Otherwise it returns the
# number with which the stream ends, and the worker brings what is missing. So a stream has neither gaps nor duplicates,
# whichever worker crashed.
_APPEND: Final = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
-- An empty stream remembers the last id that it had, and would take no smaller one.
if not newest then redis.call('DEL', KEYS[1]) end
local ends_with = newest and string.match(newest[1], '^%d+') or '0'
if ends_with ~= ARGV[1] then return ends_with end
for i = 4, #ARGV, 2 do
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], ARGV[i] .. '-0', ARGV[3], ARGV[i + 1])
end
return false
"""

KEPT_AT_MOST: Final = 2
"""Redis trims a stream roughly, but to less than so many times as many entries as it is asked to keep."""

log = structlog.get_logger()


class SequencedEvent(NamedTuple):
    """An entry of the event stream: a change of state or the beginning of an era, as JSON."""

    sequence: int
    body: bytes


class Appended(NamedTuple):
    """The outcome of appending: whether the events are in the stream, and its last number, None if unknown."""

    done: bool
    ends_with: int | None


class Events:
    """The events of one partition.

    Every method that asks Redis raises what `statewright.connection.DROPPED` lists when Redis does not answer; only
    `newest` raises ResponseError, when Redis refuses for a reason that passes.
    """

    def __init__(self, redis: HeldConnection, channels: Channels, partition: int, bounds: StreamBounds) -> None:
        self._redis = redis
        self._key = channels.events(partition)
        self.encoding = EventEncoding(channels.namespace, partition)
        self.kept = bounds.events_kept
        """How many events the stream keeps, about."""
        self._bytes = bounds.events_bytes
        self._is_no_stream = False
        """Whether the log says already that the key is no stream."""

    async def append(self, ends_with: int, events: Sequence[SequencedEvent]) -> Appended:
        """Append events to a stream that ends with the sequence number `ends_with`, unless it ends with another one.

        Raises RightMissing when the user may not: publishing them with the answers of a batch does not say so.
        """
        [answer] = permitted(await self._redis.exchange(self.appending(ends_with, events)))
        return self.appended(answer, events)

    def appending(self, ends_with: int, events: Sequence[SequencedEvent]) -> Command:
        """Return the command that does what `append` does, for whoever sends it together with others."""
        flat: Iterator[Argument] = chain.from_iterable(events)
        return script_command(_APPEND, [self._key], ends_with, self.kept, EVENT_BODY, *flat)

    def appended(self, answer: Any, events: Sequence[SequencedEvent]) -> Appended:
        """Return the outcome that the answer to `appending` means. A refusal is no error: PostgreSQL has the events."""
        if isinstance(answer, ResponseError):
            if not passing(answer):
                self._warn(answer)
            return Appended(False, None)
        self._is_no_stream = False
        return Appended(True, events[-1].sequence) if answer is None else Appended(False, int(answer))

    def that_may_be_kept(self, numbers: Sequence[int], sequence: int) -> list[int]:
        """Return those of the numbers whose events the stream may still keep, when `sequence` is the last one."""
        return [number for number in numbers if number > sequence - KEPT_AT_MOST * self.kept]

    def erasing(self, numbers: Sequence[int]) -> Command:
        """Return the command that deletes single events, because their runs were deleted."""
        return ("XDEL", self._key, *(f"{number}-0" for number in numbers))

    async def newest(self) -> int | None:
        """Return the sequence number that the stream ends with, 0 when it is empty, None when it is no stream."""
        [answer] = await self._redis.exchange(("XREVRANGE", self._key, "+", "-", "COUNT", 1))
        if isinstance(answer, ResponseError):
            if passing(answer):
                raise answer
            self._warn(answer)
            return None
        return sequence_of(answer[0][0]) if answer else 0

    async def keep_small(self) -> None:
        """Delete the oldest events when the stream takes more memory than it may. Raises RightMissing."""
        asked = ("XLEN", self._key), ("MEMORY", "USAGE", self._key)
        length, size = permitted(await self._redis.exchange(*asked))
        if isinstance(length, int) and isinstance(size, int) and size > self._bytes:
            kept = max(length * self._bytes // size, 1)
            permitted(await self._redis.exchange(("XTRIM", self._key, "MAXLEN", "~", kept)))

    def _warn(self, refusal: ResponseError) -> None:
        if not self._is_no_stream:
            self._is_no_stream = True
            log.warning("events cannot be published", key=self._key, error=str(refusal))
