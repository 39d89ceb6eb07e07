"""`statewright runs`: find runs, look at them, cancel and delete them."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from statewright import (
    Client,
    FlowRun,
    Place,
    Proposal,
    RunFilters,
    RunHistory,
    RunTree,
    State,
    StateCount,
    TaskRun,
    Timeline,
    Verdict,
)
from statewright.explanations import AnyEntry, LeaseEntry, SlotEntry, StateEntry, VerdictEntry, WaitEntry
from statewright_worker.cli.asking import DryRun, InJson, RunId, Watch, Yes, confirmed, shown, with_client
from statewright_worker.cli.showing import (
    STATE_STYLES,
    Column,
    ago,
    counted,
    facts,
    json_of,
    kind,
    moment,
    say,
    say_beside,
    say_json,
    seconds,
    since,
    state,
    state_of,
    status,
    table,
)

PAGE: Final = 100
SAMPLE: Final = 20
"""How many of the runs that a bulk action is about are shown before it is begun."""

runs = typer.Typer(no_args_is_help=True, help="Find runs, look at them, cancel and delete them.")

AnyRun = FlowRun | TaskRun


@runs.command("list")
@with_client
async def list_(
    client: Client,
    filters: RunFilters,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    after: Annotated[
        UUID | None, typer.Option(metavar="RUN", help="Go on behind this run, the last one shown.")
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Show how many there are in each state instead.")] = False,
    watch: Watch = False,
    in_json: InJson = False,
) -> None:
    """List the runs that match all that is given, the newest first.

    Where there are more than --limit, the last line says how to go on; it goes to standard error.
    """
    if count:
        await shown(lambda: client.count_runs(**filters), _counts, list, in_json=in_json, watch=watch)
        return
    place = None if after is None else _place_of(await client.read_run(after, history=False))
    found = await shown(
        lambda: _found(client, filters, limit, place),
        lambda page: runs_table(page[0]),
        lambda page: page[0],
        in_json=in_json,
        watch=watch,
    )
    if not found[0]:
        say_beside("no run matches")
    elif found[1]:
        say_beside(f"there are more: go on with --after {found[0][-1].id}")


@runs.command()
@with_client
async def show(client: Client, run: RunId, *, watch: Watch = False, in_json: InJson = False) -> None:
    """Show a run, and every state that it was ever in."""
    await shown(lambda: client.read_run(run).answer(), _history, lambda read: [read], in_json=in_json, watch=watch)


@runs.command()
@with_client
async def tree(client: Client, run: RunId, *, watch: Watch = False, in_json: InJson = False) -> None:
    """Show a run with all that is below it: its task runs, and their subflows.

    With --json, each run is a line, whose `depth` is 0 for the first.
    """
    await shown(lambda: client.tree(run), _tree, _tree_in_json, in_json=in_json, watch=watch)


@runs.command()
@with_client
async def timeline(client: Client, run: RunId, *, watch: Watch = False, in_json: InJson = False) -> None:
    """Tell what happened to a run, in one order: its states, verdicts, waits, slots and leases, each with how long it
    lasted."""
    await shown(lambda: client.timeline(run), _timeline, lambda told: list(told.entries), in_json=in_json, watch=watch)


@runs.command()
@with_client
async def cancel(
    client: Client,
    filters: RunFilters,
    run: Annotated[list[UUID] | None, typer.Argument(metavar="RUN", help="The runs' ids.")] = None,
    *,
    message: Annotated[str | None, typer.Option(help="Why, for whoever reads the state.")] = None,
    cascade: Annotated[bool, typer.Option(help="Cancel what is below flow runs as well.")] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Under the minimal policy, which lets nearly all pass.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    in_json: InJson = False,
) -> None:
    """Cancel runs: those that are named, or all that match a filter and have not come to an end.

    It shows first which runs these are, and asks. The exit status is 1 when not all were cancelled.
    """
    if bool(run) == bool(filters):
        raise typer.BadParameter("name the runs, or say by filters which are meant", param_hint="RUN")
    if not run:
        filters["ended"] = False
    if not await _meant(client, filters, run or [], in_json=in_json, dry_run=dry_run):
        return
    if dry_run:
        return
    confirmed("Cancel them?", yes=yes)
    total = failed = 0
    async for page in _pages(client, filters, run or []):
        proposals = [
            Proposal(
                one.id, State.cancelled(message=message), force=force, cascade=cascade and isinstance(one, FlowRun)
            )
            for one in page
        ]
        for one, told in zip(page, await client.propose_many(proposals), strict=True):
            total += 1
            failed += not (isinstance(told, Verdict) and told.accepted)
            _tell(one, told, in_json=in_json)
    if not in_json:
        say(f"{total - failed:,} of {counted(total, 'run')} cancelled")
    if failed:
        raise typer.Exit(1)


@runs.command()
@with_client
async def delete(
    client: Client,
    run: Annotated[list[UUID], typer.Argument(metavar="RUN", help="The runs' ids.", show_default=False)],
    *,
    force: Annotated[bool, typer.Option("--force", help="Also what has not come to an end.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Delete runs with all that is below them: their histories, verdicts and cached states. No event tells of it.

    It shows them first, and asks. The exit status is 1 when one was refused, as one that has not come to an end is.
    `statewright prune` deletes what is old.
    """
    for one in run:
        say(_tree(await client.tree(one)))
    if dry_run:
        return
    confirmed("Delete all of this?", yes=yes)
    for one in run:
        say(f"{counted(await client.delete_run(one, force=force), 'run')} deleted")


