"""`statewright limits`: look at limits, change them, and check that they are kept."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import typer
from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table

from statewright import Client, ConcurrencyLimit
from statewright_worker.loop import run
from statewright_worker.settings import WorkerSettings
from statewright_worker.storage.audit import Finding, audit
from statewright_worker.storage.database import check_schema, create_engine

AUDIT_SECONDS: Final = 600.0

limits = typer.Typer(no_args_is_help=True, help="Look at limits, change them, and check that they are kept.")

Tag = Annotated[str | None, typer.Option(help="On task runs with the tag.")]
Name = Annotated[str | None, typer.Option(help="On runs that ask for the name.")]
DeploymentId = Annotated[UUID | None, typer.Option(help="On flow runs of the deployment.")]
RedisUrl = Annotated[str | None, typer.Option(envvar="STATEWRIGHT_REDIS_URL", show_envvar=True)]
InJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

Answer = TypeVar("Answer")


@limits.command()
def check(*, in_json: InJson = False) -> None:
    """Compare slots, waiters and leases with the states of their runs, as of one moment.

    The exit status is 1 when something does not fit together. Nothing is changed and nothing locked.
    """
    settings = WorkerSettings.load()
    findings = run(_findings(settings))
    if in_json:
        _show_json([{**asdict(finding), "is_wrong": finding.is_wrong} for finding in findings])
    elif findings:
        _show_findings(findings)
    else:
        typer.echo("limits, waiters and leases fit the states of their runs")
    if any(finding.is_wrong for finding in findings):
        raise typer.Exit(1)


@limits.command("list")
def list_(*, redis_url: RedisUrl = None, in_json: InJson = False) -> None:
    """List all limits as they stand."""
    found = _asked(redis_url, lambda client: client.list_limits())
    if in_json:
        _show_json([limit.model_dump(mode="json", exclude={"holders", "waiters"}) for limit in found])
    else:
        _show_limits(found)


@limits.command()
def show(
    *,
    tag: Tag = None,
    name: Name = None,
    deployment_id: DeploymentId = None,
    redis_url: RedisUrl = None,
    in_json: InJson = False,
) -> None:
    """Show a limit, who holds its slots, and who waits for them. The exit status is 1 when there is no such limit."""
    limit = _asked(redis_url, lambda client: client.read_limit(tag, name=name, deployment_id=deployment_id).answer())
    if in_json:
        _show_json(None if limit is None else limit.model_dump(mode="json"))
    elif limit is None:
        typer.echo("there is no such limit", err=True)
    else:
        _show_limits([limit])
        _show_runs(limit)
    if limit is None:
        raise typer.Exit(1)


@limits.command("set")
def set_(
    concurrency_limit: Annotated[int, typer.Argument(min=0, help="How many runs may be RUNNING at once.")],
    *,
    tag: Tag = None,
    name: Name = None,
    deployment_id: DeploymentId = None,
    period: Annotated[float | None, typer.Option(help="Seconds: make it a rate, so many starts in a period.")] = None,
    lease: Annotated[float | None, typer.Option(help="Seconds: the lease of its runs that ask for none.")] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Set a limit. What is not given is not kept: without --period it is no rate."""
    limit = _asked(
        redis_url,
        lambda client: client.set_limit(
            tag, concurrency_limit, name=name, deployment_id=deployment_id, period=period, lease=lease
        ).answer(),
    )
    _show_limits([limit] if limit else [])


@limits.command()
def remove(
    *, tag: Tag = None, name: Name = None, deployment_id: DeploymentId = None, redis_url: RedisUrl = None
) -> None:
    """Remove a limit, if there is one, and free its slots."""
    _asked(redis_url, lambda client: client.set_limit(tag, None, name=name, deployment_id=deployment_id).answer())
    typer.echo("there is no such limit any more")


def _asked(redis_url: str | None, ask: Callable[[Client], Awaitable[Answer]]) -> Answer:
    async def asked() -> Answer:
        async with Client(redis_url) as client:
            return await ask(client)

    return run(asked())


async def _findings(settings: WorkerSettings) -> list[Finding]:
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


def _show_json(told: Any) -> None:
    typer.echo(json.dumps(told, default=str))


def _show_findings(findings: list[Finding]) -> None:
    rows = [
        (finding.kind, finding.limit, finding.run_id, finding.detail, "" if finding.is_wrong else "may be")
        for finding in findings
    ]
    _show("findings", ("what", "limit", "run", "detail", ""), rows)


def _show_limits(found: list[ConcurrencyLimit]) -> None:
    rows = [
        (
            limit.scope,
            limit.key,
            limit.concurrency_limit,
            None if limit.period_seconds is None else f"{limit.period_seconds:g} s",
            None if limit.lease_seconds is None else f"{limit.lease_seconds:g} s",
            limit.held,
            limit.free,
            limit.waiting,
        )
        for limit in found
    ]
    _show("limits", ("scope", "key", "limit", "per", "lease", "held", "free", "waiting"), rows)


def _show_runs(limit: ConcurrencyLimit) -> None:
    holders = [
        (holder.run_id, holder.kind, holder.name, _shown(holder.since), _shown(holder.lease_ends))
        for holder in limit.holders
    ]
    waiters = [
        (waiter.run_id, waiter.name, waiter.priority, _shown(waiter.since), waiter.proposal_id)
        for waiter in limit.waiters
    ]
    if holders:
        _show("holders", ("run", "kind", "name", "since", "lease ends"), holders)
    if waiters:
        _show("waiters", ("run", "name", "priority", "since", "proposal"), waiters)


def _shown(moment: datetime | None) -> str | None:
    """Return the moment as whoever sits at the terminal reads it: by their own clock."""
    if moment is None:
        return None
    # Imported only now, because every command would wait for the import.
    import pendulum

    return pendulum.instance(moment).in_timezone("local").format("YYYY-MM-DD HH:mm:ss Z")


def _show(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(*columns, title=title, title_justify="left", box=ROUNDED)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(highlight=False).print(table)
