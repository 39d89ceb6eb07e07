"""Workers as queries tell them."""

import os
import socket
from datetime import UTC, datetime, timedelta

from tests.deployment import Deployment, until


async def test_workers_are_listed_with_what_they_hold_and_go_when_they_end(deployment: Deployment) -> None:
    async with deployment.worker(partitions=4), deployment.client() as client:
        [one] = await client.list_workers()
        async with deployment.worker():

            async def share() -> bool:
                return [len(worker.partitions) for worker in await client.list_workers()] == [2, 2]

            await until(share)
            first, second = await client.list_workers()
            partitions = await client.list_partitions()
        [left] = await client.list_workers()

    assert (one.host, one.pid, one.seeks) == (socket.gethostname(), os.getpid(), True)
    assert one.version
    assert datetime.now(UTC) - one.since < timedelta(minutes=5)
    assert first.worker == one.worker == left.worker
    assert second.worker != one.worker
    holders = {partition.partition: partition.worker for partition in partitions}
    assert holders == {n: worker.worker for worker in (first, second) for n in worker.partitions}
