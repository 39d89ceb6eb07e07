"""Auditing: one of the workers looks once an hour whether all that is kept fits together, and logs what does not."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import structlog

from statewright.errors import StatewrightError
from statewright_worker.audit.audit import Report

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

AUDIT_SECONDS: Final = 600.0
"""How long an audit may take. One that takes longer is given up."""

Audit = Callable[["ConnectionPool"], Awaitable[Report]]
"""Audits the deployment, with connections to Redis out of this pool."""

log = structlog.get_logger()


async def log_what_does_not_fit(audit: Audit, pool: "ConnectionPool") -> None:
    """Audit the deployment once, and log what was found. What fails is logged as well."""
    try:
        report = await audit(pool)
    except StatewrightError as error:
        log.warning("nobody knows whether all that is kept fits together", reason=str(error))
        return
    for finding in report.findings:
        if finding.is_wrong:
            known = {name: str(value) for name, value in finding._asdict().items() if value is not None}
            known.pop("is_wrong")
            log.error("something does not fit together", **known)
    if report.is_clean:
        log.info("all that is kept fits together")
    else:
        log.error("not all that is kept fits together: see `statewright check`", untold=report.untold)
