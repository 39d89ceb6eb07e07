"""Replies: the answers to a client come in entries of a bounded size, and their stream ends some time."""

import pytest

from statewright.protocol.channels import Channels
from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.partition import Publication
from statewright_worker.streams.replies import (
    ANSWERS_PER_ENTRY,
    CLIENTS_REMEMBERED,
    ENTRY_BYTES,
    LIFETIME_GOES_STALE,
    Replies,
    give_lifetimes,
)
from tests.deployment import Deployment
from tests.streams.room import Room, answers, streams_room


async def lengths(room: Room, client: str = "raw") -> list[int]:
    """Return how many answers each entry of a client's stream holds."""
    return [len(fields) for _, fields in await room.redis.xrange(room.channels.replies(client))]


async def test_the_answers_of_a_batch_to_each_client_are_one_entry(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        replies = {"one": [(b"1", b"{}"), (b"2", b"[]")], "other": [(b"3", b"{}")]}
        assert await room.streams.publish(Publication(replies=replies)) is None
        [[_, fields]] = await room.redis.xrange(room.channels.replies("one"))
        assert fields == {b"1": b"{}", b"2": b"[]"}
        assert await lengths(room, "other") == [1]


async def test_an_entry_takes_no_more_answers_than_it_may(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.streams.publish(answers(ANSWERS_PER_ENTRY + 1, 1, "many"))
        assert await lengths(room, "many") == [ANSWERS_PER_ENTRY, 1]
        await room.streams.publish(answers(5, ENTRY_BYTES // 2, "large"))
        assert await lengths(room, "large") == [2, 2, 1]
        # One that is too large for an entry stands alone.
        await room.streams.publish(answers(2, ENTRY_BYTES + 1, "huge"))
        assert await lengths(room, "huge") == [1, 1]


async def test_a_stream_keeps_no_more_entries_than_the_bounds_say(deployment: Deployment) -> None:
    async with streams_room(deployment, StreamBounds(replies_kept=20)) as room:
        for _ in range(400):
            await room.streams.publish(answers(1, 1))
        assert 20 <= len(await lengths(room)) < 200


async def test_a_lifetime_is_given_with_the_first_answer_and_once_a_part_of_it_is_over(deployment: Deployment) -> None:
    async with streams_room(deployment, StreamBounds(reply_seconds=600)) as room:
        stream = room.channels.replies("raw")
        await room.streams.publish(answers(1, 1))
        assert 590 < await room.redis.ttl(stream) <= 600
        await room.redis.expire(stream, 100)
        await room.streams.publish(answers(1, 1))
        assert await room.redis.ttl(stream) <= 100
    async with streams_room(deployment, StreamBounds(reply_seconds=0)) as room:
        # A lifetime of nothing is over at once, and so given each time.
        for _ in range(2):
            await room.streams.publish(answers(1, 1))
            assert not await room.redis.exists(room.channels.replies("raw"))


async def test_a_lifetime_is_renewed_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    replies, now = Replies(Channels("test"), StreamBounds(reply_seconds=600)), 0.0
    monkeypatch.setattr(replies, "_clock", lambda: now)

    def renewed(*clients: str) -> list[str]:
        commands = [command for _, command in replies.sending({client: [(b"1", b"{}")] for client in clients})]
        return [client for client in clients if replies.lasting(replies._channels.replies(client)) in commands]

    stale = 600 * LIFETIME_GOES_STALE
    assert renewed("one") == ["one"]
    assert renewed("one", "other") == ["other"]
    now = stale - 1
    assert renewed("one", "other") == []
    now = stale
    assert renewed("one", "other") == ["one", "other"]
    assert renewed("one", "other") == []
    # It forgets all clients when they become too many, and renews their lifetimes too early.
    assert len(renewed(*map(str, range(CLIENTS_REMEMBERED - 2)))) == CLIENTS_REMEMBERED - 2
    assert renewed("one") == []
    assert renewed("another") == ["another"]
    assert renewed("one") == ["one"]


async def test_streams_without_a_lifetime_get_one(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        for client in ("one", "other"):
            await room.redis.xadd(room.channels.replies(client), {"1": "{}"})
        await room.redis.expire(room.channels.replies("other"), 100)
        assert await give_lifetimes(room.redis, room.channels, 600) == 1
        assert 590 < await room.redis.ttl(room.channels.replies("one")) <= 600
        assert await room.redis.ttl(room.channels.replies("other")) <= 100
        assert await give_lifetimes(room.redis, room.channels, 600) == 0


async def test_a_key_that_is_no_stream_costs_nobody_else_an_answer(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.redis.set(room.channels.replies("odd"), "no stream")
        for _ in range(2):
            odd = answers(1, 1, "odd")
            await room.streams.publish(Publication(replies={**odd.replies, **answers(1, 1).replies}))
        assert await lengths(room) == [1, 1]
        assert not room.streams.owes
