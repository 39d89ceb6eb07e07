"""Proposals: requests are read in order, deleted once they are answered, and counted; a suspect is remembered."""

import asyncio

from redis.asyncio import Redis

from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.proposals import START, Backlog
from tests.deployment import Deployment
from tests.streams.room import Room, streams_room


async def pushed(room: Room, count: int) -> list[str]:
    """Push so many requests; return the ids of their entries."""
    key = room.channels.proposals(0)
    return [(await room.redis.xadd(key, {"message": str(number)})).decode() for number in range(count)]


async def left(room: Room) -> list[str]:
    return [entry_id.decode() for entry_id, _ in await room.redis.xrange(room.channels.proposals(0))]


async def test_requests_are_read_oldest_first_and_those_that_are_answered_go_with_the_next_read(
    deployment: Deployment,
) -> None:
    async with streams_room(deployment) as room:
        proposals, ids = room.streams.proposals, await pushed(room, 5)
        first = await proposals.read(START, START, 3, 1)
        assert [entry.id for entry in first] == ids[:3]
        assert [entry.fields for entry in first] == [{b"message": b"0"}, {b"message": b"1"}, {b"message": b"2"}]
        assert await left(room) == ids
        second = await proposals.read(ids[2], ids[1], 3, 1)
        assert [entry.id for entry in second] == ids[3:]
        assert await left(room) == ids[2:]


async def test_a_read_waits_for_the_first_request_and_no_longer_than_it_may(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        assert await room.streams.proposals.read(START, START, 10, 1) == []
        reading = asyncio.create_task(room.streams.proposals.read(START, START, 10, 60_000))
        await _blocked(room.redis)
        [entry_id] = await pushed(room, 1)
        assert [entry.id for entry in await reading] == [entry_id]


async def _blocked(redis: Redis) -> None:
    """Return once somebody waits for an entry."""
    while not (await redis.info("clients"))["blocked_clients"]:  # noqa: ASYNC110  # nobody says it
        await asyncio.sleep(0.01)


async def test_what_is_answered_is_trimmed(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        ids = await pushed(room, 3)
        await room.streams.proposals.trim(START)
        assert await left(room) == ids
        await room.streams.proposals.trim(ids[1])
        assert await left(room) == ids[2:]


async def test_the_backlog_is_counted_and_its_newest_requests_are_found_and_deleted(deployment: Deployment) -> None:
    async with streams_room(deployment, StreamBounds()) as room:
        proposals = room.streams.proposals
        assert await proposals.backlog() == Backlog(0, 0)
        ids = await pushed(room, 4)
        backlog = await proposals.backlog()
        assert backlog.entries == 4
        assert backlog.size > 0
        assert [entry.id for entry in await proposals.newest(START, 3)] == ids[:0:-1]
        # What is answered, or is being answered, is none of them.
        assert [entry.id for entry in await proposals.newest(ids[2], 3)] == [ids[3]]
        await proposals.delete([ids[3], ids[1]])
        assert await left(room) == [ids[0], ids[2]]


async def test_a_suspect_is_remembered_until_it_is_carried_out(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        proposals = room.streams.proposals
        assert await proposals.suspect() == (None, 0)
        await proposals.suspect_of("7-0", 2)
        assert await proposals.suspect() == ("7-0", 2)
        await proposals.suspect_nothing()
        assert await proposals.suspect() == (None, 0)


async def test_a_full_redis_takes_note_of_a_suspect(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.fill()
        for times in (1, 2):
            await room.streams.proposals.suspect_of("7-0", times)
        assert await room.streams.proposals.suspect() == ("7-0", 2)
        assert await room.redis.ttl(room.channels.suspect(0)) > 0
