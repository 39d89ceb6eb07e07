"""`statewright verdict`: what became of a proposal."""

from typing import Final

import typer
from rich.console import RenderableType
from rich.text import Text

from statewright import Client, ParkedReply, SetStateStatus, Verdict
from statewright_worker.cli.asking import InJson, ItsRun, ProposalId, with_client
from statewright_worker.cli.showing import ago, facts, moment, say, say_beside, say_json, verdict_lines

STATUSES: Final = {SetStateStatus.ACCEPT: 0, SetStateStatus.REJECT: 3, SetStateStatus.WAIT: 4, SetStateStatus.ABORT: 5}
"""The exit status that stands for a verdict."""
PARKED: Final = 6


@with_client
async def verdict(
    client: Client,
    proposal: ProposalId,
    *,
    run: ItsRun = None,
    in_json: InJson = False,
) -> None:
    """Show what became of a proposal. Asking changes nothing.

    The exit status says it as well: 0 ACCEPT, 3 REJECT, 4 WAIT, 5 ABORT, 6 it is parked, 1 it is not known or was
    refused.
    """
    known = await client.verdict(proposal, run=run)
    if known is None:
        say_beside(f"no proposal {proposal} is known{'' if run else '; name its --run if it may be under way'}")
        raise typer.Exit(1)
    tell(known, in_json=in_json)


def tell(known: Verdict | ParkedReply, *, in_json: bool) -> None:
    """Show a verdict, or that there is none yet. Raises typer.Exit with the status that stands for it."""
    if in_json:
        say_json([known])
    else:
        say(verdict_lines(known) if isinstance(known, Verdict) else parked_lines(known))
    raise typer.Exit(STATUSES[known.status] if isinstance(known, Verdict) else PARKED)


def parked_lines(parked: ParkedReply) -> RenderableType:
    """Return for people what is known of a proposal that is parked."""
    return facts(
        [
            ("verdict", Text("none yet: it is parked", "cyan")),
            ("because", parked.reason),
            ("since", f"{moment(parked.since)}, {ago(parked.since)}"),
            ("run", parked.run_id),
            ("proposal", parked.proposal_id),
        ]
    )
