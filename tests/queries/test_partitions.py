"""Partitions as queries tell them."""

from statewright import State
from tests.deployment import Deployment


async def test_partitions_are_listed_with_what_waits_and_what_they_have_got_to(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2), deployment.client() as client:
        await client.propose(await client.create_flow_run("nightly"), State.running())
        partitions = await client.list_partitions()

    assert [partition.partition for partition in partitions] == [0, 1]
    assert sum(partition.sequence for partition in partitions) == 1
    assert {partition.backlog for partition in partitions} == {0}
    assert all(partition.worker and partition.held_since for partition in partitions)
