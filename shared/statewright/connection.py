"""The one place where a connection to Redis is made, for clients and workers alike."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from statewright.channels import following

Result = TypeVar("Result")

DROPPED: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""What is raised when a connection is lost or refused: worth another try, unlike an answer that says no."""

CONNECT_TIMEOUT_SECONDS: Final = 5

Argument = str | int | bytes
Command = tuple[Argument, ...]
StreamEntry = tuple[bytes, dict[bytes, bytes]]
"""An entry's id, and its fields."""

# Its stub declares a tuple of one argument.
_pack: Any = hiredis.pack_command


class _Packing:
    """What makes a connection write commands with hiredis, as redis-py's own does for those that are not asyncio's.

    Its Python code takes several times as long, for every request and every answer.
    """

    def pack_command(self, name: str, *arguments: object) -> list[bytes]:
        """Return the command as bytes; its name may be of several words."""
        return [_pack((*name.split(), *arguments))]


def connection_pool(url: str) -> ConnectionPool:
    """Return a pool for `url` (redis://, rediss:// or unix://) that connects when it is first used.

    A command may block for as long as it likes: a dead peer is noticed by keep-alive, not by a read timeout.
    """
    keepalive = {} if url.startswith("unix://") else {"socket_keepalive": True}
    pool: ConnectionPool = ConnectionPool.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT_SECONDS, **keepalive)
    # Which class it is depends on the URL: TCP, TLS or a socket of the file system.
    connects: Any = pool.connection_class
    pool.connection_class = type(f"Packing{connects.__name__}", (_Packing, connects), {})
    # HeldConnection hands answers out as they come, so they must always come in the same form.
    pool.connection_kwargs["protocol"] = 2
    return pool


class HeldConnection:
    """A connection that its one user keeps, made when it is first used and again after it was lost.

    To take one from the pool for each command costs more than the command itself.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: Any = None

    async def exchange(self, *commands: Command) -> list[Any]:
        """Send the commands together, and return their answers as Redis gave them; what it refused is a ResponseError
        in the place of an answer.

        Raises what is in DROPPED when the connection is lost; some of the commands may have been carried out then.
        """
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        connection = self._connection
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await _answer(connection) for _ in commands]

    async def ask(self, *command: Argument) -> Any:
        """Send one command and return its answer. Raises ResponseError when Redis refuses it."""
        [answer] = accepted(await self.exchange(command))
        return answer

    async def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._pool.release(connection)


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal


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


async def persist(do: Callable[[], Awaitable[Result]]) -> Result:
    """Return what `do` returns; while the connection is dropped, do it again, in pauses that grow to one second."""
    try:
        return await do()
    except DROPPED:
        # Only now: what manages retries costs more than a command to Redis does.
        return await _again(do)


async def _again(do: Callable[[], Awaitable[Result]]) -> Result:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(DROPPED), wait=wait_random_exponential(multiplier=0.05, max=1), reraise=True
    )
    async for attempt in retrying:
        with attempt:
            return await do()
    raise AssertionError("it is tried again until it succeeds")


async def cancel(task: "asyncio.Task[None]") -> None:
    """Cancel a task that runs for ever, and wait until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
