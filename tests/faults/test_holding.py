"""Who works on which partition: whatever becomes of Redis' keys, a partition that nobody holds is taken up."""

import asyncio
import os
import signal

import pytest
from redis.asyncio import Redis

from statewright import Client, State
from statewright.ids import partition_of
from tests.deployment import HANGS_SECONDS, Deployment, until

PARTITIONS = 8
DAY_OF_JOBS = 10


async def works_everywhere(client: Client) -> bool:
    """Whether every partition answers: so many trees that each has some."""
    created = [client.create_flow_run(f"flow {n}") for n in range(8 * PARTITIONS)]
    runs = await asyncio.gather(*created)
    verdicts = await asyncio.gather(*(client.propose(run, State.pending()) for run in runs))
    return all(verdict.accepted for verdict in verdicts)


async def held_by(deployment: Deployment, redis: Redis, workers: int) -> None:
    async def shared() -> bool:
        holders = await deployment.holders(redis)
        return len(holders) == PARTITIONS and len(set(holders.values())) == workers

    await until(shared)


async def arq_keys(redis: Redis, deployment: Deployment) -> list[bytes]:
    return [key async for key in redis.scan_iter(match=f"arq:*{deployment.namespace}*", count=1_000)]


async def test_a_day_passes_for_the_queue_and_no_partition_waits_for_it(deployment: Deployment) -> None:
    """Jobs of arq expire and their results stay, and neither keeps a request from being answered."""
    async with deployment.redis() as redis:
        killed = deployment.spawn_worker()
        await held_by(deployment, redis, 1)
        queue = deployment.channels.queue
        for number in range(DAY_OF_JOBS):
            # The queue as it is when its jobs have expired and their results have not.
            job = f"{deployment.namespace}:drain:{number}"
            await redis.set(f"arq:result:{job}", b"expired")
            await redis.set(f"arq:in-progress:{job}", b"1")
            await redis.zadd(queue, {job: 1})
        os.kill(killed.pid, signal.SIGKILL)
        async with deployment.worker(), deployment.client() as client:
            assert await works_everywhere(client)
            await redis.delete(queue, *await arq_keys(redis, deployment))
            assert await works_everywhere(client)
        await redis.delete(queue, *await arq_keys(redis, deployment))


async def test_redis_may_be_emptied_any_number_of_times(deployment: Deployment) -> None:
    async with deployment.worker():
        for _ in range(12):
            async with deployment.client() as client:
                assert await works_everywhere(client)
            await deployment.empty_redis()


async def test_redis_may_pause_again_and_again(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        for _ in range(4):
            await redis.client_pause(1_500)
            assert await works_everywhere(client)


async def test_a_partition_that_is_lost_in_the_middle_of_work_is_drained_once_at_a_time(
    deployment: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        for _ in range(10):
            working = asyncio.create_task(works_everywhere(client))
            await redis.delete(deployment.channels.holders)
            assert await working
    assert "a drain failed" not in capfd.readouterr().err


async def test_the_number_of_partitions_may_be_left_out(deployment: Deployment) -> None:
    async with deployment.worker(partitions=32), deployment.client() as client:
        assert client.partitions == 32
    # More of them than a worker has by default, each with work at the same time.
    async with deployment.worker(), deployment.client() as client:
        runs = await asyncio.gather(*(client.create_flow_run(f"flow {n}") for n in range(200)))
        verdicts = await asyncio.gather(*(client.propose(run, State.pending()) for run in runs))
    assert all(verdict.accepted for verdict in verdicts)


async def test_messages_of_a_megabyte_are_answered_while_two_workers_share_the_partitions(
    deployment: Deployment,
) -> None:
    [deployment.spawn_worker() for _ in range(2)]
    async with deployment.client(answer_timeout=HANGS_SECONDS) as client, deployment.redis() as redis:
        await held_by(deployment, redis, 2)
        runs = await asyncio.gather(*(client.create_flow_run(f"flow {n}") for n in range(8)))
        # What takes longest to decode: many small values.
        large = State.completed(data=[{"n": n, "s": "x"} for n in range(50_000)])
        verdicts = await asyncio.gather(*(client.propose(run, large) for run in runs))
    assert all(verdict.accepted for verdict in verdicts)


async def test_a_worker_whose_event_loop_does_not_turn_loses_its_partitions(deployment: Deployment) -> None:
    """Its process lives, and so does the thread that would renew what it holds."""
    policy = {"STATEWRIGHT_FLOW_POLICY": "tests.end_to_end.house_policies:HarmfulFlowPolicy"}
    deployment.spawn_worker(**policy)
    async with deployment.client() as client, deployment.redis() as redis:
        runs = await asyncio.gather(*(client.create_flow_run(f"flow {n}") for n in range(8 * PARTITIONS)))
        harmful = await client.create_flow_run("hangs")
        await client.propose(harmful, State.running()).pushed()

        async def read() -> bool:
            [[found]] = await deployment.fetch(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state = 'idle in transaction'"
            )
            return bool(found)

        await until(read)
        async with deployment.worker():
            others = [run for run in runs if partition_of(run.id, PARTITIONS) != partition_of(harmful.id, PARTITIONS)]
            verdicts = await asyncio.gather(*(client.propose(run, State.pending()) for run in others))
            assert all(verdict.accepted for verdict in verdicts)
            assert len(set((await deployment.holders(redis)).values())) == 1
