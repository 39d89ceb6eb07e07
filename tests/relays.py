"""Relays that stand between a test and a server: with TLS, silent, or as a pooler of transactions."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CERTIFICATE = Path(__file__).parent / "tls" / "server.crt"
"""Of 127.0.0.1, signed by itself."""
UNIX_SCHEMES = ("unix", "redis+socket")
SSL_REQUEST = bytes.fromhex("0000000804d2162f")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Coroutine[Any, Any, Streams]]


def towards(host: str, port: int) -> Connect:
    """Return what connects to a server: at a folder's or a file's socket when `host` is a path."""
    if not host.startswith("/"):
        return lambda: asyncio.open_connection(host, port)
    path = Path(host)
    return lambda: asyncio.open_unix_connection(path / f".s.PGSQL.{port}" if path.is_dir() else path)


def way_to(url: str) -> Connect:
    """Return what connects to the server that a URL leads to."""
    target = urlsplit(url)
    if target.scheme in UNIX_SCHEMES:
        return towards(target.path, 0)
    for folder in parse_qs(target.query).get("host", ()):
        return towards(folder, 5432)
    return towards(target.hostname or "", target.port or (6379 if "redis" in target.scheme else 5432))


def by_way_of(port: int, url: str) -> str:
    """Return the URL of the same server by way of a port of 127.0.0.1."""
    target = urlsplit(url)
    login, at, _ = target.netloc.rpartition("@")
    scheme, path = target.scheme, target.path
    if scheme in UNIX_SCHEMES:
        scheme, path = "redis", f"/{parse_qs(target.query).get('db', ['0'])[0]}"
    return f"{scheme}://{login}{at}127.0.0.1:{port}{path}"


@dataclass
class Relay:
    """Listens at `port` of 127.0.0.1 and passes on what it hears, until it is told to be silent."""

    port: int
    accepted: int = 0
    silent: bool = False
    """Whether what is sent, in either direction, goes nowhere, as when a firewall drops it."""
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(OSError):
            while data := await reader.read(65_536):
                if not self.silent:
                    writer.write(data)
                    await writer.drain()
        if not self.silent:
            writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_suffix(".key"))
    return context


@asynccontextmanager
async def relay(connect: Connect, *, with_tls: bool = False, postgresql: bool = False) -> AsyncIterator[Relay]:
    """Run a relay to the server; `postgresql` begins TLS as its protocol does, upon a request in clear."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.accepted += 1
        if made.silent:
            made._writers.append(writer)
            return
        if with_tls and postgresql:
            assert await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST
            writer.write(b"S")
            try:
                await writer.start_tls(tls())
            except (OSError, ssl.SSLError):
                return
        upstream_reader, upstream_writer = await connect()
        await asyncio.gather(made.pass_on(reader, upstream_writer), made.pass_on(upstream_reader, writer))

    context = tls() if with_tls and not postgresql else None
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    made = Relay(server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        server.close()
        made.close()


class Pooler:
    """A pooler of transactions: each transaction of a client goes to the next of its sessions, whichever that is."""

    def __init__(self, connect: Connect, sessions: int) -> None:
        self._connect = connect
        self._sessions: asyncio.Queue[Streams] = asyncio.Queue()
        self._count = sessions
        self._greeting = b""
        self._lock = asyncio.Lock()
        self.transactions = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            startup = await _startup(reader)
            if startup == SSL_REQUEST:
                writer.write(b"N")
                startup = await _startup(reader)
            await self._open(startup)
            writer.write(self._greeting)
            await self._pass_on(reader, writer)
        writer.close()

    async def _open(self, startup: bytes) -> None:
        async with self._lock:
            while self._sessions.qsize() < self._count and not self._greeting:
                made = [await self._session(startup) for _ in range(self._count)]
                for session, self._greeting in made:
                    self._sessions.put_nowait(session)

    async def _session(self, startup: bytes) -> tuple[Streams, bytes]:
        reader, writer = await self._connect()
        self.writers.append(writer)
        writer.write(startup)
        message = greeting = b""
        while message[:1] != b"Z":
            message = await _message(reader)
            assert message[:1] != b"E", message
            greeting += message
        return (reader, writer), greeting

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: Streams | None = None
        heard = asyncio.create_task(_message(reader))
        told: asyncio.Task[bytes] | None = None
        unanswered = 0
        while True:
            await asyncio.wait({heard} if told is None else {heard, told}, return_when=asyncio.FIRST_COMPLETED)
            if told is not None and told.done():
                assert session
                message = told.result()
                writer.write(message)
                unanswered -= message[:1] == b"Z"
                told = asyncio.create_task(_message(session[0]))
                if message[:1] == b"Z" and message[-1:] == b"I" and not unanswered:
                    told.cancel()
                    self._sessions.put_nowait(session)
                    session, told = None, None
            if heard.done():
                message = heard.result()
                if message[:1] == b"X":
                    return
                if session is None:
                    session = await self._sessions.get()
                    self.transactions += 1
                    told = asyncio.create_task(_message(session[0]))
                unanswered += message[:1] in {b"Q", b"S"}
                session[1].write(message)
                heard = asyncio.create_task(_message(reader))


async def _startup(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "big") - 4)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


@asynccontextmanager
async def pooler(connect: Connect, sessions: int = 3) -> AsyncIterator[tuple[int, Pooler]]:
    """Run a pooler of transactions; yield its port and itself. The server must trust whoever connects."""
    made = Pooler(connect, sessions)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], made
    finally:
        server.close()
        for writer in made.writers:
            writer.transport.abort()
