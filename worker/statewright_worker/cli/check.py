"""`statewright check`: whether all that is kept fits together."""

import typer
from rich.console import RenderableType

from statewright.protocol.channels import Channels
from statewright_worker.audit.audit import Report, audit
from statewright_worker.audit.base import Finding
from statewright_worker.cli.asking import InJson
from statewright_worker.cli.showing import Column, say, say_beside, say_json, table
from statewright_worker.loop import run
from statewright_worker.settings import WorkerSettings
from statewright_worker.storage.database import check_schema, create_engine
from statewright_worker.streams.reaching import open_pool

QUERY_SECONDS = 3_600.0


def check(*, in_json: InJson = False) -> None:
    """Say whether all that is kept fits together, as of one moment: limits, slots and who waits, leases and timers,
    histories, numbers of events, the ledger, and the newest events in Redis.

    Needs STATEWRIGHT_DATABASE_URL and STATEWRIGHT_REDIS_URL. Nothing is changed and nothing locked; of a million runs
    it takes some ten seconds. Workers do the same once an hour, and log what they find. The exit status is 1 when
    something does not fit together.
    """
    report = run(_audited(WorkerSettings.load()))
    if in_json:
        say_json(finding._asdict() for finding in report.findings)
    else:
        if report.findings:
            say(_findings_table(report))
        if report.is_clean:
            say("all fits together")
    if report.untold:
        say_beside(f"and {report.untold:,} more")
    if not report.is_clean:
        raise typer.Exit(1)


async def _audited(settings: WorkerSettings) -> Report:
    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=0,
        pooled_transactions=settings.transaction_pooler,
        application="check",
        command_timeout=QUERY_SECONDS,
    )
    try:
        await check_schema(engine)
        async with open_pool(settings.redis_url.get_secret_value()) as pool:
            return await audit(engine, Channels(settings.namespace), pool)
    finally:
        await engine.dispose()


def _findings_table(report: Report) -> RenderableType:
    columns = [
        Column("WHAT", lambda finding: finding.check),
        Column("", lambda finding: finding.subject),
        Column("RUN", lambda finding: finding.run_id, is_whole=True),
        Column("DETAIL", lambda finding: finding.detail),
        Column("", lambda finding: "" if finding.is_wrong else "may be"),
    ]
    findings: list[Finding] = list(report.findings)
    return table(columns, findings)
