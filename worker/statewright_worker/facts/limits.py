"""Limits: how many runs may hold a slot of each, and which runs do; of rates, what is used of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from asyncpg import Record

from statewright.limits import LimitName, LimitScope
from statewright.messages import Propose
from statewright.runs import RunKind
from statewright.states import StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.records import AnyRunRecord, LimitRecord, NameOfLimit, limits_on_tags
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, columns_of, delete, insert, update

SLOT_COLUMNS: Final[Columns] = (("limit_id", "bigint"), ("run_id", "uuid"))
LIMIT_COLUMNS: Final[Columns] = (
    ("id", "bigint"),
    ("scope", "text"),
    ("key", "text"),
    ("concurrency_limit", "integer"),
    ("period", "interval"),
    ("used_until", "timestamptz"),
    ("lease_seconds", "double precision"),
)

SLOTS_RELEASED: Final = delete("concurrency_slot", SLOT_COLUMNS)
SLOTS_TAKEN: Final = insert("concurrency_slot", SLOT_COLUMNS, taken="now")
LIMITS_SET: Final = insert(
    "concurrency_limit",
    LIMIT_COLUMNS,
    otherwise="""
        ON CONFLICT (id) DO UPDATE SET concurrency_limit = excluded.concurrency_limit, period = excluded.period,
        used_until = excluded.used_until, lease_seconds = excluded.lease_seconds
    """,
)
RATES_USED: Final = update("concurrency_limit", (("id", "bigint"), ("used_until", "timestamptz")))
LIMITS_REMOVED: Final = delete("concurrency_limit", (("id", "bigint"),))

# One statement locks all limits that a batch uses or sets, by id. Every transaction locks limits in this order, and
# behind runs, so that two of them do not deadlock.
LOCK_LIMITS: Final = """
    SELECT named.id, scope, key, named.concurrency_limit, named.period, named.used_until, named.lease_seconds
    FROM unnest($1::text[], $2::text[]) AS wanted (scope, key) JOIN concurrency_limit AS named USING (scope, key)
    ORDER BY named.id FOR UPDATE OF named
"""
# Not part of LOCK_LIMITS: only a later statement sees what the transaction committed that held the locks before.
READ_SLOTS: Final = """
    SELECT limit_id, count(*) AS held,
        array_agg(run_id) FILTER (WHERE run_id = ANY ($2) OR limit_id = ANY ($3)) AS holders
    FROM concurrency_slot WHERE limit_id = ANY ($1) GROUP BY limit_id
"""
# Nobody else creates the limit meanwhile, because one partition administers it.
RESERVE_IDS: Final = """
    SELECT scope, key, nextval(pg_get_serial_sequence('concurrency_limit', 'id')) AS id
    FROM unnest($1::text[], $2::text[]) AS wanted (scope, key)
