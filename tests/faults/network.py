"""A network between a worker and its servers that a test can cut, or let fall silent without a word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.relays import by_way_of, way_to

CHUNK = 65_536


class Link:
    """Forwards TCP connections to a server; while it is silent, nothing passes and nothing is closed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._passes = asyncio.Event()
        self._passes.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_on_the_way_back: int | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The URL of the server, by way of this link."""
        return by_way_of(self.port, self._url)

    def fall_silent(self) -> None:
        self._passes.clear()

    def fall_silent_after(self, size: int) -> None:
        """Fall silent once so many more bytes have come from the server."""
        self._left_on_the_way_back = size

    def speak_again(self) -> None:
        self._passes.set()

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await self._passes.wait()
            server_reader, server_writer = await way_to(self._url)()
            self._writers |= {writer, server_writer}
            tasks = [
                asyncio.create_task(self._forward(reader, server_writer)),
                asyncio.create_task(self._forward(server_reader, writer, back=True)),
            ]
            self._tasks.update(tasks)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            self._writers -= {writer, server_writer}
            server_writer.close()
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if back and self._left_on_the_way_back is not None:
                    self._left_on_the_way_back -= len(data)
                    if self._left_on_the_way_back < 0:
                        self._left_on_the_way_back = None
                        self.fall_silent()
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
            # That one side has ended does not get through either.
            await self._passes.wait()

    def close(self) -> None:
        self._passes.set()
        self.cut()
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def link_to(url: str) -> AsyncIterator[Link]:
    """Open a link to the server of this URL."""
    link = Link(url)
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        link.close()
        server.close()
