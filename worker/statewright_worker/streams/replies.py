"""Replies: the answers to each client, in a stream of its own, which expires some time after the last answer."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from redis.asyncio import Redis

from statewright.connection import Command
from statewright.protocol.channels import Channels
from statewright_worker.streams.bounds import StreamBounds

ANSWERS_PER_ENTRY: Final = 256
ENTRY_BYTES: Final = 64 * 1024
"""An entry of a reply stream takes no further answer once it has so many bytes."""
CLIENTS_REMEMBERED: Final = 1_000
LIFETIME_GOES_STALE: Final = 0.05
"""The lifetime of a reply stream starts again once this part of it is over."""
SCANNED_AT_A_TIME: Final = 500
NO_LIFETIME: Final = -1

Reply = tuple[bytes, bytes]
"""A request's id as the client wrote it, and the answer as JSON."""


class Replies:
    """Makes the commands that send one partition's answers to the reply streams. It does not ask Redis itself."""

    def __init__(self, channels: Channels, bounds: StreamBounds) -> None:
        self._channels = channels
        self._kept = bounds.replies_kept
        self._seconds = bounds.reply_seconds
        self._clock = asyncio.get_running_loop().time
        self._lasting: dict[str, float] = {}
        """Until when, by the loop's clock, each reply stream needs no new lifetime."""

    def sending(self, replies: Mapping[str, Sequence[Reply]]) -> Iterator[tuple[int, Command]]:
        """Yield the commands that answer each client, each with its approximate size in bytes."""
        for client, answers in replies.items():
            stream = self._channels.replies(client)
            for size, entry in _entries(answers):
                yield size, ("XADD", stream, "MAXLEN", "~", self._kept, "*", *chain.from_iterable(entry))
            if self._is_to_last(stream):
                yield 0, self.lasting(stream)

    def lasting(self, stream: str) -> Command:
        """Return the command that starts the lifetime of a reply stream again."""
        return ("EXPIRE", stream, self._seconds)

    def _is_to_last(self, stream: str) -> bool:
        """Return whether the lifetime of a reply stream must start again; with each answer, that would be expensive."""
        now = self._clock()
        if now < self._lasting.get(stream, 0.0):
            return False
        if len(self._lasting) == CLIENTS_REMEMBERED:
            self._lasting.clear()
        self._lasting[stream] = now + self._seconds * LIFETIME_GOES_STALE
        return True


def _entries(answers: Sequence[Reply]) -> Iterator[tuple[int, list[Reply]]]:
    """Yield the answers to one client as entries of a bounded size, each with its size in bytes."""
    entry: list[Reply] = []
    size = 0
    for answer in answers:
        if entry and (size + len(answer[1]) > ENTRY_BYTES or len(entry) == ANSWERS_PER_ENTRY):
            yield size, entry
            entry, size = [], 0
        entry.append(answer)
        size += len(answer[1])
    yield size, entry


async def give_lifetimes(redis: Redis, channels: Channels, seconds: int) -> int:
    """Give a lifetime of `seconds` to reply streams that have none, because a worker crashed before it set one; return
    how many there were. Raises RedisError."""
    given = 0
    async for stream in redis.scan_iter(match=channels.replies("*"), count=SCANNED_AT_A_TIME):
        if await redis.ttl(stream) == NO_LIFETIME:
            await redis.expire(stream, seconds)
            given += 1
    return given
