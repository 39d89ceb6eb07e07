"""`statewright partitions`: what waits in each, and who works on it."""

from rich.console import RenderableType

from statewright import Client, PartitionStatus
from statewright_worker.cli.asking import InJson, Watch, shown, with_client
from statewright_worker.cli.showing import Column, ago, seconds, since, table


@with_client
async def partitions(client: Client, *, watch: Watch = False, in_json: InJson = False) -> None:
    """List the partitions: unanswered requests, the age of the oldest, the holder, parked proposals, timers, events."""
    await shown(client.list_partitions, partitions_table, list, in_json=in_json, watch=watch)


def partitions_table(found: list[PartitionStatus]) -> RenderableType:
    """Return the partitions as a table."""
    return table(
        [
            Column("PARTITION", lambda one: one.partition, is_number=True),
            Column("BACKLOG", lambda one: one.backlog, is_number=True),
            Column("OLDEST", lambda one: seconds(one.oldest_seconds) if one.backlog else None, is_whole=True),
            Column("PARKED", lambda one: one.parked, is_number=True),
            Column("DUE", lambda one: one.due, is_number=True),
            Column("NEXT DUE", lambda one: ago(one.next_due), is_wide=True),
            Column("EVENTS", lambda one: one.sequence, is_number=True),
            Column("ERA", lambda one: one.era or None, is_number=True),
            Column("HOLDER", lambda one: one.worker or "nobody"),
            Column("HELD FOR", lambda one: since(one.held_since), is_wide=True, is_whole=True),
        ],
        found,
    )
