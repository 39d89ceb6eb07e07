"""Leases: whoever gives word keeps its runs, and whoever falls silent loses them, with their slots, within a second."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from statewright import Client, Event, State, StateType, Subscription, Verdict
from tests.deployment import HANGS_SECONDS, Deployment

HOUSE_POLICIES = "tests.end_to_end.house_policies"
LEASE = 1.0
PROMISED = 1.0
"""A silent run is ended within so many seconds of its lease's end."""


@asynccontextmanager
async def working(deployment: Deployment, **changes: Any) -> AsyncIterator[Client]:
    async with deployment.worker(**{"partitions": 2, **changes}), deployment.client() as client:
        yield client


async def running(client: Client, lease: float | None = LEASE, **more: Any) -> Verdict:
    """Return the verdict on RUNNING of a new task run."""
    run = client.create_task_run("work", **more)
    verdict = await client.propose(run, State.running(), lease=lease)
    assert verdict.accepted
    return verdict


async def event_of(events: Subscription, run_id: UUID, state_type: StateType) -> Event:
    async with asyncio.timeout(HANGS_SECONDS):
        while True:
            event = await anext(events)
            if event.resource.id == run_id and event.resource.state_type == state_type:
                return event


async def rows(deployment: Deployment, table: str) -> int:
    [[number]] = await deployment.fetch(f"SELECT count(*) FROM {table}")
    return int(number)


async def test_a_silent_run_is_crashed_within_a_second_with_its_message_its_slot_and_its_event(
    deployment: Deployment,
) -> None:
    async with working(deployment) as client:
        await client.set_limit("database", 1)
        events = await client.subscribe()
        verdict = await running(client, tags=["database"])
        event = await event_of(events, verdict.run_id, StateType.CRASHED)
        history = await client.read_run(verdict.run_id)
        assert [state.type for state in history.states] == [StateType.RUNNING, StateType.CRASHED]
        began, ended = history.states
        assert (ended.message or "").startswith("The lease of 1 s ended at 20")
        assert (ended.message or "").endswith(" without a heartbeat.")
        assert event.id == ended.id
        assert timedelta(seconds=LEASE) <= ended.timestamp - began.timestamp
        [[took]] = await deployment.fetch(
            "SELECT v.decided - b.decided FROM verdict v, verdict b WHERE v.state_id = $1 AND b.state_id = $2",
            ended.id,
            began.id,
        )
        assert timedelta(seconds=LEASE) <= took <= timedelta(seconds=LEASE + PROMISED)
        limit = await client.read_limit("database")
        assert limit is not None
        assert await rows(deployment, "concurrency_slot") == 0
        assert await rows(deployment, "lease") == 0
        assert await rows(deployment, "timer") == 0
        late = await client.propose(verdict.run_id, State.completed(), proposal_id=None)
        assert late.state is not None


async def test_renewal_keeps_a_run_alive_past_its_lease(deployment: Deployment) -> None:
    async with working(deployment) as client:
        events = await client.subscribe()
        silent, kept = await running(client), await running(client)
        ends = time.monotonic() + 2.5 * LEASE
        while time.monotonic() < ends:
            assert await client.heartbeat(kept.run_id) == []
            await asyncio.sleep(LEASE / 5)
        await event_of(events, silent.run_id, StateType.CRASHED)
        assert (await client.read_run(kept.run_id)).run.state_type is StateType.RUNNING
        verdict = await client.propose(kept.run_id, State.completed())
        assert verdict.accepted
        assert await rows(deployment, "lease") == 0
        lost = await client.heartbeat([silent.run_id, kept.run_id])
    assert [(one.run_id, one.state_type) for one in lost] == [(silent.run_id, "CRASHED"), (kept.run_id, "COMPLETED")]
    assert "without a heartbeat" in str(lost[0])
