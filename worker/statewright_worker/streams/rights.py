"""The rights that a worker needs in Redis, and the look at its start whether its user has them."""

from collections.abc import Iterator
from typing import Final

from statewright.connection import DROPPED, Command, HeldConnection, RightMissing
from statewright.errors import ConfigurationError
from statewright.protocol.channels import Channels
from statewright.values import MAX_PARTITIONS
from statewright_worker.starting import ServerAway
from statewright_worker.streams.reaching import open_pool
from statewright_worker.streams.scripts import script_command

_NOBODY: Final = "nobody"
_NOWHERE: Final = MAX_PARTITIONS
"""A partition that no deployment has."""
_NONSENSE: Final = "nonsense"
"""What no command that writes takes in this place: Redis looks at the rights first, and then refuses it in any case."""


async def check_rights(redis_url: str, channels: Channels) -> None:
    """Return when the user of the URL has every right that a worker needs; nothing is changed in Redis.

    Raises ConfigurationError, which names the first right that is missing, and ServerAway when Redis does not answer.
    """
    async with open_pool(redis_url) as pool:
        redis = HeldConnection(pool)
        try:
            answers = await redis.exchange(*_what_a_worker_does(channels))
        except DROPPED as error:
            raise ServerAway(f"cannot reach Redis (STATEWRIGHT_REDIS_URL): {error}") from error
        finally:
            await redis.close()
    for answer in answers:
        # All other refusals are as they should be, or they pass: a worker must also start while Redis is full.
        if isinstance(answer, RightMissing):
            raise ConfigurationError(f"Redis refuses us (STATEWRIGHT_REDIS_URL): {answer}") from answer


def _what_a_worker_does(channels: Channels) -> Iterator[Command]:
    """Yield each command that a worker uses, on each kind of key on which it uses it."""
    yield from _what_it_does_with_streams(channels)
    yield from _what_it_does_with_queries(channels)
    yield from _what_it_does_with_holds(channels)
    yield from _what_arq_does(channels)


def _what_it_does_with_streams(channels: Channels) -> Iterator[Command]:
    proposals, events = channels.proposals(_NOWHERE), channels.events(_NOWHERE)
    letters, suspect = channels.dead_letters(_NOWHERE), channels.suspect(_NOWHERE)
    replies = channels.replies(_NOBODY)
    for stream in (proposals, events, letters, replies):
        yield "XADD", stream, _NONSENSE, "a", "b"
    for stream in (proposals, events):
        yield "XREVRANGE", stream, "+", "-", "COUNT", 1
        yield "XLEN", stream
        yield "XTRIM", stream, "MAXLEN", _NONSENSE
        yield "MEMORY", "USAGE", stream
    for stream in (letters, replies):
        yield "EXPIRE", stream, _NONSENSE
    yield "XREAD", "COUNT", 1, "STREAMS", proposals, "0-0"
    yield "XDEL", proposals, _NONSENSE
    yield "XRANGE", letters, "-", "+", "COUNT", 1
    yield "SCAN", 0
    yield "TTL", replies
    yield "GET", suspect
    yield "SET", suspect, _NOBODY, _NONSENSE
    for key in (events, suspect):
        yield "DEL", key
    for key in (proposals, events, suspect):
        yield script_command("return 1", [key])


def _what_it_does_with_queries(channels: Channels) -> Iterator[Command]:
    queries, proposals = channels.queries, channels.proposals(_NOWHERE)
    yield "XGROUP", "CREATE", queries, _NOBODY, _NONSENSE
    yield "XREADGROUP", "GROUP", _NOBODY, _NOBODY, "COUNT", 1, "STREAMS", queries, _NONSENSE
    yield "XAUTOCLAIM", queries, _NOBODY, _NOBODY, 0, _NONSENSE
    yield "XACK", queries, _NOBODY, _NONSENSE
    yield "XDEL", queries, _NONSENSE
    # How long the oldest request has waited, for whoever asks.
    yield "XRANGE", proposals, "-", "+", "COUNT", 1


def _what_it_does_with_holds(channels: Channels) -> Iterator[Command]:
    holders, workers, announced = channels.holders, channels.workers, channels.announced
    yield ("TIME",)
    yield "ZADD", workers, _NONSENSE, _NOBODY
    yield "ZREM", workers, _NOBODY
    yield "ZCARD", workers
    yield "ZREMRANGEBYSCORE", workers, _NONSENSE, _NONSENSE
    yield "HGET", holders, _NOBODY
    yield "HGETALL", holders
    yield "HGETALL", announced
    yield "HLEN", announced
    for key in (holders, announced):
        # An odd number of arguments.
        yield "HSET", key, _NOBODY, _NOBODY, _NONSENSE
        yield "HDEL", key, _NOBODY
    for key in (workers, holders, announced):
        yield "PEXPIRE", key, _NONSENSE
    for key in (channels.partitions, channels.database):
        yield "SET", key, _NOBODY, _NONSENSE
    yield "GET", channels.database
    yield "EXISTS", channels.database
    yield script_command("return 1", [channels.database])
    yield script_command("return 1", [workers, holders, channels.partitions, announced])


def _what_arq_does(channels: Channels) -> Iterator[Command]:
    queue, health = channels.queue, f"{channels.namespace}:health:{_NOBODY}"
    yield ("INFO",)
    yield ("DBSIZE",)
    yield "ZADD", queue, _NONSENSE, _NOBODY
    yield "ZREM", queue, _NOBODY
    yield "ZCARD", queue
    yield "ZSCORE", queue, _NOBODY
    yield "ZINCRBY", queue, _NONSENSE, _NOBODY
    yield "ZRANGEBYSCORE", queue, 0, 0
    yield "ZREM", "arq:abort", _NOBODY
    yield "PSETEX", health, _NONSENSE, _NOBODY
    yield "DEL", health
    for kind in ("job", "in-progress", "retry", "result"):
        key = f"arq:{kind}:{channels.namespace}:{_NOBODY}"
        yield "EXISTS", key
        yield "GET", key
        yield "DEL", key
        yield "PSETEX", key, _NONSENSE, _NOBODY
        yield "PEXPIRE", key, _NONSENSE
        yield "EXPIRE", key, _NONSENSE
        yield "INCRBY", key, _NONSENSE
        yield "WATCH", key
    yield ("UNWATCH",)
    yield ("MULTI",)
    yield ("EXEC",)
