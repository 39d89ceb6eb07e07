"""A server that is away, silent, read-only or full: workers outlive it, others go on meanwhile, and nobody is told what
is not so."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from statewright import Client, FlowRun, State
from tests.deployment import Deployment, until
from tests.faults.network import link_to

WORKERS_BOUND = 30
"""What waits longer hangs."""


async def started(client: Client, count: int) -> list[FlowRun]:
    return list(await asyncio.gather(*(client.create_flow_run(f"flow {n}") for n in range(count))))


async def all_accepted(client: Client, runs: list[FlowRun], state: Any) -> bool:
    verdicts = await asyncio.gather(*(client.propose(run, state, timeout=WORKERS_BOUND) for run in runs))
    return all(verdict.accepted for verdict in verdicts)


async def shared_by(deployment: Deployment, redis: Redis, workers: int) -> None:
    async def shared() -> bool:
        holders = await deployment.holders(redis)
        return len(holders) == 8 and len(set(holders.values())) == workers

    await until(shared)


async def test_a_worker_that_has_lost_postgresql_in_silence_gives_its_partitions_to_others(
    deployment: Deployment,
) -> None:
    async with (
        link_to(deployment.workers_database_url) as link,
        deployment.worker(database_url=link.url),
        deployment.worker(),
        deployment.redis() as redis,
        deployment.client() as client,
    ):
        await shared_by(deployment, redis, 2)
        runs = await started(client, 40)
        link.fall_silent()
        assert await all_accepted(client, runs, State.pending())
        # Meanwhile the other worker holds its share.
        await shared_by(deployment, redis, 1)
        assert await all_accepted(client, runs, State.running())
        link.speak_again()
        await shared_by(deployment, redis, 2)
        assert await all_accepted(client, runs, State.completed())


async def test_a_worker_alone_waits_for_a_postgresql_that_fell_silent(deployment: Deployment) -> None:
    async with (
        link_to(deployment.workers_database_url) as link,
        deployment.worker(database_url=link.url),
        deployment.client() as client,
    ):
        runs = await started(client, 10)
        link.fall_silent()
        proposed = [client.propose(run, State.pending(), timeout=60) for run in runs]

        async def given_back() -> bool:
            return not await deployment.holders(redis)

        async with deployment.redis() as redis:
            await until(given_back)
        link.speak_again()
        assert all([(await pending).accepted for pending in proposed])


async def test_a_redis_that_falls_silent_is_noticed_by_workers(deployment: Deployment) -> None:
    async with (
        link_to(deployment.redis_url) as link,
        deployment.worker(redis_url=link.url),
        deployment.client() as client,
    ):
        runs = await started(client, 10)
        link.fall_silent()
        proposed = [client.propose(run, State.pending(), timeout=60) for run in runs]
        await asyncio.gather(*(pending.pushed() for pending in proposed))
        link.cut()
        link.speak_again()
        assert all([(await pending).accepted for pending in proposed])


async def test_a_database_that_takes_no_writes_is_waited_for(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        runs = await started(client, 10)

        async def given_back() -> bool:
            return not await deployment.holders(redis)

        async with deployment.taking_no_writes():
            proposed = [client.propose(run, State.pending(), timeout=60) for run in runs]
            await until(given_back)
        assert all([(await pending).accepted for pending in proposed])


async def test_a_backend_that_is_stuck_sending_is_cut_off_by_whoever_takes_over(deployment: Deployment) -> None:
    """The backend is active, so no time limit of the server ends its transaction, and it holds the partition."""
    async with (
        link_to(deployment.workers_database_url) as link,
        deployment.worker(database_url=link.url, partitions=1),
        deployment.client() as client,
    ):
        runs = await started(client, 20)
        large = State.completed(data="x" * 900_000)
        assert await all_accepted(client, runs, large)
        link.fall_silent_after(2_000_000)
        # Each verdict has the state of its run, so that PostgreSQL has much to send.
        proposed = [client.propose(run, State.pending(), timeout=WORKERS_BOUND) for run in runs]
        await until(lambda: stuck_sending(deployment))
        async with deployment.worker():
            assert not any([(await pending).accepted for pending in proposed])
        assert not await stuck_sending(deployment)
        link.speak_again()


async def stuck_sending(deployment: Deployment) -> bool:
    [[found]] = await deployment.fetch(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'ClientWrite'"
    )
    return bool(found)


@pytest.fixture
async def full_redis(deployment: Deployment) -> AsyncIterator[Redis]:
    """A Redis that takes nothing more; the test says when by CONFIG SET maxmemory 1."""
    async with deployment.redis() as redis:
        try:
            yield redis
        finally:
            await redis.config_set("maxmemory", 0)


async def test_a_full_redis_ends_nobody_and_recovers(deployment: Deployment, full_redis: Redis) -> None:
    async with deployment.worker(), deployment.client() as client:
        runs = await started(client, 10)
        proposed = [client.propose(run, State.pending(), timeout=60) for run in runs]
        await asyncio.gather(*(pending.pushed() for pending in proposed))
        await full_redis.config_set("maxmemory", 1)

        async def committed() -> bool:
            [[written]] = await deployment.fetch("SELECT count(*) FROM flow_run_state")
            return bool(written == len(runs))

        await until(committed)
        # Holds outlive it, and what is answered is deleted, which is how Redis comes to have room again.
        assert len(await deployment.holders(full_redis)) == 8
        await full_redis.config_set("maxmemory", 0)
        assert all([(await pending).accepted for pending in proposed])


REFUSALS = {
    "a demoted server": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "a user without rights": ("ACL SETUSER default -@all +acl +client", "ACL SETUSER default +@all"),
}


@pytest.mark.parametrize(("refuse", "allow"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_refusals_of_redis_end_no_worker(deployment: Deployment, refuse: str, allow: str) -> None:
    async with deployment.redis() as redis, deployment.worker():
        async with deployment.client() as client:
            run = await client.create_flow_run("before")
        try:
            await redis.execute_command(*refuse.split())  # type: ignore[no-untyped-call]
            # Long enough for holds to run out and for every wait of a drain to end.
            await asyncio.sleep(3)
        finally:
            await redis.execute_command(*allow.split())  # type: ignore[no-untyped-call]
        async with deployment.client(answer_timeout=WORKERS_BOUND) as client:
            assert (await client.propose(run, State.pending())).accepted


async def test_blocked_reads_that_are_interrupted_end_no_worker(deployment: Deployment) -> None:
    async with deployment.redis() as redis, deployment.worker(), deployment.client() as client:
        for number in range(5):
            run = await client.create_flow_run(f"flow {number}")
            for other in await redis.client_list():
                await redis.client_unblock(int(other["id"]), error=True)
            assert (await client.propose(run, State.pending())).accepted