def runs_table(found: Sequence[AnyRun]) -> RenderableType:
    """Return runs as a table."""
    return table(
        [
            Column("RUN", lambda run: run.id, is_whole=True),
            Column("KIND", lambda run: kind(run.kind), is_whole=True),
            Column("NAME", lambda run: run.name),
            Column("STATE", lambda run: state_of(run.state)),
            Column("FOR", lambda run: since(run.state.timestamp) if run.state else None, is_whole=True),
            Column("CREATED", lambda run: ago(run.created), is_wide=True, is_whole=True),
            Column("TAGS", lambda run: " ".join(run.tags), is_wide=True),
        ],
        found,
    )


def counts_table(found: list[StateCount]) -> RenderableType:
    """Return how many runs there are in each state as a table."""
    return table(
        [
            Column("KIND", lambda one: kind(one.kind)),
            Column("STATE", lambda one: state(one.state_type, one.state_name)),
            Column("RUNS", lambda one: f"{one.count:,}{' or more' if one.or_more else ''}", is_number=True),
        ],
        found,
    )


def _place_of(run: AnyRun) -> Place:
    return Place(created=run.created, id=run.id)


async def _found(
    client: Client, filters: RunFilters, limit: int, after: Place | None
) -> tuple[list[AnyRun], Place | None]:
    """Return up to `limit` runs, and where to go on where there are more."""
    found: list[AnyRun] = []
    while len(found) < limit:
        page = await client.find_runs(limit=min(limit - len(found), PAGE), after=after, **filters)
        found += page.runs
        after = page.next
        if after is None:
            break
    return found, after


async def _pages(client: Client, filters: RunFilters, named: Sequence[UUID]) -> AsyncIterator[Sequence[AnyRun]]:
    """Yield the runs that are named, or all that match."""
    for first in range(0, len(named), PAGE):
        yield [await client.read_run(run, history=False) for run in named[first : first + PAGE]]
    if named:
        return
    after: Place | None = None
    while True:
        page = await client.find_runs(limit=PAGE, after=after, **filters)
        yield page.runs
        after = page.next
        if after is None:
            return


async def _meant(client: Client, filters: RunFilters, named: Sequence[UUID], *, in_json: bool, dry_run: bool) -> bool:
    """Show which runs are meant, and return whether there are any; for programs each in full, if that is all."""
    if in_json and dry_run:
        async for page in _pages(client, filters, named):
            say_json(page)
        return True
    if named:
        some = [run async for page in _pages(client, filters, named) for run in page]
        words = counted(len(some), "run")
    else:
        some, _ = await _found(client, filters, SAMPLE, None)
        counts = await client.count_runs(**filters)
        words = counted(sum(one.count for one in counts), "run")
        if any(one.or_more for one in counts):
            words += " or more"
    if not some:
        say_beside("no run matches")
        return False
    is_all = bool(named) or len(some) < SAMPLE
    say_beside(f"{words}:" if is_all else f"{words}, of which the newest {len(some)} are:")
    say(runs_table(some), beside=in_json)
    return True


def _tell(run: AnyRun, told: Verdict | Exception, *, in_json: bool) -> None:
    if in_json:
        say_json([told if isinstance(told, Verdict) else {"run_id": run.id, "error": told}])
    elif not isinstance(told, Verdict):
        say_beside(f"{run.id} {run.name}: {told}")
    elif not told.accepted:
        say_beside(f"{run.id} {run.name}: {told.status}: {told.reason or 'no reason was given'}")


