"""A connection to a server that dies in silence: nothing arrives any more, and no side gets an error."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.relays import by_way_of, way_to


class BlackHole:
    """Forwards connections to a server until `open` is cleared; from then on it swallows what comes, both ways.

    A connection that was made through it stays dead when it opens again, like one that a firewall has forgotten.
    """

    def __init__(self, url: str) -> None:
        self.connections = 0
        self._connect = way_to(url)
        self._open = True
        self._living: set[asyncio.Event] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self.url = ""

    def swallow(self) -> None:
        """Let nothing through from now on, on existing connections or on new ones."""
        self._open = False
        for dead in self._living:
            dead.set()
        self._living.clear()

    def reopen(self) -> None:
        """Let new connections through again."""
        self._open = True

    def drop(self) -> None:
        """End the connections that are there, and let new ones through."""
        for end in self._ends:
            end.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        self.connections += 1
        dead = asyncio.Event()
        if self._open:
            self._living.add(dead)
        else:
            dead.set()
        there, back = await self._connect()
        ends = {writer, back}
        self._ends |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_forward(reader, back, dead))
                both.create_task(_forward(there, writer, dead))
        finally:
            self._living.discard(dead)
            self._ends -= ends
            for end in ends:
                end.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: asyncio.Event) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            if not dead.is_set():
                writer.write(data)
                await writer.drain()
        if not dead.is_set():
            writer.close()


@asynccontextmanager
async def black_hole(url: str) -> AsyncIterator[BlackHole]:
    """Yield a way to the server at `url`, which can be made to swallow everything; its `url` leads there."""
    hole = BlackHole(url)
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(hole.serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hole.url = by_way_of(port, url)
    try:
        yield hole
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
