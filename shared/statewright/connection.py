"""The one place where a connection to Redis is made, for clients and workers alike."""

import asyncio
import re
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

from statewright.errors import NotPermitted, RedisUnavailable
from statewright.protocol.channels import following

Result = TypeVar("Result")
Argument = str | int | bytes
Command = tuple[Argument, ...]

DROPPED: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""What is raised when a connection is lost, refused or silent: worth another try, unlike an answer that says no."""

DROPPED_OR_REFUSED: Final = (RedisError, OSError)
"""Every failure of a server, refusals included: for callers that can only try again."""

CONNECT_TIMEOUT_SECONDS: Final = 5
CLIENT_NAME: Final = "statewright"
EXCHANGE_SECONDS: Final = 5.0
"""How long Redis may take to answer commands sent together, blocking aside; longer means that it is gone."""

BUSY_SECONDS: Final = 0.1

RIGHTS_SECONDS: Final = 1.0
"""How long a right may be missing before whoever waits is told: setting a user's rights anew takes a moment."""

_REFUSED_COMMAND: Final = re.compile(r"run the '([^']+)' command")
_REFUSED_BY_ACL: Final = ("ACL failure in script", "The user executing the script can't", "because of: NOPERM")
"""What Valkey and Redis say of a command within a script, and of EXEC: such a refusal has another code than NOPERM."""
_COMMANDS_WITHOUT_KEYS: Final = frozenset({"DBSIZE", "EXEC", "INFO", "MULTI", "PING", "SCAN", "TIME", "UNWATCH"})


class RightMissing(NoPermissionError):
    """Redis refuses a command because its user lacks the right to it, or to one of its keys. Says which."""

    def __init__(self, user: str, command: Command, said: str) -> None:
        """Take the user, the command that was refused, and what Redis says, which tells no key."""
        self.user = user
        self.command, self.keys = _named(command)
        self.said = said
        refused = _REFUSED_COMMAND.search(said)
        if refused is not None or "command or subcommand" in said:
            self.keys = ()
        if refused is None and not self.keys:
            self.command = f"a command within {self.command}"
        elif refused is not None and refused[1].upper() != self.command.partition(" ")[0]:
            # Within a script, it is another command than the one that was sent.
            self.command = refused[1].upper().replace("|", " ")
        super().__init__(f"{self.what}; {NotPermitted.CURE}")

    @property
    def what(self) -> str:
        """What the user may not do, in words."""
        if not self.keys:
            return f"Redis user {self.user!r} may not run {self.command}"
        kind = "channel" if "channel" in self.said else "key"
        where = f"the {kind}" if len(self.keys) == 1 else f"one of the {kind}s"
        return f"Redis user {self.user!r} may not use {self.command} on {where} {', '.join(map(repr, self.keys))}"


def _named(command: Command) -> tuple[str, tuple[str, ...]]:
    """Return the name of a command, and its keys or channels."""
    name, *arguments = (part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in command)
    if name == "MEMORY":
        name = f"{name} {arguments.pop(0)}"
    if name in _COMMANDS_WITHOUT_KEYS:
        return name, ()
    if name == "EVAL":
        _, number, *arguments = arguments
        return name, tuple(arguments[: int(number)])
    if name == "XREAD":
        arguments = arguments[arguments.index("STREAMS") + 1 :]
        return name, tuple(arguments[: len(arguments) // 2])
    return name, tuple(arguments[:1])


def with_its_right(refusal: ResponseError, user: str, command: Command) -> ResponseError:
    """Return a refusal as RightMissing where Redis refuses because of the user's rights, else as it is."""
    said = str(refusal)
    if isinstance(refusal, NoPermissionError) or any(words in said for words in _REFUSED_BY_ACL):
        return RightMissing(user, command, said)
    return refusal


_CODES: Final = {
    ClusterDownError: "CLUSTERDOWN",
    ExecAbortError: "EXECABORT",
    MasterDownError: "MASTERDOWN",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    RightMissing: "NOPERM",
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


def user_of(pool: Any) -> str:
    """Return the name of the Redis user as whom a pool of redis-py connects."""
    return str(pool.connection_kwargs.get("username") or "default")


class HeldConnection:
    """A connection that its one user keeps, made when it is first used and again after it was lost.

    Taking one from the pool for each command costs more than the command itself.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        """Make it for the event loop that runs."""
        self._pool = pool
        self._user = user_of(pool)
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
        in the place of an answer, and a RightMissing where its user lacks a right.

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
            for command in commands:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as refusal:
                    answers.append(with_its_right(refusal, self._user, command))
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


def patience_with(refusal: ResponseError, patience: float) -> float:
    """Return for how many seconds a refusal may last before whoever reads is told, where others may last `patience`.

    A missing right is told soon, because somebody must give it; but no reload of the rights may end a service.
    """
    if not passing(refusal):
        return 0.0
    return min(patience, RIGHTS_SECONDS) if isinstance(refusal, RightMissing) else patience


def unavailable(what_follows: str, refusal: ResponseError) -> RedisUnavailable:
    """Return the error that tells a user of a refusal: NotPermitted where a right is missing, which it names."""
    if isinstance(refusal, RightMissing):
        return NotPermitted(f"{what_follows}: {refusal.what}", refusal.user, refusal.command, refusal.keys)
    return RedisUnavailable(f"{what_follows}: {refusal}")


def _code(refusal: ResponseError) -> str:
    # redis-py leaves the first word out where it has a class for it; which classes it uses depends on its version.
    return _CODES.get(type(refusal)) or str(refusal).partition(" ")[0]


def accepted(answers: list[Any]) -> list[Any]:
    """Return the answers. Raises the first ResponseError among them."""
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return answers


def permitted(answers: list[Any]) -> list[Any]:
    """Return the answers. Raises the first RightMissing among them."""
    for answer in answers:
        if isinstance(answer, RightMissing):
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
