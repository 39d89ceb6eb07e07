"""Redis comes back empty: nothing that was committed is lost, and the streams go on where they were."""

from statewright import Client, State, Subscription
from tests.deployment import Deployment, until


async def drive_one(client: Client) -> None:
    created = client.create_flow_run("driven")
    for state in (State.pending(), State.running(), State.completed()):
        assert (await client.propose(created, state)).accepted


async def sequences(events: Subscription, count: int) -> list[int]:
    return [(await anext(events)).sequence for _ in range(count)]


async def test_the_next_transitions_work_and_the_events_go_on_without_a_gap(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, client.subscribe() as live:
        await drive_one(client)
        assert await sequences(live, 2) == [1, 2]
        await deployment.empty_redis()
        await drive_one(client)
        assert await sequences(live, 4) == [3, 4, 5, 6]
        async with client.subscribe(since={0: 0}) as replayed:
            assert await sequences(replayed, 6) == [1, 2, 3, 4, 5, 6]


async def test_a_subscriber_hears_of_what_was_lost_even_when_nothing_new_happens(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        await drive_one(client)
        async with client.subscribe(since={0: 1}) as behind:
            await deployment.empty_redis()
            assert await sequences(behind, 2) == [2, 3]


async def test_a_client_that_starts_after_the_loss_finds_the_deployment(deployment: Deployment) -> None:
    async with deployment.worker():
        async with deployment.client() as client:
            await drive_one(client)
        await deployment.empty_redis()
        async with deployment.client() as client, deployment.redis() as redis:
            await drive_one(client)

            async def held() -> bool:
                return len(await deployment.holders(redis)) == 8

            await until(held)


async def test_only_as_many_events_are_brought_back_as_the_stream_keeps(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1, events_kept=2), deployment.client() as client:
        await drive_one(client)
        await deployment.empty_redis()
        await drive_one(client)
        async with client.subscribe(since={}) as replayed:
            assert await sequences(replayed, 1) >= [2]
