"""Events: the stream takes them only where it ends as the worker believes, and stays within its bounds."""

import structlog

from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.events import Appended, SequencedEvent
from tests.deployment import Deployment
from tests.streams.room import Room, streams_room


def told(*sequences: int, size: int = 1) -> list[SequencedEvent]:
    return [SequencedEvent(sequence, b"x" * size) for sequence in sequences]


async def sequences(room: Room) -> list[bytes]:
    return [entry_id for entry_id, _ in await room.redis.xrange(room.channels.events(0))]


async def test_events_lie_in_the_stream_under_their_numbers(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        events = room.streams.events
        assert await events.newest() == 0
        assert await events.append(0, [SequencedEvent(1, b"{}"), SequencedEvent(2, b"[]")]) == Appended(True, 2)
        assert await room.redis.xrange(room.channels.events(0)) == [
            (b"1-0", {b"event": b"{}"}),
            (b"2-0", {b"event": b"[]"}),
        ]
        assert await events.newest() == 2


async def test_where_the_stream_ends_otherwise_nothing_is_appended_and_it_is_told_where(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        events = room.streams.events
        await events.append(0, told(1, 2))
        for believed in (0, 1, 3):
            assert await events.append(believed, told(believed + 1)) == Appended(False, 2)
        assert await sequences(room) == [b"1-0", b"2-0"]
        assert await events.append(2, told(3)) == Appended(True, 3)


async def test_a_stream_that_was_emptied_takes_small_numbers_again(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        events = room.streams.events
        await events.append(0, told(7))
        await room.redis.xtrim(room.channels.events(0), maxlen=0, approximate=False)
        assert await events.newest() == 0
        assert await events.append(0, told(3)) == Appended(True, 3)


async def test_no_more_events_are_kept_than_the_bounds_say(deployment: Deployment) -> None:
    # Redis deletes whole nodes of a stream, of a hundred entries or 4,096 bytes.
    async with streams_room(deployment, StreamBounds(events_kept=100)) as room:
        await room.streams.events.append(0, told(*range(1, 1_001)))
        assert 100 <= len(await sequences(room)) < 300
        assert (await sequences(room))[-1] == b"1000-0"


async def test_no_more_memory_is_taken_than_the_bounds_say(deployment: Deployment) -> None:
    async with streams_room(deployment, StreamBounds(events_bytes=100_000)) as room:
        events, key = room.streams.events, room.channels.events(0)
        await events.keep_small()
        await events.append(0, told(*range(1, 11), size=1_000))
        await events.keep_small()
        assert len(await sequences(room)) == 10
        await events.append(10, told(*range(11, 1_001), size=1_000))
        assert (await room.redis.memory_usage(key) or 0) > 1_000_000
        await events.keep_small()
        assert (await room.redis.memory_usage(key) or 0) < 150_000
        assert await events.newest() == 1_000


async def test_a_key_that_is_no_stream_is_said_once_and_raises_nothing(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        events, key = room.streams.events, room.channels.events(0)
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                await room.redis.set(key, "no stream")
                assert await events.newest() is None
                assert await events.append(0, told(1)) == Appended(False, None)
                await events.keep_small()
                await room.redis.delete(key)
            assert [line["event"] for line in lines] == ["events cannot be published"]
            # Once it took events, it is news again.
            assert await events.append(0, told(1)) == Appended(True, 1)
            await room.redis.set(key, "no stream")
            assert await events.newest() is None
            assert len(lines) == 2


async def test_a_full_redis_takes_no_events_and_nobody_hears_of_it(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.streams.events.append(0, told(1))
        await room.fill()
        with structlog.testing.capture_logs() as lines:
            assert await room.streams.events.append(1, told(2)) == Appended(False, None)
        assert lines == []
        assert await sequences(room) == [b"1-0"]
