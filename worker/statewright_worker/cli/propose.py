"""`statewright propose`: a state for a run, by hand."""

from typing import Annotated, Any
from uuid import UUID

import typer

from statewright import Client
from statewright_worker.cli.asking import InJson, RunId, Yes, confirmed, with_client
from statewright_worker.cli.showing import state_of
from statewright_worker.cli.verdict import tell


@with_client
async def propose(
    client: Client,
    run: RunId,
    proposed: dict[str, Any],
    *,
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
    asked = proposed["state"]
    if not yes:
        now = await client.read_run(run, history=False)
        confirmed(f"{now.name} is {state_of(now.state).plain}. Propose {asked.name or asked.type}?", yes=yes)
    given: dict[str, Any] = {"on_wait": "park", "priority": priority} if park else {}
    tell(
        await client.propose(run, cascade=cascade, proposal_id=proposal_id, **proposed, **given),
        in_json=in_json,
    )
