"""A client's outgoing side: requests leave in the order in which they were made, many to a round trip."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from statewright.connection import Argument, Command, HeldConnection, cancel, persist
from statewright.errors import RedisUnavailable, StatewrightError

PIPELINE_SIZE: Final = 500
TOGETHER: Final = 16
"""So few requests become visible in one instant; more of them come faster than they are read anyway."""

Fields = dict[bytes, bytes]


class _Outgoing(NamedTuple):
    stream: str
    fields: Fields
    pushed: asyncio.Future[StatewrightError | None]
    reply: asyncio.Future[bytes]


class Outbox:
    """Pushes entries onto streams; after a dropped connection it sends again what was not confirmed."""

    def __init__(self, pool: ConnectionPool) -> None:
        """Make an outbox; the first entry starts it."""
        self._redis = HeldConnection(pool)
        self._waiting: deque[_Outgoing] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def put(
        self, stream: str, fields: Fields, reply: "asyncio.Future[bytes]"
    ) -> "asyncio.Future[StatewrightError | None]":
        """Queue an entry; the future yields None once Redis holds it, or the error with which Redis refused it.

        A refusal is the reply's exception too: nobody will ever answer.
        """
        pushed: asyncio.Future[StatewrightError | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Outgoing(stream, fields, pushed, reply))
        self._filled.set()
        self._emptied.clear()
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return pushed

    async def close(self, timeout: float) -> None:
        """Stop, once everything is pushed or `timeout` seconds have passed."""
        if self._running is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._emptied.wait()
            await cancel(self._running)
        await self._redis.close()

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._waiting:
                size = min(len(self._waiting), PIPELINE_SIZE)
                await self._push([self._waiting.popleft() for _ in range(size)])
            self._emptied.set()

    async def _push(self, entries: list[_Outgoing]) -> None:
        answers = await persist(partial(self._push_at_once, entries))
        for entry, answer in zip(entries, answers, strict=True):
            refusal = _refusal(answer)
            if not entry.pushed.done():
                entry.pushed.set_result(refusal)
            if refusal is not None and not entry.reply.done():
                entry.reply.set_exception(refusal)

    async def _push_at_once(self, entries: list[_Outgoing]) -> list[object]:
        commands = [_command(entry) for entry in entries]
        if 1 < len(commands) <= TOGETHER:
            # The drain would wake up at the first of them, and spend a transaction on it alone.
            return await self._push_in_one_instant(commands)
        return await self._redis.exchange(*commands)

    async def _push_in_one_instant(self, commands: list[Command]) -> list[object]:
        begun, *queued, executed = await self._redis.exchange(("MULTI",), *commands, ("EXEC",))
        if isinstance(begun, ResponseError):
            # A user who may not do this: Redis has carried out one command after the other.
            return queued
        if isinstance(executed, ResponseError):
            # One of them was refused, and so nothing was done: each is to stand for itself.
            return await self._redis.exchange(*commands)
        answers: list[object] = executed
        return answers


def _command(entry: _Outgoing) -> Command:
    fields: Iterator[Argument] = chain.from_iterable(entry.fields.items())
    return ("XADD", entry.stream, "*", *fields)


def _refusal(answer: object) -> StatewrightError | None:
    if isinstance(answer, ResponseError):
        return RedisUnavailable(f"Redis refused the request: {answer}")
    return None
