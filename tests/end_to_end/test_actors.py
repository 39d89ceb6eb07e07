"""Who did it: an actor goes with what a client asks for, and stands where the effect is told."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from statewright import Client, ConfigurationError, Event, ProposalConflict, RunHistory, State
from statewright.ids import IdSource, partition_of
from statewright.protocol.channels import REQUEST_ACTOR, REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from tests.deployment import Deployment, until

ids = IdSource()


def told_actors(history: RunHistory) -> list[str | None]:
    assert len(history.actors) == len(history.states)
    return list(history.actors)


async def events_of(client: Client, count: int) -> list[Event]:
    """Return the first events that there are, changes all."""
    found: list[Event] = []
    async with asyncio.timeout(60), client.subscribe(since="beginning") as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_an_actor_stands_with_verdict_state_and_event(deployment: Deployment) -> None:
    async with (
        deployment.worker(partitions=1),
        deployment.client(actor="scheduler-3") as scheduler,
        deployment.client(actor="Jörg") as human,
        deployment.client() as nobody,
        deployment.redis() as redis,
    ):
        run = scheduler.create_flow_run("nightly", state=State.pending())
        await run
        await human.propose(run.run_id, State.running())
        refused = await human.propose(run.run_id, State.pending())
        await nobody.propose(run.run_id, State.completed())
        history = await nobody.read_run(run.run_id)
        events = await events_of(nobody, 3)
        # What is no longer in Redis is read back from PostgreSQL.
        await redis.xtrim(deployment.channels.events(0), maxlen=1, approximate=False)
        again = await events_of(nobody, 3)
    kept = await deployment.fetch("SELECT actor FROM verdict ORDER BY decided, proposal_id")
    assert told_actors(history) == ["scheduler-3", "Jörg", None]
    assert [event.data.actor for event in events] == ["scheduler-3", "Jörg", None]
    assert [event.data.actor for event in again] == ["scheduler-3", "Jörg", None]
    assert refused.status == "ABORT"
    assert [row["actor"] for row in kept] == ["scheduler-3", "Jörg", "Jörg", None]


async def test_the_history_that_is_read_in_the_batch_of_its_change_has_the_actor(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client(actor="scheduler-3") as client:
        run = client.create_flow_run("nightly")
        _, history = await asyncio.gather(client.propose(run, State.running()), client.read_run(run))
    assert told_actors(history) == ["scheduler-3"]


async def test_what_another_actor_sends_again_is_the_same_request(deployment: Deployment) -> None:
    proposal_id = ids.new()
    async with (
        deployment.worker(),
        deployment.client(actor="first") as first,
        deployment.client(actor="second") as second,
    ):
        run = await first.create_flow_run("nightly")
        verdict = await first.propose(run, State.running(), proposal_id=proposal_id)
        again = await second.propose(run, State.running(), proposal_id=proposal_id)
        with pytest.raises(ProposalConflict):
            await second.propose(run, State.completed(), proposal_id=proposal_id)
        history = await second.read_run(run)
    assert again == verdict
    assert told_actors(history) == ["first"]


async def test_a_parked_proposal_keeps_its_actor(deployment: Deployment) -> None:
    async with (
        deployment.worker(),
        deployment.client(actor="holder") as holder,
        deployment.client(actor="waiter") as waiter,
    ):
        await holder.set_limit("database", 1)
        first, second = [await holder.create_task_run(name, tags=["database"]) for name in ("first", "second")]
        await holder.propose(first, State.running())
        parked = waiter.propose(second, State.running(), on_wait="park")
        await parked.until_parked()
        await holder.propose(first, State.completed())
        assert (await parked).accepted
        history = await holder.read_run(second)
    assert told_actors(history) == ["waiter"]
    assert [row["actor"] for row in await deployment.fetch("SELECT actor FROM answer")] == ["holder"]


async def test_what_the_engine_does_by_itself_it_signs(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client(actor="scheduler-3") as client:
        paused = State.paused(timeout_at=datetime.now(UTC) + timedelta(seconds=0.2))
        run = await client.create_flow_run("nightly", state=paused)

        async def has_failed() -> bool:
            found = await client.read_run(run, history=False)
            return found.state_name == "Failed"

        await until(has_failed)
        history = await client.read_run(run)
        flow_run = await client.create_flow_run("weekly", state=State.running())
        below = await client.create_task_run("load", flow_run=flow_run, state=State.running())
        await client.propose(flow_run, State.cancelled(), cascade=True)

        async def has_followed() -> bool:
            found = await client.read_run(below, history=False)
            return found.state_name == "Cancelled"

        await until(has_followed)
        followed = await client.read_run(below)
        leased = await client.create_flow_run("leased")
        await client.propose(leased, State.running(), lease=0.2)

        async def has_crashed() -> bool:
            found = await client.read_run(leased, history=False)
            return found.state_name == "Crashed"

        await until(has_crashed)
        crashed = await client.read_run(leased)
    assert told_actors(history) == told_actors(followed) == told_actors(crashed) == ["scheduler-3", "statewright"]


@pytest.mark.parametrize("actor", ["", "a" * 129, "line\nbreak", "statewright", "nul\x00"])
async def test_what_is_no_actor_is_refused(deployment: Deployment, actor: str) -> None:
    with pytest.raises(ConfigurationError, match="STATEWRIGHT_ACTOR"):
        Client(actor=actor)
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        run = await client.create_flow_run("nightly")
        fields: dict[Any, Any] = {
            REQUEST_ID: str(ids.new()).encode(),
            REQUEST_REPLY_TO: b"by-hand",
            REQUEST_ACTOR: actor.encode(),
            REQUEST_MESSAGE: b'{"type":"read_run","run_id":"%b"}' % str(run.id).encode(),
        }
        partition = partition_of(run.id, client.partitions)
        await redis.xadd(deployment.channels.proposals(partition), fields)
        [[_, [[_, answer]]]] = await redis.xread({deployment.channels.replies("by-hand"): "0"}, block=60_000)
    [body] = answer.values()
    assert b'"code":"invalid_message"' in body
    assert b'"field":"actor"' in body


def test_the_environment_names_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEWRIGHT_ACTOR", "cron on host-7")
    assert Client()._settings.actor == "cron on host-7"
