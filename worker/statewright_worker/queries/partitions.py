"""Partitions: what waits in each, who holds it, and what it has got to."""

from typing import Final

from statewright.overview import PartitionStatus
from statewright.protocol.queries import ListPartitions
from statewright.protocol.replies import PartitionsReply, Reply
from statewright_worker.queries.base import Looking, QueryKind
from statewright_worker.streams.standing import held_partitions, waiting_in

# Timers are counted up to a bound: what has come due is carried out at once, unless something is very wrong.
READ_PARTITIONS: Final = """
    SELECT partition.id, partition.sequence, partition.era,
        (SELECT count(*) FROM parked WHERE parked.partition = partition.id AND NOT decided) AS parked,
        (SELECT count(*) FROM (
            SELECT FROM timer WHERE timer.partition = partition.id AND due <= now() LIMIT 10000
        ) AS come) AS due,
        (SELECT min(due) FROM timer WHERE timer.partition = partition.id) AS next_due
    FROM partition ORDER BY partition.id
"""


class ListPartitionsKind(QueryKind[ListPartitions]):
    """Lists all partitions."""

    async def answer(self, query: ListPartitions, looking: Looking) -> Reply:
        async with looking.moment() as driver:
            rows = await driver.fetch(READ_PARTITIONS)
        waiting = await waiting_in(looking.redis, looking.channels, [row["id"] for row in rows])
        held = await held_partitions(looking.redis, looking.channels)
        return PartitionsReply(
            partitions=tuple(
                PartitionStatus(
                    partition=row["id"],
                    backlog=backlog.entries,
                    oldest_seconds=backlog.oldest_seconds,
                    worker=holder and holder.worker,
                    held_since=holder and holder.since,
                    sequence=row["sequence"],
                    era=row["era"],
                    parked=row["parked"],
                    due=row["due"],
                    next_due=row["next_due"],
                )
                for row, backlog in zip(rows, waiting, strict=True)
                for holder in [held.get(row["id"])]
            )
        )
