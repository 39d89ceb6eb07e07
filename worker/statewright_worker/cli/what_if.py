"""`statewright what-if`: which verdict a proposal would get now, and why."""

from typing import Any

import typer

from statewright import Client
from statewright_worker.cli.asking import InJson, RunId, with_client
from statewright_worker.cli.explain import tell
from statewright_worker.cli.verdict import STATUSES


@with_client
async def what_if(client: Client, run: RunId, proposed: dict[str, Any], *, in_json: InJson = False) -> None:
    """Say which verdict a proposal would get now, and why, rule by rule. It is undone: nothing changes.

    The exit status says the verdict as well: 0 ACCEPT, 3 REJECT, 4 WAIT, 5 ABORT, 1 it would be refused.
    """
    found = await client.what_if(run, **proposed)
    tell(found, in_json=in_json)
    if found.verdict is not None:
        raise typer.Exit(STATUSES[found.verdict.status])
