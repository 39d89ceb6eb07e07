"""A partition's proposals: the stream in which requests wait, oldest first, until they are answered."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from redis.asyncio import Redis

from statewright.connection import EXCHANGE_SECONDS, HeldConnection, accepted, entries_of, reading, trimming
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, Channels
from statewright_worker.streams.scripts import script_command

START: Final = "0-0"
"""Before the first entry of every stream."""
SUSPICION_SECONDS: Final = 3_600
BUSY: Final = 500
"""A partition in which more requests wait has better things to do than what nobody waits for."""

# The first write frees memory or does nothing, because a full Redis refuses no script that has begun to write.
_NOTE_SUSPECT: Final = """
redis.call('DEL', KEYS[1])
return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
"""


class Entry(NamedTuple):
    """A request in its stream. `id` is `<milliseconds>-<number>`, in Redis' time unless the producer chose it."""

    id: str
    fields: Mapping[bytes, bytes]


class Backlog(NamedTuple):
    """What waits in a partition: the number of entries, and about how many bytes they take."""

    entries: int
    size: int


async def push_unless_busy(redis: Redis, channels: Channels, partition: int, request_id: UUID, body: bytes) -> bool:
    """Push a request to which nobody waits for an answer, unless many wait in the partition; return whether it is.

    Raises RedisError.
    """
    key = channels.proposals(partition)
    if await redis.xlen(key) > BUSY:
        return False
    await redis.xadd(key, {REQUEST_ID: str(request_id).encode(), REQUEST_MESSAGE: body})
    return True


class Proposals:
    """The requests of one partition, and a note of the one that may have ended its workers.

    Every method raises what `statewright_worker.streams.errors.REDIS_FAILED` lists.
    """

    def __init__(self, redis: HeldConnection, channels: Channels, partition: int) -> None:
        self._redis = redis
        self.key = channels.proposals(partition)
        self._suspect = channels.suspect(partition)

    async def read(self, after: str, trim_to: str, count: int, block_milliseconds: int) -> list[Entry]:
        """Delete the requests up to `trim_to`, which are answered, and return up to `count` of those behind `after`.

        Waits `block_milliseconds` at most for the first one, and a millisecond at least.
        """
        commands = [reading(self.key, after, count, block_milliseconds)]
        if trim_to != START:
            commands.insert(0, trimming(self.key, trim_to))
        # One round trip does both: a request whose answer was sent must not be carried out again after a crash.
        answers = await self._redis.exchange(*commands, seconds=EXCHANGE_SECONDS + block_milliseconds / 1_000)
        return [Entry(entry_id.decode(), fields) for entry_id, fields in entries_of(accepted(answers)[-1])]

    async def trim(self, up_to: str) -> None:
        """Delete the requests up to and including the entry `up_to`."""
        if up_to != START:
            await self._redis.ask(*trimming(self.key, up_to))

    async def backlog(self) -> Backlog:
        """Return how much waits in the partition."""
        length, size = accepted(await self._redis.exchange(("XLEN", self.key), ("MEMORY", "USAGE", self.key)))
        return Backlog(length, size or 0)

    async def newest(self, after: str, count: int) -> list[Entry]:
        """Return the `count` newest requests behind `after`, the newest one first."""
        found = await self._redis.ask("XREVRANGE", self.key, "+", f"({after}", "COUNT", count)
        return [Entry(entry_id.decode(), fields) for entry_id, fields in entries_of([(b"", found)])]

    async def delete(self, entry_ids: Sequence[str]) -> None:
        """Delete requests."""
        await self._redis.ask("XDEL", self.key, *entry_ids)

    async def suspect(self) -> tuple[str | None, int]:
        """Return the request on which the last holder was working, and how many holders have vanished over it."""
        told = await self._redis.ask("GET", self._suspect)
        entry_id, _, times = (told or b"").decode().partition(" ")
        return (entry_id, int(times)) if times else (None, 0)

    async def suspect_of(self, entry_id: str, times: int) -> None:
        """Note that a request is about to be carried out for the n-th time."""
        noting = script_command(_NOTE_SUSPECT, [self._suspect], f"{entry_id} {times}", SUSPICION_SECONDS)
        await self._redis.ask(*noting)

    async def suspect_nothing(self) -> None:
        """Delete the note: the suspected request was carried out."""
        await self._redis.ask("DEL", self._suspect)
