"""A worker that is asked to stop finishes its batch and hands its partitions back; a frozen one is overtaken."""

import asyncio
import os
import signal
import subprocess

from redis.asyncio import Redis

from statewright import State
from tests.deployment import HANGS_SECONDS, Deployment, until


async def held_by(deployment: Deployment, redis: Redis, workers: int) -> None:
    """Wait until the partitions are shared by that many workers."""

    async def settled() -> bool:
        holders = await deployment.holders(redis)
        return len(holders) == 8 and len(set(holders.values())) == workers

    await until(settled)


async def exit_status(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    return await asyncio.to_thread(process.wait, seconds)


async def test_sigterm_under_load_ends_in_exit_status_0_and_others_take_over_at_once(deployment: Deployment) -> None:
    leaving, staying = deployment.spawn_worker(), deployment.spawn_worker()
    async with deployment.client(answer_timeout=HANGS_SECONDS) as client, deployment.redis() as redis:
        await held_by(deployment, redis, 2)
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                created = client.create_flow_run("load")
                await asyncio.gather(created, client.propose(created, State.pending()))

        loads = [asyncio.create_task(load()) for _ in range(30)]
        leaving.send_signal(signal.SIGTERM)
        assert await exit_status(leaving, HANGS_SECONDS) == 0
        # A worker that vanished would still hold its partitions for a second.
        left = {told.split()[0] for told in (await deployment.holders(redis)).values()}
        await held_by(deployment, redis, 1)
        stop.set()
        await asyncio.gather(*loads)
        stayed = {told.split()[0] for told in (await deployment.holders(redis)).values()}
    assert staying.poll() is None
    assert left <= stayed


async def test_sigint_stops_a_worker_too(deployment: Deployment) -> None:
    worker = deployment.spawn_worker()
    async with deployment.client() as client:
        await client.create_flow_run("one")
    worker.send_signal(signal.SIGINT)
    assert await exit_status(worker, HANGS_SECONDS) == 0


async def test_a_worker_that_joins_gets_its_share(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        deployment.spawn_worker()
        await held_by(deployment, redis, 1)
        deployment.spawn_worker()
        await held_by(deployment, redis, 2)


async def test_a_frozen_worker_is_overtaken_and_does_no_harm_when_it_wakes(deployment: Deployment) -> None:
    frozen = deployment.spawn_worker(STATEWRIGHT_PARTITIONS="1")
    async with deployment.client(answer_timeout=HANGS_SECONDS) as client:
        run = await client.create_flow_run("one")
        os.kill(frozen.pid, signal.SIGSTOP)
        pending = client.propose(run, State.pending())
        async with deployment.worker():
            assert (await pending).accepted
            os.kill(frozen.pid, signal.SIGCONT)
            assert (await client.propose(run, State.running())).accepted
            history = await client.read_run(run)
    assert [state.type for state in history.states] == ["PENDING", "RUNNING"]
