"""Dead letters: the heads of a request's fields with the reason, under the request's own id where that is possible."""

from statewright_worker.streams.bounds import StreamBounds
from statewright_worker.streams.dead_letters import FIELDS_KEPT, HEAD_BYTES, DeadLetter
from statewright_worker.streams.partition import Publication
from statewright_worker.streams.proposals import Entry
from tests.deployment import Deployment
from tests.streams.room import Room, streams_room


def letter(entry_id: str, reason: str = "wrong") -> DeadLetter:
    return DeadLetter(Entry(entry_id, {b"message": b"{}"}), reason, "state")


async def publish(room: Room, *letters: DeadLetter) -> None:
    await room.streams.publish(Publication(dead_letters=list(letters)))


async def kept(room: Room) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = await room.redis.xrange(room.channels.dead_letters(0))
    return found


def test_a_letter_holds_the_heads_of_its_requests_fields_and_what_was_wrong() -> None:
    large = {b"message": b"m" * (HEAD_BYTES + 1), b"n" * (HEAD_BYTES + 1): b"v" * (HEAD_BYTES + 1)}
    assert DeadLetter(Entry("1-0", large), "too large", None).fields() == {
        b"message": b"m" * HEAD_BYTES,
        b"n" * HEAD_BYTES: b"v" * HEAD_BYTES,
        b"size": str(HEAD_BYTES + 1).encode(),
        b"reason": b"too large",
        b"field": b"",
    }
    many = {b"%d" % number: b"" for number in range(100)}
    assert [*DeadLetter(Entry("1-0", many), "wrong", "id").fields()] == [*list(many)[:FIELDS_KEPT], b"reason", b"field"]


async def test_a_letter_has_its_requests_id_and_is_kept_once(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        for _ in range(2):
            await publish(room, letter("3-0"), letter("5-0"))
        wrong = {b"message": b"{}", b"reason": b"wrong", b"field": b"state"}
        assert await kept(room) == [(b"3-0", wrong), (b"5-0", wrong)]


async def test_a_letter_whose_id_lies_below_an_older_ones_names_it_in_a_field(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await publish(room, letter("5-0"), letter("3-0", "late"))
        [_, [entry_id, late]] = await kept(room)
        assert entry_id != b"3-0"
        assert late == {b"entry": b"3-0", b"message": b"{}", b"reason": b"late", b"field": b"state"}


async def test_no_more_letters_are_kept_than_the_bounds_say_and_for_no_longer(deployment: Deployment) -> None:
    # Redis deletes whole nodes of a stream, of a hundred entries or 4,096 bytes.
    async with streams_room(deployment, StreamBounds(dead_letters_kept=10, dead_letter_seconds=100)) as room:
        await publish(room, *(letter(f"{number}-0") for number in range(1, 1_001)))
        assert 10 <= len(await kept(room)) < 150
        assert 90 < await room.redis.ttl(room.channels.dead_letters(0)) <= 100


async def test_a_letter_that_a_full_redis_refuses_is_owed(deployment: Deployment) -> None:
    async with streams_room(deployment) as room:
        await room.fill()
        await publish(room, letter("3-0"))
        assert room.streams.owes
        await room.make_room()
        assert await room.streams.settle("0-0") is None
        assert [entry_id for entry_id, _ in await kept(room)] == [b"3-0"]
        assert await room.redis.ttl(room.channels.dead_letters(0)) > 0
