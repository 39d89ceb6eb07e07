"""`statewright propose`: a state for a run, by hand."""

from typing import Annotated, Any
from uuid import UUID

import typer

from statewright import Client, ProposedState, StateDetails, StateType
from statewright_worker.cli.asking import InJson, RunId, Yes, confirmed, json_said, moment_said, seconds_of, with_client
from statewright_worker.cli.showing import state_of
from statewright_worker.cli.verdict import tell


@with_client
async def propose(
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
    cascade: Annotated[
        bool, typer.Option("--cascade", help="What is below a flow run follows it to CANCELLED or CRASHED.")
    ] = False,
    park: Annotated[
        bool, typer.Option("--park", help="Where it would be told to WAIT, wait for it (--answer-timeout at most).")
    ] = False,
    priority: Annotated[int, typer.Option(help="Of a parked proposal; the greatest goes first.")] = 0,
    proposal_id: Annotated[
        UUID | None, typer.Option(help="The proposal's id. The same id has the same verdict for ever.")
    ] = None,
    yes: Yes = False,
    in_json: InJson = False,
) -> None:
    """Propose a state for a run, and show the verdict. It says what the run is in, and asks first.

    The exit status says the verdict as well: 0 ACCEPT, 3 REJECT, 4 WAIT, 5 ABORT, 1 it was refused or not answered.
    """
    proposed = ProposedState(
        type=state,
        name=name,
        message=message,
        data=json_said(data, "--data"),
        state_details=StateDetails(scheduled_time=moment_said(at, "--at")),
    )
    if not yes:
        now = await client.read_run(run, history=False)
        confirmed(f"{now.name} is {state_of(now.state).plain}. Propose {name or state}?", yes=yes)
    given: dict[str, Any] = {"on_wait": "park", "priority": priority} if park else {}
    tell(
        await client.propose(
            run,
            proposed,
            force=force,
            cascade=cascade,
            lease=seconds_of(lease, "--lease"),
            executor=executor,
            proposal_id=proposal_id,
            **given,
        ),
        in_json=in_json,
    )
