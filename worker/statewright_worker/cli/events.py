"""`statewright events`: changes of states as they happen."""

from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.text import Text

from statewright import Client, EraBegan, Event, EventsMissed, RunKind, StateType
from statewright_worker.cli.asking import InJson, moment_said, with_client
from statewright_worker.cli.showing import WIDE, console, kind, moment, say_beside, say_json, state

NAME_WIDTH: Final = 16


@with_client
async def events(
    client: Client,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="beginning, 2h (ago), 2026-11-21 or 2026-11-21T08:00+01:00; without it, what comes from now on.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    kind: Annotated[RunKind | None, typer.Option(metavar="KIND", help="Of runs of this kind.")] = None,
    run: Annotated[UUID | None, typer.Option(metavar="RUN", help="Of this run.")] = None,
    tree: Annotated[UUID | None, typer.Option(metavar="RUN", help="Of the tree to which this run belongs.")] = None,
    state: Annotated[
        list[StateType] | None,
        typer.Option(case_sensitive=False, metavar="TYPE", help="Into a state of this type; of one of several."),
    ] = None,
    state_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Into a state of this name; of one of several.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Of runs with this tag; with one of several.")
    ] = None,
    in_json: InJson = False,
) -> None:
    """Show changes of states as they happen, until Ctrl-C; within a tree of runs in their order.

    With --json a line is a CloudEvent, as subscribers get it.
    """
    start: Any = "beginning" if since == "beginning" else moment_said(since, "--since")
    told = 0
    async with client.subscribe(
        since=start,
        kinds=kind,
        run=run,
        tree=tree,
        state_types=state or None,
        state_names=state_name or None,
        tags=tag or None,
    ) as subscription:
        while count is None or told < count:
            try:
                event = await anext(subscription)
            except (EventsMissed, EraBegan) as gap:
                say_beside(str(gap))
                continue
            told += 1
            if in_json:
                say_json([event])
            else:
                console().print(_line(event), soft_wrap=True)


def _line(event: Event) -> Text:
    run = event.data.resource
    before = event.data.initial_state
    line = Text.assemble(
        (f"{moment(run.state_timestamp)[11:19]}  ", "dim"),
        f"{kind(run.kind)}  {run.name:<{NAME_WIDTH}}  ",
        (f"{before.name if before else 'new'} → ", "dim"),
        state(run.state_type, run.state_name),
        (f"  {run.id}", "dim"),
    )
    if console().width >= WIDE and run.state_message:
        line.append(f"  {run.state_message.splitlines()[0]}" if run.state_message.strip() else "")
    return line
