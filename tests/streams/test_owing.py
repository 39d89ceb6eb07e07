"""What a full Redis refuses is owed: sent when there is room, in part before, and given up when that takes too long."""

import pytest

from statewright_worker.streams.dead_letters import DeadLetter
from statewright_worker.streams.overdraft import OVERDRAFT_BYTES
from statewright_worker.streams.owed import OWED_BYTES, Owed
from statewright_worker.streams.partition import Publication
from statewright_worker.streams.proposals import START, Entry
from tests.deployment import Deployment
from tests.streams.room import answers, streams_room


async def test_answers_go_beyond_the_bound_as_far_as_the_overdraft(deployment: Deployment) -> None:
    replies = deployment.channels.replies("raw")
    async with streams_room(deployment) as room:
        streams, redis = room.streams, room.redis
        await room.fill()
        for _ in range(10):
            assert await streams.publish(answers(2, 400_000)) is None
            refusal = await streams.settle(START)
        assert refusal is not None
        assert streams.owes
        sent = await redis.xlen(replies)
        assert OVERDRAFT_BYTES <= sent * 400_000 < OVERDRAFT_BYTES + 400_000
        assert await redis.ttl(replies) > 0

        # Once there is room, everything goes out, and there is an overdraft again.
        await room.make_room()
        assert await streams.settle(START) is None
        assert await redis.xlen(replies) == 20
        await room.fill()
        await streams.publish(answers(1, 400_000))
        assert await streams.settle(START) is None


async def test_what_is_owed_leaves_a_stream_that_nobody_reads_its_end(deployment: Deployment) -> None:
    replies = deployment.channels.replies("raw")
    async with streams_room(deployment) as room:
        streams, redis = room.streams, room.redis
        await room.fill()
        await streams.publish(answers(4, 400_000))
        assert await streams.settle(START) is not None
        await redis.expire(replies, 5)
        assert await streams.settle(START) is not None
        assert await redis.ttl(replies) <= 5


async def test_requests_that_are_answered_make_room_for_their_answers(deployment: Deployment) -> None:
    proposals = deployment.channels.proposals(0)
    async with streams_room(deployment) as room:
        streams, redis = room.streams, room.redis
        first, second = [await redis.xadd(proposals, {"message": "x" * 5_000}) for _ in range(2)]
        await room.fill()
        await streams.publish(answers(1, 10))
        await streams.settle(first.decode())
        assert [entry_id for entry_id, _ in await redis.xrange(proposals)] == [second]


async def test_a_key_that_is_no_stream_and_an_id_that_is_taken_hold_nobody_up(deployment: Deployment) -> None:
    letters = deployment.channels.dead_letters(0)
    async with streams_room(deployment) as room:
        streams, redis = room.streams, room.redis
        await redis.set(deployment.channels.replies("odd"), "no stream")
        await redis.xadd(letters, {"reason": "later"}, id="2-0")
        await room.fill()
        wrong = [DeadLetter(Entry(entry_id, {}), "wrong", None) for entry_id in ("2-0", "3-0")]
        odd = answers(1, 10, "odd")
        await streams.publish(Publication(replies={**odd.replies, **answers(1, 10).replies}, dead_letters=wrong))
        assert await streams.settle(START) is None
        assert await redis.xlen(deployment.channels.replies("raw")) == 1
        assert [entry_id for entry_id, _ in await redis.xrange(letters)] == [b"2-0", b"3-0"]
        assert await redis.ttl(letters) > 0


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
