"""The one place where a connection to Redis is made, for clients and workers alike."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Any, Final, TypeVar

import hiredis
from redis.asyncio import Connection, ConnectionPool, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.exceptions import (
    ClusterDownError,
    ExecAbortError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from statewright.protocol.channels import following

Result = TypeVar("Result")

DROPPED: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""What is raised when a connection is lost, refused or silent: worth another try, unlike an answer that says no."""

DROPPED_OR_REFUSED: Final = (RedisError, OSError)
"""Every failure of a server, refusals included: for callers that can only try again."""

CONNECT_TIMEOUT_SECONDS: Final = 5
CLIENT_NAME: Final = "statewright"
EXCHANGE_SECONDS: Final = 5.0
"""How long Redis may take to answer commands sent together, blocking aside; longer means that it is gone."""

BUSY_SECONDS: Final = 0.1

_CODES: Final = {
    ClusterDownError: "CLUSTERDOWN",
    ExecAbortError: "EXECABORT",
    MasterDownError: "MASTERDOWN",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
}
_ANOTHER_SERVER: Final = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH"})
"""Refusals of a server that no longer serves, or no longer knows us: a new connection may help."""
_PASSING: Final = _ANOTHER_SERVER | {
    "BUSY",
    "EXECABORT",
    "LOADING",
    "MISCONF",
    "NOPERM",
    "NOREPLICAS",
    "OOM",
    "TRYAGAIN",
}

Argument = str | int | bytes
Command = tuple[Argument, ...]
StreamEntry = tuple[bytes, dict[bytes, bytes]]
"""An entry's id, and its fields."""

# Its stub declares a tuple of one argument.
_pack: Any = hiredis.pack_command


_UNLESS_SAID: Final = {
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    # Since its version 8, redis-py ends a read by itself after 5 s, and a pool has 100 connections at most.
    "socket_timeout": None,
    "max_connections": 2**31,
}
"""How a connection is made, unless the URL says otherwise."""


class _Packing:
    """What makes a connection write commands with hiredis, as redis-py's own does for those that are not asyncio's.

    Its Python code takes several times as long, for every request and every answer.
    """

    def pack_command(self, name: str, *arguments: object) -> list[bytes]:
        """Return the command as bytes; its name may be of several words."""
        return [_pack((*name.split(), *arguments))]


