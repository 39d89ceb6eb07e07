"""Back pressure: a partition's unanswered requests are bounded; a client without room is refused before it writes."""

from typing import Any

import pytest

from statewright import Client, NoAnswer, Overloaded, Sent, State
from statewright.ids import IdSource
from tests.deployment import HANGS_SECONDS, Deployment
from tests.end_to_end.hand_worker import announce, requests
from tests.end_to_end.test_access import users

ids = IdSource()

BOUND = 10


def send(client: Client, count: int, partition: int = 0, message: str = "") -> list[Sent[Any]]:
    return [client.propose(ids.new(tag=partition), State.pending(message=message)) for _ in range(count)]


async def taken(sent: list[Sent[Any]]) -> list[Any]:
    """Return the ids of the requests that Redis holds; fail unless all others were refused because of the bound."""
    held = []
    for pending in sent:
        try:
            held.append(await pending.pushed())
        except Overloaded:
            with pytest.raises(Overloaded, match="was not sent") as raised:
                await pending
            assert raised.value.request_id == pending.request_id
    return held


async def test_what_is_too_much_is_refused_before_it_is_sent(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment, partitions=2)
        async with deployment.client(max_backlog=BOUND) as client:
            sent = send(client, 3 * BOUND)
            elsewhere = send(client, BOUND, partition=1)
            assert await taken(sent) == [pending.request_id for pending in sent[:BOUND]]
            assert await taken(elsewhere) == [pending.request_id for pending in elsewhere]
            with pytest.raises(Overloaded, match=f"{BOUND} requests of partition 0 are unanswered") as raised:
                await send(client, 1)[0]
            assert (raised.value.partition, raised.value.unanswered, raised.value.code) == (0, BOUND, "overloaded")
            assert raised.value.bytes is not None
            assert raised.value.bytes > 0
            assert raised.value.oldest_seconds is not None
            assert raised.value.oldest_seconds >= 0
            assert await requests(redis, deployment) == [pending.request_id for pending in sent[:BOUND]]


async def test_there_is_room_again_once_requests_are_answered(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client(max_backlog=BOUND) as client:
            for pending in send(client, BOUND):
                await pending.pushed()
            await redis.xtrim(deployment.channels.proposals(0), maxlen=BOUND - 3, approximate=False)
            assert len(await taken(send(client, BOUND))) == 3


async def test_requests_are_bounded_in_bytes_too(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client(max_backlog_bytes=100_000) as client:
            one_by_one = [await taken(send(client, 1, message="x" * 20_000)) for _ in range(2 * BOUND)]
            assert 2 <= len([held for held in one_by_one if held]) <= 5
            size = await redis.memory_usage(deployment.channels.proposals(0))
            assert size is not None
            assert size <= 100_000
            # The request alone is beyond the bound, and is sent all the same, because nothing else waits.
            await redis.delete(deployment.channels.proposals(0))
            assert len(await taken(send(client, 1, message="x" * 200_000))) == 1


async def test_what_others_have_sent_counts(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client(max_backlog=BOUND) as one, deployment.client(max_backlog=BOUND) as other:
            assert len(await taken(send(one, BOUND - 1))) == BOUND - 1
            assert len(await taken(send(other, BOUND))) == 1
            assert await taken(send(one, 1)) == []


async def test_who_waits_for_room_gets_it_in_order_and_holds_up_no_other_partition(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment, partitions=2)
        stream = deployment.channels.proposals(0)
        async with deployment.client(max_backlog=BOUND, wait_for_room=60) as client:
            sent = send(client, BOUND + 3)
            assert len(await taken(send(client, BOUND, partition=1))) == BOUND
            with pytest.raises(NoAnswer, match=r"it was not sent; .*its partition has no room"):
                await client.propose(ids.new(tag=0), State.pending(), timeout=0.2)
            last = send(client, 1)
            await redis.xtrim(stream, maxlen=2, approximate=False)
            assert await last[0].pushed() == last[0].request_id
            held = await requests(redis, deployment)
    expected = [pending.request_id for pending in sent]
    assert held[:2] == expected[BOUND - 2 : BOUND]
    assert [one for one in held if one in expected] == expected[BOUND - 2 :]
    assert held[-1] == last[0].request_id


async def test_who_waits_for_room_in_vain_is_refused_in_the_end(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client(max_backlog=BOUND, wait_for_room=0.3) as client:
            assert len(await taken(send(client, 2 * BOUND))) == BOUND


async def test_a_client_that_closes_while_it_waits_for_room_fails_what_it_has(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        # The timeout bounds the closing, which must end in vain here, and so the opening as well.
        async with deployment.client(max_backlog=BOUND, wait_for_room=HANGS_SECONDS, answer_timeout=2) as client:
            sent = send(client, BOUND + 1)
            await sent[BOUND - 1].pushed()
        with pytest.raises(NoAnswer, match="it was not sent, and has no effect"):
            await sent[BOUND]


async def test_a_producer_of_the_deployment_files_is_told_how_much_is_unanswered(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment)
        stream = deployment.channels.proposals(0)
        await redis.xadd(stream, {"old": "x" * 1_000}, id="1000-0")
        async with Client(urls["producer"], namespace=deployment.namespace, max_backlog=1) as client:
            with pytest.raises(Overloaded) as raised:
                await send(client, 1)[0]
    error = raised.value
    assert error.unanswered == 1
    assert error.bytes is not None
    assert error.bytes > 1_000
    assert error.oldest_seconds is not None
    assert error.oldest_seconds > 1_000_000_000


async def test_a_user_who_may_not_ask_sends_without_a_bound(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment)
        user = f"statewright-producer-{deployment.namespace}"
        await redis.execute_command("ACL", "SETUSER", user, "-xlen", "-memory")  # type: ignore[no-untyped-call]
        async with Client(urls["producer"], namespace=deployment.namespace, max_backlog=1) as client:
            assert len(await taken(send(client, 1))) == 1
            assert len(await taken(send(client, 1))) == 1
