"""The audit as a whole: all checks in one consistent read."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from statewright.errors import RedisUnavailable
from statewright.protocol.channels import Channels
from statewright_worker.audit.base import Check, Finding
from statewright_worker.audit.due import DUE
from statewright_worker.audit.events import ERAS, NUMBERED, STANDING, TAIL, Kept, compared
from statewright_worker.audit.histories import HISTORIES
from statewright_worker.audit.ledger import LEDGER
from statewright_worker.audit.limits import LIMITS
from statewright_worker.audit.sequences import SEQUENCES
from statewright_worker.storage.database import connected, known_partitions
from statewright_worker.streams.errors import REDIS_FAILED
from statewright_worker.streams.tails import Tail, read_tails

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

CHECKS: Final[tuple[Check, ...]] = (*LIMITS, *DUE, *HISTORIES, *SEQUENCES, *LEDGER)
TOLD: Final = 100
"""How many findings of a check are told; how many there are is counted."""


class Report(NamedTuple):
    """What the audit has found."""

    findings: Sequence[Finding]
    """The first findings of each check."""
    untold: int
    """How many more there are."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)


async def audit(engine: AsyncEngine, channels: Channels, pool: "ConnectionPool") -> Report:
    """Return all that does not fit together at one moment, whatever the workers do meanwhile. It takes no locks.

    Meanwhile PostgreSQL cleans up nothing that was deleted since it began. Raises RedisUnavailable, and ServerAway and
    ConfigurationError, as `database.connected` does.
    """
    partitions = await known_partitions(engine)
    try:
        tails = await read_tails(pool, channels, partitions, TAIL)
    except REDIS_FAILED as error:
        raise RedisUnavailable(f"cannot read events from Redis (STATEWRIGHT_REDIS_URL): {error}") from error
    one_view = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    findings: list[Finding] = []
    untold = 0
    async with connected(one_view) as connection, connection.begin():
        for check in CHECKS:
            told = f"SELECT *, count(*) OVER () FROM ({check.query}) AS found ORDER BY 1, 2, 3 LIMIT {TOLD}"
            rows = (await connection.execute(text(told))).all()
            findings += [Finding(check.name, row[0], row[1], row[2], check.is_wrong) for row in rows]
            untold += rows[0][3] - len(rows) if rows else 0
        of_streams = list(compared(tails, await _kept(connection, tails)))
    findings += of_streams[:TOLD]
    return Report(findings, untold + max(len(of_streams) - TOLD, 0))


async def _kept(connection: AsyncConnection, tails: Sequence[Tail]) -> dict[int, Kept]:
    eras = (await connection.execute(text(ERAS))).all()
    ids = {tail.partition: await _ids(connection, tail) for tail in tails}
    return {
        partition: Kept(sequence, low, tuple(_undone(eras, partition)), ids.get(partition, {}))
        for partition, sequence, low in (await connection.execute(text(STANDING))).all()
    }


async def _ids(connection: AsyncConnection, tail: Tail) -> dict[int, str]:
    if not tail.ids:
        return {}
    reach = {"partition": tail.partition, "first": min(tail.ids), "last": tail.ends_with}
    return {number: str(state_id) for number, state_id in await connection.execute(text(NUMBERED), reach)}


def _undone(eras: Sequence[Any], partition: int) -> Iterator[range]:
    for of, went_back_to, sequence in eras:
        if of == partition:
            yield range(went_back_to + 1, sequence + 1)