def connection_pool(url: str, *, shown_as: str = CLIENT_NAME) -> ConnectionPool:
    """Return a pool for `url` (redis://, rediss:// or unix://) that connects when it is first used.

    Redis shows its connections under the name `shown_as`.
    A command may block for as long as it likes: who uses a connection says how long it waits for an answer.
    """
    said: dict[str, Any] = {**parse_url(url)}
    # The class depends on the URL: TCP, TLS or a unix socket.
    connects = said.pop("connection_class", Connection)

    async def begin(connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("CLIENT", "SETNAME", shown_as, check_health=False)
        # So that `CLIENT LIST` shows whose connection it is; the user may lack the right to set the name.
        with suppress(ResponseError):
            await connection.read_response()

    if connects is not UnixDomainSocketConnection:
        said.setdefault("socket_keepalive", True)
    ours = {
        "connection_class": type(f"Packing{connects.__name__}", (_Packing, connects), {}),
        "redis_connect_func": begin,
        # HeldConnection hands answers out as they come, so they must always come in the same form.
        "protocol": 2,
    }
    return ConnectionPool(**{**_UNLESS_SAID, **said, **ours})


class HeldConnection:
    """A connection that its one user keeps, made when it is first used and again after it was lost.

    Taking one from the pool for each command costs more than the command itself.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        """Make it for the event loop that runs."""
        self._pool = pool
        self._connection: Any = None
        self._loop = asyncio.get_running_loop()
        self._due: float | None = None
        """When the answers that are waited for must be there, by the loop's clock."""
        self._watch: asyncio.TimerHandle | None = None
        self._looks_at = inf
        """When the watch looks whether they are."""
        self._doubted: float | None = None
        self._overdue = False
        self._moved = False
        """Whether Redis has said that the client must ask another server."""

    async def exchange(self, *commands: Command, seconds: float = EXCHANGE_SECONDS) -> list[Any]:
        """Send the commands together, and return their answers as Redis gave them; what it refused is a ResponseError
        in the place of an answer.

        Raises what is in DROPPED when the connection is lost, and when not all answers are there within `seconds`
        (commands that block take as long as they block on top); some of the commands may have been carried out then.
        """
        connection = self._connection
        if connection is None or not connection.is_connected:
            await self.connect(seconds)
            connection = self._connection
        self._due = due = self._loop.time() + seconds
        if due < self._looks_at:
            # One timer serves many exchanges, because making one for each would cost a good part of an exchange.
            self._look_at(due)
        answers: list[Any] = []
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as refusal:
                    answers.append(refusal)
                    self._moved = self._moved or _code(refusal) in _ANOTHER_SERVER
        except DROPPED:
            if self._overdue:
                raise _overdue(seconds) from None
            raise
        finally:
            self._due = None
        if self._moved:
            await self._leave(connection)
        return answers

    async def ask(self, *command: Argument, seconds: float = EXCHANGE_SECONDS) -> Any:
        """Send one command and return its answer. Raises as `exchange` does, and ResponseError when Redis refuses."""
        [answer] = accepted(await self.exchange(command, seconds=seconds))
        return answer

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and bool(self._connection.is_connected)

    async def connect(self, seconds: float = EXCHANGE_SECONDS) -> None:
        """Connect. `exchange` does it by itself; who does it before knows that nothing was sent when it fails.

        Raises what is in DROPPED, also when it takes longer than `seconds`.
        """
        # The pool itself connects while it holds a lock, so one silent server would stop everybody.
        connection = self._connection = self._connection or _taken_from(self._pool)
        self._overdue = False
        try:
            async with asyncio.timeout(seconds):
                await self._pool.ensure_connection(connection)
        except BaseException as error:
            # The connection may still wait for an answer to AUTH or SELECT, so nobody may use it as it is.
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise _overdue(seconds) from None
            raise

    async def close(self) -> None:
        """Give the connection back."""
        if self._watch is not None:
            self._watch.cancel()
            self._looks_at = inf
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._pool.release(connection)

    async def _leave(self, connection: Any) -> None:
        # The next try makes a new connection, and finds the server that serves now.
        self._moved = False
        await connection.disconnect(nowait=True)

    def _look_at(self, due: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_at(due, self._look)
        self._looks_at = due

    def _look(self) -> None:
        self._looks_at = inf
        if self._due is None:
            return
        now = self._loop.time()
        if self._due > now:
            self._look_at(self._due)
        elif self._doubted == self._due:
            self._cut()
        else:
            # Perhaps this process was busy, and the answers have arrived: they are read first.
            self._doubted = self._due
            self._look_at(now + BUSY_SECONDS)

    def _cut(self) -> None:
        """Drop the connection at once; a plain close would wait until a dead peer takes what is still to be written."""
        self._overdue = True
        writer = self._connection and self._connection._writer
        if writer is not None:
            writer.transport.abort()


def _taken_from(pool: Any) -> Any:
    return pool.get_available_connection()


def _overdue(seconds: float) -> RedisTimeoutError:
    return RedisTimeoutError(f"no answer within {seconds:g} s")


def passing(refusal: ResponseError) -> bool:
    """Return whether a refusal concerns the state of the server or the user's rights, which pass or can be mended.

    Redis may take the same command later. All other refusals concern the command or the key: asking again is in vain.
    """
    return _code(refusal) in _PASSING


def _code(refusal: ResponseError) -> str:
    # redis-py leaves the first word out where it has a class for it; which classes it uses depends on its version.
    return _CODES.get(type(refusal)) or str(refusal).partition(" ")[0]


def accepted(answers: list[Any]) -> list[Any]:
    """Return the answers. Raises the first ResponseError among them."""
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return answers


def reading(stream: str, after: str | bytes, count: int, block_milliseconds: int) -> Command:
    """Return the command that reads entries behind `after`, and waits for the first one."""
    return ("XREAD", "COUNT", count, "BLOCK", block_milliseconds, "STREAMS", stream, after)


def trimming(stream: str, up_to: str) -> Command:
    """Return the command that deletes the entries up to and including `up_to`."""
    return ("XTRIM", stream, "MINID", following(up_to))


def entries_of(read: Any) -> list[StreamEntry]:
    """Return the entries in the answer to an XREAD of one stream, oldest first; none when it waited in vain."""
    entries = read[0][1] if read else ()
    return [(entry_id, dict(zip(flat[::2], flat[1::2], strict=True))) for entry_id, flat in entries]


async def persist(do: Callable[[], Awaitable[Result]], on: tuple[type[BaseException], ...] = DROPPED) -> Result:
    """Return what `do` returns; while it raises what is in `on`, do it again, in pauses that grow to one second."""
    try:
        return await do()
    except on:
        # Only after a failure, because setting up retries costs more than a command to Redis.
        return await _again(do, on)


async def _again(do: Callable[[], Awaitable[Result]], on: tuple[type[BaseException], ...]) -> Result:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(on), wait=wait_random_exponential(multiplier=0.05, max=1), reraise=True
    )
    return await retrying(do)


async def cancel(*tasks: "asyncio.Task[None]") -> None:
    """Cancel tasks that run for ever, and wait until they have ended; they end as well when the caller is cancelled."""
    for task in tasks:
        task.cancel()
    if tasks:
        # Awaiting a task itself would not tell its cancellation from the caller's.
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