"""


class Limits(Subject):
    """The limits that a batch's rules may ask about, and those that are read or set."""

    FORETOLD = frozenset({Fact.LIMITS, Fact.SLOTS})

    def __init__(self) -> None:
        self.read: set[LimitName] = set()
        """Limits that are loaded with all runs that hold their slots."""
        self.to_set: set[LimitName] = set()
        """Those of `read` that will be set, and so need an id if they do not exist yet."""
        self._created: list[tuple[RunKind, UUID, Sequence[str], Sequence[NameOfLimit]]] = []
        self._proposed: defaultdict[tuple[Fact, RunKind], set[UUID]] = defaultdict(set)
        """Runs whose limits are loaded whatever state the run is in."""
        self._types: defaultdict[tuple[Fact, RunKind], set[StateType | None]] = defaultdict(set)
        """The limits of other runs are loaded when the run is in one of these types."""

    def foretell(self, proposal: Propose, need: Need) -> None:
        which = need.fact, need.kind
        if need.from_types is ALL_ORCHESTRATION_STATES:
            self._proposed[which].add(proposal.run_id)
        else:
            self._types[which].update(need.from_types)

    def created(self, kind: RunKind, run_id: UUID, tags: Sequence[str], names: Sequence[NameOfLimit]) -> None:
        """Take note of a run that this batch creates, with its tags and the names of the limits that it asks for: a
        later request of the batch may propose a state for it."""
        if tags or names:
            self._created.append((kind, run_id, tags, names))

    async def load(self, reading: Reading, work: UnitOfWork) -> None:
        names = self._names(work)
        if not names:
            return
        limits: dict[int, LimitRecord] = {}
        for row in await reading.driver.fetch(LOCK_LIMITS, *columns_of(names)):
            limits[row["id"]] = limit_from(row, work.now)
        if limits:
            complete = [limit.id for limit in limits.values() if limit.name in self.read]
            for row in await reading.driver.fetch(READ_SLOTS, list(limits), list(work.runs), complete):
                limits[row["limit_id"]].slots_held = row["held"]
                limits[row["limit_id"]].holders = set(row["holders"] or ())
            work.limits = {limit.name: limit for limit in limits.values()}
        if new := self.to_set - work.limits.keys():
            for row in await reading.driver.fetch(RESERVE_IDS, *columns_of(new)):
                work.limit_ids[LimitName(LimitScope(row["scope"]), row["key"])] = row["id"]

    def _names(self, work: UnitOfWork) -> set[NameOfLimit]:
        names: set[NameOfLimit] = set(self.read)
        for kind in RunKind:
            for run in self._asked_about(work, Fact.SLOTS, kind):
                names.update(run.limit_names())
            for run in self._asked_about(work, Fact.LIMITS, kind):
                names.update(limits_on_tags(run.tags))
        for kind, run_id, tags, its_names in self._created:
            if run_id in self._proposed[Fact.SLOTS, kind]:
                names.update(its_names)
            if run_id in self._proposed[Fact.LIMITS, kind]:
                names.update(limits_on_tags(tags))
        return names

    def _asked_about(self, work: UnitOfWork, fact: Fact, kind: RunKind) -> Iterator[AnyRunRecord]:
        types, proposed = self._types[fact, kind], self._proposed[fact, kind]
        if types or proposed:
            for run in work.runs.values():
                if run.kind is kind and (run.state_type in types or run.id in proposed):
                    yield run

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        yield SLOTS_RELEASED, sorted(work.slots_released)
        yield SLOTS_TAKEN, sorted(work.slots_taken)
        yield LIMITS_SET, [limit_values(limit, work.now) for limit in work.limits_set.values()]
        # The row of a limit that was set says what is used of it already, and a removed one has no row any more.
        used = work.rates_used.keys() - work.limits_set.keys() - work.limits_removed
        yield RATES_USED, [(limit_id, used_until(work.rates_used[limit_id], work.now)) for limit_id in sorted(used)]
        yield LIMITS_REMOVED, [(limit_id,) for limit_id in sorted(work.limits_removed)]


def limit_from(row: Record, now: datetime) -> LimitRecord:
    """Return the limit of a row of LOCK_LIMITS as it is at `now`, without its slots."""
    until = row["used_until"]
    return LimitRecord(
        row["id"],
        LimitScope(row["scope"]),
        row["key"],
        row["concurrency_limit"],
        period=row["period"],
        used=timedelta() if until is None else max(until - now, timedelta()),
        lease_seconds=row["lease_seconds"],
    )


def limit_values(limit: LimitRecord, now: datetime) -> Row:
    """Return the limit's row, in the order of LIMIT_COLUMNS."""
    terms = limit.concurrency_limit, limit.period, used_until(limit, now), limit.lease_seconds
    return (limit.id, limit.scope, limit.key, *terms)


def used_until(limit: LimitRecord, now: datetime) -> datetime | None:
    """Return when all slots of a rate are free again, None for a limit whose slots are held."""
    return None if limit.period is None else now + limit.used