def _history(read: RunHistory) -> RenderableType:
    run = read.run
    heading = Text.assemble((run.name, "bold"), f"  {run.kind}  ", state_of(run.state))
    about = facts(
        [
            ("run", run.id),
            ("tags", " ".join(run.tags)),
            ("labels", " ".join(f"{key}={value}" for key, value in run.labels.items())),
            *_belongs(run),
            ("created", f"{moment(run.created)}, {ago(run.created)}"),
            ("expected start", run.expected_start_time),
            ("next start", run.next_scheduled_start_time),
            ("started", run.start_time),
            ("ended", run.end_time),
            ("times RUNNING", run.run_count),
            ("RUNNING for", seconds(run.total_run_time.total_seconds()) if run.total_run_time else None),
            ("policy", _policy(run)),
        ],
        title=heading,
    )
    return Group(about, "", _states_table(read.states))


def _belongs(run: AnyRun) -> list[tuple[str, object]]:
    if isinstance(run, FlowRun):
        return [
            ("flow", run.flow_id),
            ("deployment", run.deployment_id),
            ("parent task run", run.parent_task_run_id),
        ]
    return [("flow run", run.flow_run_id), ("task key", run.task_key)]


def _timeline(told: Timeline) -> RenderableType:
    return Group(
        Text.assemble((told.run.name, "bold"), f"  {told.run.kind}  ", state_of(told.run.state)),
        "",
        table(
            [
                Column("AT", lambda one: moment(one.at), is_whole=True),
                Column("WHAT", lambda one: one.kind, is_whole=True),
                Column("", _happened),
                Column("FOR", lambda one: _lasted(one, told), is_whole=True),
                Column("BY", lambda one: getattr(one, "actor", None), is_wide=True),
                Column("PROPOSAL", lambda one: getattr(one, "proposal_id", None), is_wide=True, is_whole=True),
            ],
            told.entries,
        ),
    )


def _happened(entry: AnyEntry) -> Text:
    match entry:
        case StateEntry():
            return Text.assemble(state(entry.type, entry.name), f"  {entry.message}" if entry.message else "")
        case VerdictEntry():
            return Text.assemble(status(entry.status), f"  {entry.reason}" if entry.reason else "")
        case WaitEntry():
            return Text(entry.reason or "")
        case SlotEntry():
            return Text(f"{entry.scope} {entry.key}")
        case LeaseEntry():
            return Text(f"of {seconds(entry.seconds)}{f' by {entry.executor}' if entry.executor else ''}")


def _lasted(entry: AnyEntry, told: Timeline) -> str | None:
    """Return how long it lasted, or has lasted up to now; None for a moment."""
    if isinstance(entry, VerdictEntry):
        return None
    return seconds((entry.duration or told.now - entry.at).total_seconds())


def _policy(run: AnyRun) -> str:
    said = run.policy.model_dump(mode="json", exclude_defaults=True)
    return " ".join(f"{name}={value if isinstance(value, str) else json_of(value)}" for name, value in said.items())


def _states_table(states: Sequence[State]) -> RenderableType:
    ends: list[Any] = [later.timestamp for later in states[1:]]
    lasted = dict(zip((one.id for one in states), ends, strict=False))
    return table(
        [
            Column("STATE", state_of),
            Column("SINCE", lambda one: one.timestamp, is_whole=True),
            Column(
                "FOR",
                lambda one: (
                    seconds((lasted[one.id] - one.timestamp).total_seconds())
                    if one.id in lasted
                    else since(one.timestamp)
                ),
                is_whole=True,
            ),
            Column("SCHEDULED", lambda one: one.state_details.scheduled_time, is_wide=True),
            Column("LEASE", lambda one: seconds(one.state_details.lease), is_wide=True),
            Column("EXECUTOR", lambda one: one.state_details.executor, is_wide=True),
            Column("MESSAGE", lambda one: one.message),
        ],
        states,
    )


def _counts(found: list[StateCount]) -> RenderableType:
    if not found:
        return "no run matches"
    return counts_table(found)


def _tree(found: RunTree) -> RenderableType:
    root = Tree(_leaf(found.run), guide_style="dim")
    _grow(root, found)
    return root


def _grow(onto: Tree, found: RunTree) -> None:
    for below in found.below:
        _grow(onto.add(_leaf(below.run)), below)
    if found.or_more:
        onto.add(Text(f"there may be more: statewright runs list --parent {found.run.id}", "dim"))


def _leaf(run: AnyRun) -> Text:
    lasts = since(run.state.timestamp) if run.state else ""
    style = STATE_STYLES[run.state.type] if run.state else "dim"
    return Text.assemble(("● ", style), f"{run.name}  ", state_of(run.state), f" {lasts}  ", (str(run.id), "dim"))


def _tree_in_json(found: RunTree, depth: int = 0) -> list[Any]:
    lines: list[Any] = [{"depth": depth, "or_more": found.or_more, **found.run.model_dump(mode="json")}]
    for below in found.below:
        lines += _tree_in_json(below, depth + 1)
    return lines
