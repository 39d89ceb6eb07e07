"""What events say: the same whenever they are made, and always which proposal has caused the change."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.asyncio import Redis

from statewright import Client, RunPolicy, State
from statewright.protocol.channels import EVENT_BODY
from statewright.protocol.requests import ReadEvents, encode
from tests.deployment import Deployment, until
from tests.end_to_end.test_bad_input import RawProducer

CHANGES = 11


async def live_through_all_that_writes_states(client: Client) -> None:
    """Let runs enter states by proposals, by rules that let others follow, and by what the engine proposes itself."""
    flow = await client.create_flow_run("flow", tags=["etl"], state=State.pending())
    await client.propose(flow, State.running(message='„go"\n'))
    parent = await client.create_task_run("parent", flow_run=flow, policy=RunPolicy(retries=1))
    subflow = await client.create_flow_run("subflow", parent_task_run=parent)
    # The parent follows its subflow.
    await client.propose(subflow, State.running())
    leased = await client.create_task_run("leased")
    await client.propose(leased, State.running(lease=0.2))
    paused = await client.create_flow_run("paused")
    await client.propose(paused, State.paused(timeout_at=datetime.now(UTC) + timedelta(seconds=0.2)))
    # The subflow follows the flow, and its parent follows it.
    await client.propose(flow, State.cancelled(), cascade=True)


async def bodies(deployment: Deployment, redis: Redis, count: int) -> list[bytes]:
    """Return the events in partition 0's stream, once there are so many."""

    async def told() -> bool:
        return bool(await redis.xlen(deployment.channels.events(0)) == count)

    await until(told)
    return [fields[EVENT_BODY] for _, fields in await redis.xrange(deployment.channels.events(0))]


async def test_an_event_that_is_made_again_equals_the_first_one(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis:
        async with deployment.client() as client:
            await live_through_all_that_writes_states(client)
            first = await bodies(deployment, redis, CHANGES)
        raw = RawProducer(redis, deployment)
        await raw.push(encode(ReadEvents(partition=0, after=2)))
        reply = await raw.reply()
        assert reply == {
            "type": "events",
            "v": 1,
            "events": [json.loads(one) for one in first[2:]],
            "up_to": CHANGES,
            "pruned_up_to": 0,
        }
        await deployment.empty_redis()
        assert await bodies(deployment, redis, CHANGES) == first


async def test_every_event_names_the_proposal_that_caused_it(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis, deployment.client() as client:
        await live_through_all_that_writes_states(client)
        told: list[dict[str, Any]] = [json.loads(body)["data"] for body in await bodies(deployment, redis, CHANGES)]
    verdicts = await deployment.fetch("SELECT proposal_id::text, run_id::text, state_id::text FROM verdict")
    decided = {verdict["proposal_id"]: verdict["run_id"] for verdict in verdicts}
    assert {event["proposal_id"] for event in told} <= decided.keys()
    names: dict[str, str] = {event["resource"]["id"]: event["resource"]["name"] for event in told}
    caused = [
        (event["resource"]["name"], event["resource"]["state_name"], names[decided[event["proposal_id"]]])
        for event in told
    ]
    assert caused.count(("parent", "Running", "subflow")) == 1
    assert caused.count(("parent", "Cancelled", "subflow")) == 1
    others = [(name, by) for name, _, by in caused if name != "parent"]
    assert all(name == by for name, by in others), caused


async def test_every_event_tells_the_place_of_its_state_in_the_history(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis, deployment.client() as client:
        await live_through_all_that_writes_states(client)
        events = [json.loads(body) for body in await bodies(deployment, redis, CHANGES)]
        for run_id in {event["subject"] for event in events}:
            history = await client.read_run(run_id)
            told = [(event["data"]["ordinal"], event["id"]) for event in events if event["subject"] == run_id]
            assert told == [(n, str(state.id)) for n, state in enumerate(history.states, 1)]
