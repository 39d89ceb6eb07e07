"""`statewright limits`: look at limits, change them, and check that they are kept."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer
from rich.console import Group, RenderableType

from statewright import Client, ConcurrencyLimit
from statewright_worker.cli.asking import InJson, Watch, Yes, confirmed, seconds_of, shown, with_client
from statewright_worker.cli.showing import Column, ago, kind, say, say_beside, say_json, seconds, since, table
from statewright_worker.loop import run

if TYPE_CHECKING:
    # Only the check needs a database, and what reaches it.
    from statewright_worker.settings import WorkerSettings
    from statewright_worker.storage.audit import Finding

AUDIT_SECONDS: Final = 600.0

limits = typer.Typer(no_args_is_help=True, help="Look at limits, change them, and check that they are kept.")

Tag = Annotated[str | None, typer.Option(metavar="TAG", help="On task runs with the tag.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="On runs that ask for the name.")]
DeploymentId = Annotated[UUID | None, typer.Option(metavar="ID", help="On flow runs of the deployment.")]


@limits.command()
def check(*, in_json: InJson = False) -> None:
    """Compare slots, waiters and leases with the states of their runs, as of one moment.

    Needs STATEWRIGHT_DATABASE_URL, and `pip install 'statewright[worker]'`. The exit status is 1 when something does
    not fit together. Nothing is changed and nothing locked.
    """
    from statewright_worker.settings import WorkerSettings

    settings = WorkerSettings.load()
    findings = run(_findings(settings))
    if in_json:
        say_json({**asdict(finding), "is_wrong": finding.is_wrong} for finding in findings)
    elif findings:
        say(_findings_table(findings))
    else:
        typer.echo("limits, waiters and leases fit the states of their runs")
    if any(finding.is_wrong for finding in findings):
        raise typer.Exit(1)


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


def _findings_table(findings: list["Finding"]) -> RenderableType:
    return table(
        [
            Column("WHAT", lambda finding: finding.kind),
            Column("LIMIT", lambda finding: finding.limit),
            Column("RUN", lambda finding: finding.run_id, is_whole=True),
            Column("DETAIL", lambda finding: finding.detail),
            Column("", lambda finding: "" if finding.is_wrong else "may be"),
        ],
        findings,
    )


async def _findings(settings: "WorkerSettings") -> list["Finding"]:
    from statewright_worker.storage.audit import audit
    from statewright_worker.storage.database import check_schema, create_engine

    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=0,
        pooled_transactions=settings.transaction_pooler,
        application="limits check",
        command_timeout=AUDIT_SECONDS,
    )
    try:
        await check_schema(engine)
        return await audit(engine)
    finally:
        await engine.dispose()
