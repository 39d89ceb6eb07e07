"""`statewright what-if`: which verdict a proposal would get now, and why."""

from typing import Annotated

import typer

from statewright import Client, ProposedState, StateDetails, StateType
from statewright_worker.cli.asking import InJson, RunId, json_said, moment_said, seconds_of, with_client
from statewright_worker.cli.explain import tell
from statewright_worker.cli.verdict import STATUSES


@with_client
async def what_if(
    client: Client,
    run: RunId,
    state: Annotated[
        StateType,
        typer.Argument(case_sensitive=False, metavar="STATE", help=", ".join(StateType), show_default=False),
    ],
    *,
    name: Annotated[str | None, typer.Option(help="The state's name, if it is not that of its type.")] = None,
    message: Annotated[str | None, typer.Option(help="A text for people.")] = None,
    data: Annotated[str | None, typer.Option(metavar="JSON", help="What belongs to the state.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="WHEN", help="SCHEDULED for this moment: 2026-11-21T08:00+01:00.")
    ] = None,
    lease: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long RUNNING is good without a heartbeat.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="Whose heartbeats renew the lease.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Apply the minimal policy alone.")] = False,
    in_json: InJson = False,
) -> None:
    """Say which verdict a proposal would get now, and why, rule by rule. It is undone: nothing changes.

    The exit status says the verdict as well: 0 ACCEPT, 3 REJECT, 4 WAIT, 5 ABORT, 1 it would be refused.
    """
    proposed = ProposedState(
        type=state,
        name=name,
        message=message,
        data=json_said(data, "--data"),
        state_details=StateDetails(scheduled_time=moment_said(at, "--at")),
    )
    found = await client.what_if(run, proposed, force=force, lease=seconds_of(lease, "--lease"), executor=executor)
    tell(found, in_json=in_json)
    if found.verdict is not None:
        raise typer.Exit(STATUSES[found.verdict.status])
