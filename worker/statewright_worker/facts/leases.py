"""Leases: a batch renews those that heartbeats name, looks at those that end, and writes which begin and end.

A heartbeat's leases are renewed while the batch loads: it needs no rule's consent, and a lease that a request before it
ends is deleted with the batch. Only `ends` changes, which no index has, so that renewing stays cheap (HOT updates).

The runs of an executor depend on the executor's row alone. When that has ended, each of them gets a lease of its own
that has ended as well, and so they are ended one by one, like any other run.
"""

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Final
from uuid import UUID

from asyncpg import Record

from statewright.ids import id_of_executor
from statewright.states import StateDetails, StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.records import LeaseRecord, Standing
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, columns_of, delete, insert

SAID_CHARACTERS: Final = 1_000
"""So much is told of the message of a run's state: a heartbeat may name many runs."""

LEASE_COLUMNS: Final[Columns] = (
    ("run_id", "uuid"),
    ("state_id", "uuid"),
    ("seconds", "double precision"),
    ("ends", "timestamptz"),
    ("executor", "text"),
)
LEASES_BEGUN: Final = insert(
    "lease",
    LEASE_COLUMNS,
    partition="partition",
    otherwise="""ON CONFLICT (run_id) DO UPDATE SET state_id = excluded.state_id, seconds = excluded.seconds,
        ends = excluded.ends, executor = excluded.executor, partition = excluded.partition""",
)
LEASES_ENDED: Final = delete("lease", (("run_id", "uuid"),))
EXECUTORS_SEEN: Final = insert(
    "executor",
    (("name", "text"), ("seconds", "double precision"), ("ends", "timestamptz")),
    partition="partition",
    otherwise="ON CONFLICT (partition, name) DO UPDATE SET seconds = excluded.seconds, ends = excluded.ends",
)

# A state is named where whoever sends the heartbeat knows which lease it holds: somebody else's is not renewed then.
RENEW: Final = """
    UPDATE lease SET ends = $2::timestamptz + lease.seconds * interval '1 second'
    FROM unnest($3::uuid[], $4::uuid[]) AS held (run_id, state_id)
    WHERE lease.run_id = held.run_id AND lease.state_id = coalesce(held.state_id, lease.state_id)
        AND lease.partition = $1 AND lease.executor IS NULL AND lease.seconds > 0
    RETURNING lease.run_id, lease.state_id, lease.seconds, lease.ends, lease.executor
"""
RENEW_EXECUTORS: Final = """
    UPDATE executor SET ends = $2::timestamptz + seconds * interval '1 second' WHERE partition = $1 AND name = ANY ($3)
"""
READ_LEASES: Final = """
    SELECT run_id, state_id, seconds, ends, executor FROM lease WHERE run_id = ANY ($1)
"""
READ_EXECUTORS: Final = "SELECT name, ends FROM executor WHERE partition = $1"
# What an executor has held ends now, whoever takes its name from now on.
END_EXECUTORS: Final = """
    WITH ended AS (DELETE FROM executor WHERE partition = $1 AND name = ANY ($2) RETURNING name, ends),
    left_alone AS (
        UPDATE lease SET executor = NULL, seconds = 0, ends = ended.ends
        FROM ended WHERE lease.partition = $1 AND lease.executor = ended.name
        RETURNING lease.run_id, lease.ends
    )
    INSERT INTO timer (kind, id, partition, due) SELECT 'lease', run_id, $1::smallint, ends FROM left_alone
    ON CONFLICT (kind, id) DO UPDATE SET due = excluded.due, partition = excluded.partition
"""
READ_STANDINGS: Final = " UNION ALL ".join(
    f"""
    SELECT run.id, s.type, s.name, left(s.message, {SAID_CHARACTERS}) AS message, s.state_details::text AS details
    FROM {table} AS run LEFT JOIN {table}_state AS s ON s.id = run.state_id WHERE run.id = ANY ($1)
    """
    for table in ("flow_run", "task_run")
)


class Leases(Subject):
    """The leases that a batch renews, looks at, begins and ends."""

    def __init__(self) -> None:
        self.ids: set[UUID] = set()
        """Runs whose leases are loaded and not renewed."""
        self.executors: set[UUID] = set()
        """Executors, by id, whose leases are looked at."""
        self._beats: set[tuple[UUID, UUID | None]] = set()
        self._beats_of: dict[str, set[UUID]] = {}

    def renew(self, run_ids: Iterable[UUID], state_ids: Iterable[UUID | None]) -> None:
        """Ask for the runs' own leases to be renewed, each of the state, if one is named."""
        self._beats.update(zip(run_ids, state_ids, strict=True))

    def renew_executor(self, name: str, run_ids: Iterable[UUID]) -> None:
        """Ask for the executor's lease to be renewed, and for those of the runs' leases that it holds."""
        self._beats_of.setdefault(name, set()).update(run_ids)

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self.ids or self.executors or self._beats or self._beats_of else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        if self.executors:
            await self._end(reading, work)
        if self.ids:
            self._take(await reading.driver.fetch(READ_LEASES, list(self.ids)), work)
        named: set[UUID] = set()
        if self._beats:
            named.update(run_id for run_id, _ in self._beats)
            renewed = await reading.driver.fetch(RENEW, reading.partition, work.now, *columns_of(self._beats))
            self._take(renewed, work)
        if self._beats_of:
            held = set().union(*self._beats_of.values())
            named |= held
            await reading.driver.execute(RENEW_EXECUTORS, reading.partition, work.now, list(self._beats_of))
            self._take(await reading.driver.fetch(READ_LEASES, list(held)), work)
        unknown = [
            run_id for run_id in named if (lease := work.leases.known.get(run_id)) is None or not self._is_held(lease)
        ]
        if unknown:
            for row in await reading.driver.fetch(READ_STANDINGS, unknown):
                work.leases.standings[row["id"]] = standing_from(row)

    def _is_held(self, lease: LeaseRecord) -> bool:
        if lease.executor is not None:
            return lease.run_id in self._beats_of.get(lease.executor, ())
        return (lease.run_id, lease.state_id) in self._beats or (lease.run_id, None) in self._beats

    @staticmethod
    async def _end(reading: Reading, work: UnitOfWork) -> None:
        rows = await reading.driver.fetch(READ_EXECUTORS, reading.partition)
        work.leases.executors = {id_of_executor(row["name"], reading.partition): row["ends"] for row in rows}
        ended = [row["name"] for row in rows if row["ends"] <= work.now]
        if ended:
            await reading.driver.execute(END_EXECUTORS, reading.partition, ended)

    @staticmethod
    def _take(rows: Iterable[Record], work: UnitOfWork) -> None:
        for row in rows:
            work.leases.known[row["run_id"]] = LeaseRecord(*row)

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        if not work.leases.changed:
            return
        changed = sorted(work.leases.changed.items())
        yield LEASES_ENDED, [(run_id,) for run_id, lease in changed if lease is None]
        begun = [lease for _, lease in changed if lease is not None]
        yield LEASES_BEGUN, begun
        executors = {lease.executor: (lease.executor, lease.seconds, lease.ends) for lease in begun if lease.executor}
        yield EXECUTORS_SEEN, [executors[name] for name in sorted(executors)]


def standing_from(row: Record) -> Standing:
    """Return what the run of a row of READ_STANDINGS is in."""
    if row["type"] is None:
        return Standing(None, None, None, None)
    executor = StateDetails.model_validate_json(row["details"]).executor
    return Standing(StateType(row["type"]), row["name"], row["message"], executor)
