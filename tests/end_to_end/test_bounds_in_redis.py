"""What is kept in Redis has a bound and a lifetime, and what is large comes in pieces."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from statewright import Client, State
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from tests.deployment import Deployment, until
from tests.faults.filling import meanwhile

FAR_AHEAD = 1_763_910_000_000_000


def entry(**message: Any) -> dict[Any, Any]:
    return {
        REQUEST_ID: str(uuid4()),
        REQUEST_REPLY_TO: "raw",
        REQUEST_MESSAGE: json.dumps({"v": 1, **message}),
    }


async def answers(redis: Redis, deployment: Deployment, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    stream = deployment.channels.replies("raw")

    async def all_there() -> bool:
        entries = await redis.xrange(stream)
        found[:] = [json.loads(body) for _, fields in entries for body in fields.values()]
        return len(found) >= count

    await until(all_there)
    return found


@pytest.mark.parametrize(
    "entry_id", [f"{FAR_AHEAD}-0", "1-18446744073709551615", "7-7"], ids=["microseconds", "last number", "long ago"]
)
async def test_an_odd_entry_id_costs_nobody_an_answer(deployment: Deployment, entry_id: str) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis:
        stream = deployment.channels.proposals(0)
        run = str(uuid4())
        await redis.xadd(stream, entry(type="create_flow_run", run_id=run, name="odd"), id=entry_id)
        await redis.xadd(stream, entry(type="propose", run_id=run, state={"type": "PENDING"}))
        await redis.xadd(stream, entry(type="propose", run_id=str(uuid4()), state={"type": "PENDING"}))
        told = await answers(redis, deployment, 3)
        assert [answer["type"] for answer in told] == ["run", "verdict", "error"]

        async def all_deleted() -> bool:
            return int(await redis.xlen(stream)) == 0

        await until(all_deleted)
        async with deployment.client() as client:
            assert (await client.propose((await client.create_flow_run("next")), State.pending())).accepted


async def test_dead_letters_are_kept_whatever_ids_their_requests_have(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis:
        proposals, letters = deployment.channels.proposals(0), deployment.channels.dead_letters(0)
        await redis.xadd(letters, {"reason": "from the future"}, id=f"{FAR_AHEAD}-0")
        sent = await redis.xadd(proposals, entry(type="nonsense"))

        async def kept() -> bool:
            return int(await redis.xlen(letters)) == 2

        await until(kept)
        [_, [_, letter]] = await redis.xrange(letters)
        assert letter[b"entry"] == sent


async def test_a_dead_letter_keeps_the_head_of_a_large_message(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1, dead_letters_kept=10), deployment.redis() as redis:
        letters = deployment.channels.dead_letters(0)
        for _ in range(300):
            await redis.xadd(deployment.channels.proposals(0), entry(type="nonsense", padding="x" * 20_000))

        async def all_refused() -> bool:
            return int(await redis.xlen(deployment.channels.proposals(0))) == 0

        await answers(redis, deployment, 300)
        await until(all_refused)
        # About ten: Redis deletes whole nodes of a stream.
        assert await redis.xlen(letters) < 150
        [[_, letter]] = await redis.xrevrange(letters, count=1)
        assert len(letter[REQUEST_MESSAGE]) == 4_096
        assert int(letter[b"size"]) > 20_000
        assert await redis.ttl(letters) > 0


async def test_a_producer_that_only_reads_its_replies_leaves_a_bounded_stream(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1, replies_kept=20), deployment.redis() as redis:
        stream = deployment.channels.replies("raw")
        for _ in range(400):
            await redis.xadd(deployment.channels.proposals(0), entry(type="read_limit", tag="t"))

            async def answered() -> bool:
                return int(await redis.xlen(deployment.channels.proposals(0))) == 0

        await until(answered)
        assert await redis.xlen(stream) < 200
        assert 0 < await redis.ttl(stream) <= 600


async def test_events_take_no_more_memory_than_they_may(deployment: Deployment) -> None:
    bound = 100_000
    async with deployment.worker(partitions=1, events_bytes=bound), deployment.client() as client:
        for _ in range(10):
            runs = [client.create_flow_run(f"flow {n}") for n in range(100)]
            await asyncio.gather(*(client.propose(run, State.pending(message="m" * 500)) for run in runs))
        async with deployment.redis() as redis:

            async def small() -> bool:
                return int(await redis.memory_usage(deployment.channels.events(0)) or 0) < 1.5 * bound

            await until(small)


async def test_a_key_that_is_no_stream_costs_its_own_client_its_answers_alone(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis, deployment.client() as client:
        await redis.set(deployment.channels.replies("raw"), "no stream")
        for _ in range(3):
            await redis.xadd(deployment.channels.proposals(0), entry(type="read_limit", tag="t"))
        run = await client.create_flow_run("neighbour")
        assert (await client.propose(run, State.pending())).accepted


async def test_an_event_key_that_is_no_stream_stops_no_verdicts_and_is_caught_up_later(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis, deployment.client() as client:
        await redis.set(deployment.channels.events(0), "no stream")
        run = await client.create_flow_run("one")
        assert (await client.propose(run, State.pending())).accepted
        assert (await client.propose(run, State.running())).accepted
        await redis.delete(deployment.channels.events(0))

        async def caught_up() -> bool:
            return int(await redis.xlen(deployment.channels.events(0))) == 2

        await until(caught_up)


async def test_events_are_caught_up_with_while_requests_keep_coming(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis, deployment.client() as client:
        run = await client.create_flow_run("busy")

        async def propose() -> None:
            await client.propose(run, State.scheduled(), force=True)

        async def caught_up() -> bool:
            return int(await redis.xlen(deployment.channels.events(0))) > 1

        await redis.set(deployment.channels.events(0), "no stream")
        async with meanwhile(propose):
            await asyncio.sleep(0.2)
            await redis.delete(deployment.channels.events(0))
            await until(caught_up)


async def grown(client: Client, states: int, size: int) -> Any:
    """Make a run with a large history."""
    run = await client.create_flow_run("large")
    state = State.scheduled()
    large = state.model_copy(update={"data": "x" * size})
    for _ in range(states):
        await client.propose(run, large, force=True)
    return run


async def test_large_histories_that_many_read_at_once_come_in_pages(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client(answer_timeout=60) as client:
        run = await grown(client, states=10, size=400_000)
        histories = await asyncio.gather(*(client.read_run(run) for _ in range(60)))
        assert {len(history.states) for history in histories} == {10}
        async with deployment.redis() as redis:
            # The largest answer is a page, and no page is larger than what a state and a page may be.
            assert await redis.xlen(deployment.channels.proposals(0)) == 0


async def test_a_flood_is_bounded_and_what_is_refused_is_answered(deployment: Deployment) -> None:
    pushed = 3_000
    async with deployment.redis() as redis:
        async with deployment.worker(partitions=1):
            pass
        stream = deployment.channels.proposals(0)
        pipeline = redis.pipeline(transaction=False)
        for _ in range(pushed):
            pipeline.xadd(stream, entry(type="create_flow_run", run_id=str(uuid4()), name="flood"))
        await pipeline.execute()
        async with deployment.worker(max_backlog=500, batch_size=50, replies_kept=100_000):
            told = await answers(redis, deployment, pushed)
    kinds = [answer.get("code", answer["type"]) for answer in told]
    assert kinds.count("run") + kinds.count("overloaded") == pushed
    assert kinds.count("run") >= 1_000
    assert kinds.count("overloaded") > 1_000
    [[created]] = await deployment.fetch("SELECT count(*) FROM flow_run")
    assert created == kinds.count("run")
