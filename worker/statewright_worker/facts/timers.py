"""Timers: what a partition's holder must look at again, and when."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.records import TimerKind, TimerName
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.orchestration.waiting import Waiting
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.transactions import Storage
from statewright_worker.storage.writing import Part, Row, delete, insert

SOON_SECONDS: Final = 2
MOVED_AT_ONCE: Final = 10_000

TIMER_COLUMNS: Final[Columns] = (
    ("kind", "text"),
    ("id", "uuid"),
    ("partition", "smallint"),
    ("due", "timestamptz"),
)
# Two partitions may wake the same waiters. Each sets the timers in order, so they do not deadlock.
TIMERS_SET: Final = insert(
    "timer",
    TIMER_COLUMNS,
    otherwise="ON CONFLICT (kind, id) DO UPDATE SET due = excluded.due, partition = excluded.partition",
)
TIMERS_CALLED: Final = insert(
    "timer", TIMER_COLUMNS, otherwise="ON CONFLICT (kind, id) DO UPDATE SET due = least(timer.due, excluded.due)"
)
TIMERS_CLEARED: Final = delete("timer", (("kind", "text"), ("id", "uuid")))

# Timers that lie ahead are read as well: the first one of them says when to look next.
READ_TIMERS: Final = """
    SELECT timer.kind, timer.id, timer.due, statement_timestamp() AS now,
        parked.message, parked.reply_to, parked.actor, parked.entry_id, parked.decided
    FROM timer LEFT JOIN parked
        ON timer.kind = 'parked' AND parked.proposal_id = timer.id AND timer.due <= statement_timestamp()
    WHERE timer.partition = $1 AND timer.kind = ANY ($3) ORDER BY timer.due LIMIT $2
"""


# A renewed lease does not move its timer. Here all timers are moved that come due soon and whose leases were renewed.
# One by one, each would take a request and a look of its own.
FOLLOW_LEASES: Final = f"""
    WITH soon AS MATERIALIZED (
        SELECT kind, id, due FROM timer
        WHERE partition = $1 AND due <= statement_timestamp() + interval '{SOON_SECONDS} seconds'
        ORDER BY due LIMIT {MOVED_AT_ONCE}
    )
    UPDATE timer SET due = lease.ends FROM soon JOIN lease ON lease.run_id = soon.id
    WHERE soon.kind = 'lease' AND lease.executor IS NULL AND lease.ends > soon.due
        AND timer.kind = 'lease' AND timer.id = soon.id
"""


KINDS: Final = [*TimerKind]
"""The kinds that this version knows: a newer one may have set others."""


class DueTimer(NamedTuple):
    """A timer that is due; with the parked proposal, if it is one."""

    name: TimerName
    message: str | None
    """The parked request as JSON."""
    reply_to: str | None
    actor: str | None
    entry_id: str | None
    """The id of the entry in which the parked request came."""
    decided: bool


async def due_timers(storage: Storage, partition: int, count: int) -> tuple[list[DueTimer], float | None]:
    """Return the partition's timers that are due, oldest first and up to `count` of them, and in how many seconds the
    next one is due, None when there is none.

    It takes a transaction of its own. Raises one of the errors of `storage.errors`.
    """
    async with storage.transaction(partition) as transaction:
        rows = await transaction.driver.fetch(READ_TIMERS, partition, count + 1, KINDS)
        if any(row["kind"] == TimerKind.LEASE and row["due"] <= row["now"] for row in rows):
            await transaction.driver.execute(FOLLOW_LEASES, partition)
            rows = await transaction.driver.fetch(READ_TIMERS, partition, count + 1, KINDS)
    due = [
        DueTimer(
            TimerName(TimerKind(row["kind"]), row["id"]),
            row["message"],
            row["reply_to"],
            row["actor"],
            row["entry_id"],
            bool(row["decided"]),
        )
        for row in rows[:count]
        if row["due"] <= row["now"]
    ]
    if len(due) < len(rows):
        ahead = rows[len(due)]
        return due, max((ahead["due"] - ahead["now"]).total_seconds(), 0.0)
    return due, None


class Timers(Subject):
    """The timers that a batch sets and clears. It reads none: what is due comes as a request."""

    def load(self, reading: Reading, work: UnitOfWork) -> None:
        return

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        return _parts(work.waiting) if work.waiting.has_changed else ()


def _parts(waiting: Waiting) -> Iterator[tuple[Part, Sequence[Row]]]:
    yield TIMERS_CLEARED, sorted(waiting.timers_cleared)
    for part, timers in ((TIMERS_SET, waiting.timers_set), (TIMERS_CALLED, waiting.timers_called)):
        yield part, [(*name, timers[name].partition, timers[name].due) for name in sorted(timers)]
