"""`statewright limits`: look at limits, and change them."""

from typing import Annotated
from uuid import UUID

import typer
from rich.console import Group, RenderableType

from statewright import Client, ConcurrencyLimit
from statewright_worker.cli.asking import InJson, Watch, Yes, confirmed, seconds_of, shown, with_client
from statewright_worker.cli.showing import Column, ago, kind, say, say_beside, say_json, seconds, since, table

limits = typer.Typer(no_args_is_help=True, help="Look at limits, and change them.")

Tag = Annotated[str | None, typer.Option(metavar="TAG", help="On task runs with the tag.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="On runs that ask for the name.")]
DeploymentId = Annotated[UUID | None, typer.Option(metavar="ID", help="On flow runs of the deployment.")]


@limits.command("list")
@with_client
async def list_(client: Client, *, watch: Watch = False, in_json: InJson = False) -> None:
    """List all limits as they stand."""
    found = await shown(client.list_limits, limits_table, _without_runs, in_json=in_json, watch=watch)
    if not found:
        say_beside("no limit is set")


@limits.command()
@with_client
async def show(
    client: Client,
    *,
    tag: Tag = None,
    name: Name = None,
    deployment_id: DeploymentId = None,
    watch: Watch = False,
    in_json: InJson = False,
) -> None:
    """Show a limit, who holds its slots, and who waits for them. The exit status is 1 when there is no such limit."""

    async def look() -> ConcurrencyLimit:
        limit = await client.read_limit(tag, name=name, deployment_id=deployment_id)
        if limit is None:
            say_beside("there is no such limit")
            raise typer.Exit(1)
        return limit

    await shown(look, _whole, lambda limit: [limit], in_json=in_json, watch=watch)


@limits.command("set")
@with_client
async def set_(
    client: Client,
    concurrency_limit: Annotated[
        int, typer.Argument(min=0, metavar="NUMBER", help="How many runs may be RUNNING at once.", show_default=False)
    ],
    *,
    tag: Tag = None,
    name: Name = None,
    deployment_id: DeploymentId = None,
    period: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Make it a rate: so many starts in a period.")
    ] = None,
    lease: Annotated[
        str | None, typer.Option(metavar="DURATION", help="The lease of its runs that ask for none.")
    ] = None,
    yes: Yes = False,
    in_json: InJson = False,
) -> None:
    """Set a limit. What is not given is not kept: without --period it is no rate. It shows what is set, and asks."""
    if not yes:
        before = await client.read_limit(tag, name=name, deployment_id=deployment_id)
        if before is not None:
            say(limits_table([before]))
        confirmed("There is no such limit. Set it?" if before is None else "Set it anew?", yes=yes)
    limit = await client.set_limit(
        tag,
        concurrency_limit,
        name=name,
        deployment_id=deployment_id,
        period=seconds_of(period, "--period"),
        lease=seconds_of(lease, "--lease"),
    )
    told = [] if limit is None else [limit]
    if in_json:
        say_json(_without_runs(told))
    else:
        say(limits_table(told))


@limits.command()
@with_client
async def remove(
    client: Client, *, tag: Tag = None, name: Name = None, deployment_id: DeploymentId = None, yes: Yes = False
) -> None:
    """Remove a limit, if there is one, and free its slots. It shows the limit, and asks."""
    if not yes:
        before = await client.read_limit(tag, name=name, deployment_id=deployment_id)
        if before is not None:
            say(_whole(before))
            confirmed("Remove it, so that nobody waits for it any more?", yes=yes)
    await client.set_limit(tag, None, name=name, deployment_id=deployment_id)
    typer.echo("there is no such limit any more")


def limits_table(found: list[ConcurrencyLimit]) -> RenderableType:
    """Return limits as a table."""
    return table(
        [
            Column("ON", lambda limit: limit.scope),
            Column("KEY", lambda limit: limit.key),
            Column("LIMIT", lambda limit: limit.concurrency_limit, is_number=True),
            Column("PER", lambda limit: seconds(limit.period_seconds)),
            Column("LEASE", lambda limit: seconds(limit.lease_seconds)),
            Column("HELD", lambda limit: limit.held, is_number=True),
            Column("FREE", lambda limit: limit.free, is_number=True),
            Column("WAITING", lambda limit: limit.waiting, is_number=True),
        ],
        found,
    )


def _without_runs(found: list[ConcurrencyLimit]) -> list[dict[str, object]]:
    return [limit.model_dump(mode="json", exclude={"holders", "waiters"}) for limit in found]


def _whole(limit: ConcurrencyLimit) -> RenderableType:
    parts = [limits_table([limit])]
    if limit.holders:
        parts += ["", _holders_table(limit)]
    if limit.waiters:
        parts += ["", _waiters_table(limit)]
    return Group(*parts)


def _holders_table(limit: ConcurrencyLimit) -> RenderableType:
    return table(
        [
            Column("HOLDER", lambda holder: holder.run_id, is_whole=True),
            Column("KIND", lambda holder: kind(holder.kind)),
            Column("NAME", lambda holder: holder.name),
            Column("FOR", lambda holder: since(holder.since), is_whole=True),
            Column("SINCE", lambda holder: holder.since, is_wide=True, is_whole=True),
            Column("LEASE ENDS", lambda holder: ago(holder.lease_ends)),
        ],
        limit.holders,
    )


def _waiters_table(limit: ConcurrencyLimit) -> RenderableType:
    return table(
        [
            Column("WAITER", lambda waiter: waiter.run_id, is_whole=True),
            Column("NAME", lambda waiter: waiter.name),
            Column("PRIORITY", lambda waiter: waiter.priority or None, is_number=True),
            Column("FOR", lambda waiter: since(waiter.since), is_whole=True),
            Column("SINCE", lambda waiter: waiter.since, is_wide=True, is_whole=True),
            Column("PROPOSAL", lambda waiter: waiter.proposal_id, is_wide=True, is_whole=True),
        ],
        limit.waiters,
    )
