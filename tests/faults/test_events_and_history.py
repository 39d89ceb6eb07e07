"""What PostgreSQL has and what the event streams tell part ways: history deleted, Redis empty, a backup restored."""

import asyncio

import pytest

from statewright import ConfigurationError, State
from statewright.events import Era, Undone, event_from
from statewright.protocol.channels import EVENT_BODY
from statewright_worker.embedded import Servers
from statewright_worker.replica import run_replica
from tests.deployment import Deployment, _administer, until


async def change(deployment: Deployment, count: int) -> None:
    async with deployment.client() as client:
        run = await client.create_flow_run("changes")
        for _ in range(count):
            await client.propose(run, State.scheduled(), force=True)


async def test_events_whose_history_is_deleted_are_passed_over(
    deployment: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    async with deployment.worker(partitions=1):
        await change(deployment, 20)
    await deployment.execute("DELETE FROM flow_run_state WHERE sequence BETWEEN 5 AND 12 OR sequence = 20")
    await deployment.empty_redis()
    async with deployment.worker(), deployment.redis() as redis:

        async def brought() -> bool:
            return int(await redis.xlen(deployment.channels.events(0))) == 11

        await until(brought)
        await change(deployment, 1)
        [[newest, _]] = await redis.xrevrange(deployment.channels.events(0), count=1)
        assert newest == b"21-0"
    assert "events are gone" in capfd.readouterr().err


async def test_requests_are_answered_before_old_events_are_brought_back(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        await change(deployment, 1)
    await deployment.execute(
        "INSERT INTO flow_run_state"
        " (id, run_id, ordinal, type, name, timestamp, state_details, run_count, partition, sequence)"
        " SELECT gen_random_uuid(), id, n, 'SCHEDULED', 'Scheduled', now(), '{}', 0, 0, n"
        " FROM flow_run, generate_series(2, 10000) AS n; UPDATE partition SET sequence = 10000"
    )
    await deployment.empty_redis()
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis, client.subscribe():
        run = await client.create_flow_run("asked at once")
        assert (await client.propose(run, State.pending())).accepted
        assert int(await redis.xlen(deployment.channels.events(0))) < 10_001, "nobody waited for the old events"

        async def caught_up() -> bool:
            newest = await redis.xrevrange(deployment.channels.events(0), count=1)
            return bool(newest) and newest[0][0] == b"10001-0"

        await until(caught_up)


async def test_a_database_that_went_back_in_time_begins_a_new_era(deployment: Deployment, servers: Servers) -> None:
    name = deployment.namespace
    async with deployment.worker(partitions=1):
        await change(deployment, 5)
    await deployment.end_sessions()
    await _administer(servers, f"CREATE DATABASE {name}_backup TEMPLATE {name}")
    try:
        async with deployment.worker():
            await change(deployment, 7)
        await _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")
        await _administer(servers, f"ALTER DATABASE {name}_backup RENAME TO {name}")
    except BaseException:
        await _administer(servers, f"DROP DATABASE IF EXISTS {name}_backup WITH (FORCE)")
        raise
    async with deployment.worker(), deployment.redis() as redis:
        await change(deployment, 3)
        told = await redis.xrange(deployment.channels.events(0))
        assert [entry_id.decode() for entry_id, _ in told] == [f"{n}-0" for n in range(1, 17)]
        [era] = [one for one in (event_from(fields[EVENT_BODY]) for _, fields in told) if isinstance(one, Era)]
        assert (era.sequence, era.era, era.data) == (13, 1, Undone(went_back_to=5, undone_up_to=12))
        # An emptied Redis tells of it again.
        await deployment.empty_redis()
        async with deployment.client():

            async def told_again() -> bool:
                return int(await redis.xlen(deployment.channels.events(0))) == 9

            await until(told_again)


async def test_a_database_that_goes_back_under_its_worker_begins_a_new_era(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.redis() as redis:
        await change(deployment, 6)
        await deployment.execute(
            "DELETE FROM flow_run_state WHERE sequence > 2; DELETE FROM flow_run; UPDATE partition SET sequence = 2"
        )
        await change(deployment, 2)

        async def told() -> list[str]:
            return [entry_id.decode() for entry_id, _ in await redis.xrange(deployment.channels.events(0))]

        async def complete() -> bool:
            return await told() == [f"{n}-0" for n in range(1, 10)]

        await until(complete)


async def test_a_database_belongs_to_one_namespace(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        await deployment.announced()
        with pytest.raises(ConfigurationError, match=f"belongs to the namespace '{deployment.namespace}'"):
            await run_replica(deployment.settings(namespace=f"{deployment.namespace}_other"), asyncio.Event())


async def test_a_namespace_belongs_to_one_database(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        await deployment.announced()
    await deployment.execute("UPDATE deployment SET id = gen_random_uuid()")
    with pytest.raises(ConfigurationError, match="belongs to another database"):
        await run_replica(deployment.settings(), asyncio.Event())
