"""What a batch tells the world leaves together: events, dead letters and answers, in this order, in few round trips."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from statewright.connection import Command, HeldConnection
from statewright_worker.streams.dead_letters import DeadLetter
from statewright_worker.streams.events import Appended, SequencedEvent
from statewright_worker.streams.partition import ROUND_TRIP_BYTES, Publication
from statewright_worker.streams.proposals import START, Entry
from tests.deployment import Deployment
from tests.streams.room import answers, name_and_key, streams_room


@contextmanager
def round_trips() -> Iterator[list[tuple[Command, ...]]]:
    """Note what is sent together."""
    sent: list[tuple[Command, ...]] = []
    exchange = HeldConnection.exchange

    async def noting(self: HeldConnection, *commands: Command, **named: Any) -> list[Any]:
        sent.append(commands)
        return await exchange(self, *commands, **named)

    with patch.object(HeldConnection, "exchange", noting):
        yield sent


async def test_a_batch_leaves_in_one_round_trip(deployment: Deployment) -> None:
    publication = Publication(
        events=[SequencedEvent(1, b"{}"), SequencedEvent(2, b"{}")],
        replies={**answers(3, 10, "one").replies, **answers(1, 10, "other").replies},
        dead_letters=[DeadLetter(Entry(entry_id, {}), "wrong", None) for entry_id in ("1-0", "2-0")],
    )
    async with streams_room(deployment) as room:
        letters, one, other = (
            room.channels.dead_letters(0),
            room.channels.replies("one"),
            room.channels.replies("other"),
        )
        with round_trips() as sent:
            assert await room.streams.publish(publication) == Appended(True, 2)
        [together] = sent
        assert [name_and_key(command) for command in together] == [
            ("EVAL", room.channels.events(0)),
            ("XADD", letters),
            ("XADD", letters),
            ("EXPIRE", letters),
            ("XADD", one),
            ("EXPIRE", one),
            ("XADD", other),
            ("EXPIRE", other),
        ]
        # Lifetimes are not given anew with each answer.
        with round_trips() as sent:
            await room.streams.publish(answers(1, 10, "one"))
        assert [[name_and_key(command) for command in together] for together in sent] == [[("XADD", one)]]


async def test_requests_are_read_and_trimmed_in_one_round_trip(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        first = (await room.redis.xadd(room.channels.proposals(0), {"message": "{}"})).decode()
        with round_trips() as sent:
            await room.streams.proposals.read(START, START, 1, 1)
            await room.streams.proposals.read(first, first, 1, 1)
        assert [[command[0] for command in together] for together in sent] == [["XREAD"], ["XTRIM", "XREAD"]]


async def test_nothing_to_tell_costs_no_round_trip(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        with round_trips() as sent:
            assert await room.streams.publish(Publication()) is None
        assert sent == []


async def test_what_is_large_leaves_in_several_round_trips(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        with round_trips() as sent:
            await room.streams.publish(answers(3, ROUND_TRIP_BYTES // 2 + 1))
        assert [len(together) for together in sent] == [2, 2]
        assert await room.redis.xlen(room.channels.replies("raw")) == 3


async def test_events_that_cannot_be_appended_hold_up_no_answers(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.redis.set(room.channels.events(0), "no stream")
        told = answers(1, 1)
        told.events.append(SequencedEvent(1, b"{}"))
        assert await room.streams.publish(told) == Appended(False, None)
        assert await room.redis.xlen(room.channels.replies("raw")) == 1


async def test_while_something_is_owed_what_comes_later_waits_behind_it(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.fill()
        await room.streams.publish(Publication(replies={"raw": [(b"1", b"{}")]}))
        await room.make_room()
        later = Publication(replies={"raw": [(b"2", b"{}")]}, events=[SequencedEvent(1, b"{}")])
        with round_trips() as sent:
            assert await room.streams.publish(later) == Appended(False, None)
        assert sent == []
        assert await room.streams.settle(START) is None
        told = [fields for _, fields in await room.redis.xrange(room.channels.replies("raw"))]
        assert told == [{b"1": b"{}"}, {b"2": b"{}"}]
        assert await room.redis.ttl(room.channels.replies("raw")) > 0
