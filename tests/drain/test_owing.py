"""What a full Redis refuses is owed: sent when there is room, in part before, and given up when that takes too long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from statewright.connection import connection_pool
from statewright_worker.publishing.owed import OWED_BYTES, Owed
from statewright_worker.publishing.streams import (
    OVERDRAFT_BYTES,
    START,
    DeadLetter,
    Entry,
    Publication,
    StreamBounds,
    Streams,
)
from tests.deployment import Deployment
from tests.end_to_end.own_redis import own_redis


@asynccontextmanager
async def full_redis(deployment: Deployment) -> AsyncIterator[tuple[Streams, Redis]]:
    """What the drain of partition 0 has of a Redis that takes nothing more."""
    async with own_redis(deployment) as own:
        pool = connection_pool(deployment.redis_url)
        streams = Streams(pool, deployment.channels, 0, StreamBounds())
        await own.redis.config_set("maxmemory", 1)
        try:
            yield streams, own.redis
        finally:
            await streams.close()
            await pool.disconnect()


def answers(count: int, size: int, client: str = "raw") -> Publication:
    return Publication(replies={client: [(b"%d" % number, b"x" * size) for number in range(count)]})


async def test_answers_go_beyond_the_bound_as_far_as_the_overdraft(deployment: Deployment) -> None:
    replies = deployment.channels.replies("raw")
    async with full_redis(deployment) as (streams, redis):
        for _ in range(10):
            assert await streams.publish(answers(2, 400_000)) is None
            refusal = await streams.settle(START)
        assert refusal is not None
        assert streams.owes
        sent = await redis.xlen(replies)
        assert OVERDRAFT_BYTES <= sent * 400_000 < OVERDRAFT_BYTES + 400_000
        assert await redis.ttl(replies) > 0

        # Once there is room, everything goes out, and there is an overdraft again.
        await redis.config_set("maxmemory", 0)
        assert await streams.settle(START) is None
        assert await redis.xlen(replies) == 20
        await redis.config_set("maxmemory", 1)
        await streams.publish(answers(1, 400_000))
        assert await streams.settle(START) is None


async def test_what_is_owed_leaves_a_stream_that_nobody_reads_its_end(deployment: Deployment) -> None:
    replies = deployment.channels.replies("raw")
    async with full_redis(deployment) as (streams, redis):
        await streams.publish(answers(4, 400_000))
        assert await streams.settle(START) is not None
        await redis.expire(replies, 5)
        assert await streams.settle(START) is not None
        assert await redis.ttl(replies) <= 5


async def test_requests_that_are_answered_make_room_for_their_answers(deployment: Deployment) -> None:
    proposals = deployment.channels.proposals(0)
    async with full_redis(deployment) as (streams, redis):
        await redis.config_set("maxmemory", 0)
        first, second = [await redis.xadd(proposals, {"message": "x" * 5_000}) for _ in range(2)]
        await redis.config_set("maxmemory", 1)
        await streams.publish(answers(1, 10))
        await streams.settle(first.decode())
        assert [entry_id for entry_id, _ in await redis.xrange(proposals)] == [second]


async def test_a_key_that_is_no_stream_and_an_id_that_is_taken_hold_nobody_up(deployment: Deployment) -> None:
    letters = deployment.channels.dead_letters(0)
    async with full_redis(deployment) as (streams, redis):
        await redis.config_set("maxmemory", 0)
        await redis.set(deployment.channels.replies("odd"), "no stream")
        await redis.xadd(letters, {"reason": "later"}, id="2-0")
        await redis.config_set("maxmemory", 1)
        wrong = [DeadLetter(Entry(entry_id, {}), "wrong", None) for entry_id in ("2-0", "3-0")]
        odd = answers(1, 10, "odd")
        await streams.publish(Publication(replies={**odd.replies, **answers(1, 10).replies}, dead_letters=wrong))
        assert await streams.settle(START) is None
        assert await redis.xlen(deployment.channels.replies("raw")) == 1
        assert [entry_id for entry_id, _ in await redis.xrange(letters)] == [b"2-0", b"3-0"]
        assert await redis.ttl(letters) > 0


async def test_a_full_redis_takes_note_of_a_suspect(deployment: Deployment) -> None:
    async with full_redis(deployment) as (streams, redis):
        for times in (1, 2):
            await streams.suspect_of("7-0", times)
        assert await streams.suspect() == ("7-0", 2)
        assert await redis.ttl(deployment.channels.suspect(0)) > 0


def reply(number: int, size: int = 1) -> tuple[str, int, bytes]:
    return ("XADD", number, b"x" * size)


def test_what_was_taken_is_owed_no_more_and_the_rest_stays_in_order() -> None:
    owed = Owed(seconds=60)
    owed.add(reply(number, size=10) for number in range(5))
    assert owed.oldest(25) == [reply(number, size=10) for number in range(3)]
    owed.settle([False, True, False])
    assert [number for _, number, _ in owed.oldest(1_000)] == [0, 2, 3, 4]
    owed.settle([True, True, True, True])
    assert not owed


@pytest.mark.parametrize("size", [OWED_BYTES // 2, OWED_BYTES // 2 + 1])
def test_the_oldest_is_given_up_when_too_much_is_owed(size: int) -> None:
    owed = Owed(seconds=60)
    for number in range(3):
        owed.add([reply(number, size)])
    fit = OWED_BYTES // size
    assert [number for _, number, _ in owed.oldest(OWED_BYTES)] == list(range(3))[-fit:]
    assert owed.given_up == 3 - fit


def test_what_is_owed_for_too_long_is_given_up() -> None:
    now = 0.0
    owed = Owed(seconds=60, clock=lambda: now)
    owed.add([reply(0)])
    now = 30.0
    owed.add([reply(1)])
    now = 61.0
    assert owed.oldest(1_000) == [reply(1)]
    assert owed.given_up == 1
