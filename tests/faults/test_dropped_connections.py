"""Connections drop, again and again: clients, subscribers and workers go on, and nothing is lost or doubled."""

from statewright import State
from tests.deployment import Deployment

TIMES = 12
"""More often than a worker has partitions, so that nothing may leak with each drop."""


async def test_connections_to_redis_may_drop(deployment: Deployment) -> None:
    async with (
        deployment.worker(),
        deployment.client() as client,
        deployment.redis() as redis,
        client.subscribe() as events,
    ):
        for number in range(TIMES):
            await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
            run = await client.create_flow_run(f"flow {number}")
            assert (await client.propose(run, State.running())).accepted
            assert (await anext(events)).data.resource.id == run.id
    [[written]] = await deployment.fetch("SELECT count(*) FROM flow_run_state")
    assert written == TIMES


async def test_connections_to_postgresql_may_drop(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        for number in range(TIMES):
            await deployment.end_sessions()
            run = await client.create_flow_run(f"flow {number}")
            assert (await client.propose(run, State.running())).accepted
    [[written]] = await deployment.fetch("SELECT count(*) FROM flow_run_state")
    assert written == TIMES
