"""The rights that a worker needs in Redis, and the look at its start whether its user has them."""

from collections.abc import Iterator
from typing import Final

from redis.exceptions import ResponseError

from statewright.connection import DROPPED, Command, HeldConnection, RightMissing, passing
from statewright.errors import ConfigurationError
from statewright.protocol.channels import Channels
from statewright_worker.starting import ServerAway
from statewright_worker.streams.reaching import open_pool
from statewright_worker.streams.scripts import script_command

_NOBODY: Final = "nobody"
"""The name of a client, a job and a worker that do not exist: nothing of what is asked here is carried out."""


async def check_rights(redis_url: str, channels: Channels) -> None:
    """Return when the user of the URL has every right that a worker needs.

    Raises ConfigurationError, which names the first right that is missing, and ServerAway when Redis does not answer.
    Nothing is carried out: Redis looks at a command's rights when a transaction is put together, and drops the
    transaction with its connection.
    """
    async with open_pool(redis_url) as pool:
        redis = HeldConnection(pool)
        try:
            await redis.ask("MULTI")
            answers = await redis.exchange(*_what_a_worker_does(channels))
        except ResponseError as refusal:
            if isinstance(refusal, RightMissing) or not passing(refusal):
                raise ConfigurationError(f"Redis refuses us (STATEWRIGHT_REDIS_URL): {refusal}") from refusal
            raise ServerAway(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {refusal}") from refusal
        except DROPPED as error:
            raise ServerAway(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
        finally:
            await redis.close()
    # Whatever else Redis refuses now, for example because it has no memory left, it will meet those who ask in earnest.
    for answer in answers:
        if isinstance(answer, RightMissing):
            raise ConfigurationError(f"Redis refuses us (STATEWRIGHT_REDIS_URL): {answer}") from answer


def _what_a_worker_does(channels: Channels) -> Iterator[Command]:
    """Yield each command that a worker uses, on each kind of key on which it uses it."""
    yield from _what_it_does_with_streams(channels)
    yield from _what_it_does_with_holds(channels)
    yield from _what_arq_does(channels)


def _what_it_does_with_streams(channels: Channels) -> Iterator[Command]:
    proposals, events, letters = channels.proposals(0), channels.events(0), channels.dead_letters(0)
    replies = channels.replies(_NOBODY)
    for stream in (proposals, events, letters, replies):
        yield "XADD", stream, "*", "a", "b"
    for stream in (proposals, events):
        yield "XREVRANGE", stream, "+", "-", "COUNT", 1
        yield "XLEN", stream
        yield "XTRIM", stream, "MAXLEN", 1
        yield "MEMORY", "USAGE", stream
    for stream in (letters, replies):
        yield "EXPIRE", stream, 1
    yield "XREAD", "COUNT", 1, "STREAMS", proposals, "0-0"
    yield "XDEL", proposals, "0-1"
    yield "DEL", events
    yield "XRANGE", letters, "-", "+", "COUNT", 1
    yield "SCAN", 0
    yield "TTL", replies
    for key in (proposals, events, channels.suspect(0)):
        yield script_command("return 1", [key])


def _what_it_does_with_holds(channels: Channels) -> Iterator[Command]:
    for key in (channels.suspect(0), channels.database):
        yield "GET", key
        yield "SET", key, _NOBODY
        yield "DEL", key
    yield "EXISTS", channels.database
    yield "SET", channels.partitions, 1
    yield ("TIME",)
    yield "ZADD", channels.workers, 0, _NOBODY
    yield "ZREM", channels.workers, _NOBODY
    yield "ZCARD", channels.workers
    yield "ZREMRANGEBYSCORE", channels.workers, 0, 0
    yield "HGET", channels.holders, 0
    yield "HGETALL", channels.holders
    yield "HSET", channels.holders, 0, _NOBODY
    yield "HDEL", channels.holders, 0
    for key in (channels.workers, channels.holders):
        yield "PEXPIRE", key, 1
    yield script_command("return 1", [channels.database])
    yield script_command("return 1", [channels.workers, channels.holders, channels.partitions])


def _what_arq_does(channels: Channels) -> Iterator[Command]:
    job = f"{channels.namespace}:{_NOBODY}"
    yield ("INFO",)
    yield ("DBSIZE",)
    yield "ZADD", channels.queue, 0, _NOBODY
    yield "ZREM", channels.queue, _NOBODY
    yield "ZCARD", channels.queue
    yield "ZSCORE", channels.queue, _NOBODY
    yield "ZINCRBY", channels.queue, 1, _NOBODY
    yield "ZRANGEBYSCORE", channels.queue, 0, 0
    yield "ZREM", "arq:abort", _NOBODY
    yield "PSETEX", f"{channels.namespace}:health:{_NOBODY}", 1, ""
    yield "DEL", f"{channels.namespace}:health:{_NOBODY}"
    for kind in ("job", "in-progress", "retry", "result"):
        key = f"arq:{kind}:{job}"
        yield "EXISTS", key
        yield "GET", key
        yield "DEL", key
        yield "PSETEX", key, 1, ""
        yield "PEXPIRE", key, 1
        yield "EXPIRE", key, 1
        yield "INCRBY", key, 1
