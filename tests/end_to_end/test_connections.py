"""What goes over the connections to Redis: in one instant, in its place, and for no longer than it is needed."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from statewright import Client, RedisUnavailable, RunConflict, RunNotFound, Sent, State, UnreadableAnswer
from statewright.connection import HeldConnection
from statewright.ids import IdSource
from tests.deployment import Deployment, until
from tests.end_to_end.test_access import users

ids = IdSource()


async def announce(redis: Redis, deployment: Deployment, partitions: int) -> None:
    """Announce the partitions as a worker does, without taking any request, so that requests stay in their streams."""
    await redis.set(deployment.channels.partitions, partitions)


async def test_a_refusal_stands_in_the_place_of_its_answer(deployment: Deployment) -> None:
    key = f"{deployment.namespace}:text"
    async with deployment.redis() as redis:
        held = HeldConnection(redis.connection_pool)
        set_, added, pinged = await held.exchange(("SET", key, "x"), ("XADD", key, "*", "a", "b"), ("PING",))
        assert isinstance(added, ResponseError)
        assert (set_, pinged) == (b"OK", b"PONG")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await held.ask("XADD", key, "*", "a", "b")


async def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        held = HeldConnection(redis.connection_pool)
        asking = asyncio.create_task(held.ask("BLPOP", f"{deployment.namespace}:nothing", 30))
        await until(lambda: blocked(redis, "blpop"))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await held.ask("PING") == b"PONG"


async def blocked(redis: Redis, command: str) -> int:
    """Return how many connections wait within the command."""
    clients: list[dict[str, Any]] = await redis.client_list()
    return sum(client["cmd"] == command and "b" in client["flags"] for client in clients)


async def test_requests_that_are_sent_together_arrive_in_one_instant(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment, partitions=1)
        async with deployment.client() as client:
            drain = HeldConnection(redis.connection_pool)
            stream = deployment.channels.proposals(0)
            reading = asyncio.create_task(drain.ask("XREAD", "BLOCK", 20_000, "STREAMS", stream, "$"))
            await until(lambda: blocked(redis, "xread"))
            flow_run = client.create_flow_run("together")
            pending: list[Sent[Any]] = [
                flow_run,
                client.propose(flow_run, State.pending()),
                client.read_run(flow_run),
            ]
            sent = [await one.pushed() for one in pending]
            [[_, entries]] = await reading
    assert [UUID(fields[1].decode()) for _, fields in entries] == sent


async def test_a_request_that_redis_refuses_takes_none_of_those_sent_with_it(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment, partitions=2)
        await redis.set(deployment.channels.proposals(0), "no stream")
        async with deployment.client() as client:
            refused = client.read_run(ids.new(tag=0))
            taken = client.read_run(ids.new(tag=1))
            with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
                await refused
            assert await taken.pushed() == taken.request_id
        assert await redis.xlen(deployment.channels.proposals(1)) == 1


async def test_a_user_who_may_not_send_together_sends_one_by_one(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.redis() as redis:
        await announce(redis, deployment, partitions=1)
        forbidden = ("ACL", "SETUSER", f"statewright-producer-{deployment.namespace}", "-multi", "-exec")
        await redis.execute_command(*forbidden)  # type: ignore[no-untyped-call]
        async with Client(urls["producer"], namespace=deployment.namespace) as client:
            pending = [client.create_flow_run(name) for name in ("one", "by", "one")]
            sent = [await one.pushed() for one in pending]
        entries = await redis.xrange(deployment.channels.proposals(0))
    assert [UUID(fields[b"id"].decode()) for _, fields in entries] == sent


async def test_who_asks_again_after_a_refusal_gets_a_new_answer(deployment: Deployment) -> None:
    run_id, proposal_id, stream = ids.new(), ids.new(), deployment.channels.proposals(0)
    async with deployment.redis() as redis:
        await announce(redis, deployment, partitions=1)
        await redis.set(stream, "no stream")
        async with deployment.client() as client:
            refused = client.propose(run_id, State.pending(), proposal_id=proposal_id)
            with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
                await refused
            await redis.delete(stream)
            async with deployment.worker(partitions=1):
                with pytest.raises(RunNotFound):
                    await client.propose(run_id, State.pending(), proposal_id=proposal_id)


async def test_a_request_that_was_refused_is_not_carried_out_later(deployment: Deployment) -> None:
    stream = deployment.channels.proposals(0)
    async with deployment.redis() as redis, deployment.worker(partitions=1), deployment.client() as client:
        with pytest.raises(RunConflict):
            await client.create_task_run("too early", flow_run=ids.new())

        async def both_wait() -> bool:
            return await blocked(redis, "xread") == 2

        # The client waits for answers, and the worker for requests. The next holder must not find this request.
        await until(both_wait)
        assert await redis.xlen(stream) == 0


async def test_a_client_that_leaves_leaves_no_answers_behind(deployment: Deployment) -> None:
    async with deployment.redis() as redis, deployment.worker(partitions=1):
        async with deployment.client() as client:
            await client.create_flow_run("left behind")
        streams = [stream async for stream in redis.scan_iter(match=f"{deployment.namespace}:replies:*")]
        assert [await redis.xlen(stream) for stream in streams] == [0]


async def test_a_client_may_ask_for_the_third_version_of_redis_protocol(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        deployment.redis_url += "?protocol=3"
        async with deployment.client() as client:
            flow_run = await client.create_flow_run("newer")
            assert (await client.propose(flow_run, State.pending())).accepted


async def test_an_answer_in_an_unknown_form_is_an_error_that_says_so(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment, partitions=1)
        async with deployment.client() as client:
            proposed = client.propose(ids.new(), State.pending())
            await proposed.pushed()
            [[_, fields]] = await redis.xrange(deployment.channels.proposals(0))
            await redis.xadd(
                deployment.channels.replies(fields[b"reply_to"].decode()), {fields[b"id"]: b'{"type": "?"}'}
            )
            with pytest.raises(UnreadableAnswer, match=str(proposed.request_id)):
                await proposed


async def test_connections_say_whose_they_are(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        await client.create_flow_run("one")
        names = {found["name"] for found in await redis.client_list()}
    assert {"statewright", "statewright-worker"} <= names
