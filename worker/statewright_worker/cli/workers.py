"""`statewright workers`: who is alive, and what each works on."""

from rich.console import RenderableType

from statewright import Client, WorkerStatus
from statewright_worker.cli.asking import InJson, Watch, shown, with_client
from statewright_worker.cli.showing import Column, ago, ranges, table


@with_client
async def workers(client: Client, *, watch: Watch = False, in_json: InJson = False) -> None:
    """List the workers that are alive, the oldest first, with the partitions that each holds.

    A worker that takes no partitions is alive, but its work gets nowhere, for example without PostgreSQL.
    """
    await shown(client.list_workers, workers_table, list, in_json=in_json, watch=watch)


def workers_table(found: list[WorkerStatus]) -> RenderableType:
    """Return the workers as a table."""
    return table(
        [
            Column("WORKER", lambda one: one.worker),
            Column("HOST", lambda one: one.host, is_wide=True),
            Column("PID", lambda one: str(one.pid), is_number=True),
            Column("VERSION", lambda one: one.version),
            Column("STARTED", lambda one: ago(one.since)),
            Column("PARTITIONS", lambda one: ranges(one.partitions) or "none"),
            Column("", lambda one: "" if one.seeks else "takes no partitions"),
        ],
        found,
    )
