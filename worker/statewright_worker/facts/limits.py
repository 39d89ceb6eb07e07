"""Limits: how many runs may hold a slot of each limit, and which runs do."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

from statewright.messages import Propose
from statewright.runs import RunKind
from statewright.states import StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.records import LimitName, LimitRecord, LimitScope
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, columns_of, delete, insert

SLOT_COLUMNS: Final[Columns] = (("limit_id", "bigint"), ("run_id", "uuid"))
LIMIT_COLUMNS: Final[Columns] = (
    ("id", "bigint"),
    ("scope", "text"),
    ("key", "text"),
    ("concurrency_limit", "integer"),
)

SLOTS_RELEASED: Final = delete("concurrency_slot", SLOT_COLUMNS)
SLOTS_TAKEN: Final = insert("concurrency_slot", SLOT_COLUMNS, taken="now")
LIMITS_SET: Final = insert(
    "concurrency_limit",
    LIMIT_COLUMNS,
    otherwise="ON CONFLICT (id) DO UPDATE SET concurrency_limit = excluded.concurrency_limit",
)
LIMITS_REMOVED: Final = delete("concurrency_limit", (("id", "bigint"),))

# One statement locks all limits that a batch uses or sets, by id. Every transaction locks limits in this order, and
# behind runs, so that two of them do not deadlock.
LOCK_LIMITS: Final = """
    SELECT named.id, scope, key, named.concurrency_limit
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
    """The limits on the tags of the runs that a batch's rules may ask about, and those that are read or set."""

    FORETOLD = Fact.LIMITS

    def __init__(self) -> None:
        self.read: set[LimitName] = set()
        """Limits that are loaded with all runs that hold their slots."""
        self.also: set[LimitName] = set()
        """Limits that are loaded because parked proposals wait for them."""
        self.to_set: set[LimitName] = set()
        """Those of `read` that will be set, and so need an id if they do not exist yet."""
        self._created: list[tuple[RunKind, UUID, Sequence[str]]] = []
        self._proposed: defaultdict[RunKind, set[UUID]] = defaultdict(set)
        """Runs whose limits are loaded whatever state the run is in."""
        self._types: defaultdict[RunKind, set[StateType | None]] = defaultdict(set)
        """The limits of other runs are loaded when the run is in one of these types."""

    def foretell(self, proposal: Propose, need: Need) -> None:
        if need.from_types is ALL_ORCHESTRATION_STATES:
            self._proposed[need.kind].add(proposal.run_id)
        else:
            self._types[need.kind].update(need.from_types)

    def created(self, kind: RunKind, run_id: UUID, tags: Sequence[str]) -> None:
        """Take note of a run that this batch creates: a later request of the batch may propose a state for it."""
        if tags:
            self._created.append((kind, run_id, tags))

    async def load(self, reading: Reading, work: UnitOfWork) -> None:
        names = self._names(work)
        if not names:
            return
        limits: dict[int, LimitRecord] = {}
        for row in await reading.driver.fetch(LOCK_LIMITS, *columns_of(names)):
            scope = LimitScope(row["scope"])
            limits[row["id"]] = LimitRecord(row["id"], scope, row["key"], row["concurrency_limit"])
        if limits:
            complete = [limit.id for limit in limits.values() if limit.name in self.read]
            for row in await reading.driver.fetch(READ_SLOTS, list(limits), list(work.runs), complete):
                limits[row["limit_id"]].slots_held = row["held"]
                limits[row["limit_id"]].holders = set(row["holders"] or ())
            work.limits = {limit.name: limit for limit in limits.values()}
        if new := self.to_set - work.limits.keys():
            for row in await reading.driver.fetch(RESERVE_IDS, *columns_of(new)):
                work.limit_ids[LimitName(LimitScope(row["scope"]), row["key"])] = row["id"]

    def _names(self, work: UnitOfWork) -> set[LimitName]:
        tags: set[str] = set()
        for run in work.runs.values():
            if run.tags and (run.state_type in self._types[run.kind] or run.id in self._proposed[run.kind]):
                tags.update(run.tags)
        for kind, run_id, its_tags in self._created:
            if run_id in self._proposed[kind]:
                tags.update(its_tags)
        return self.read.union(self.also, [LimitName(LimitScope.TAG, tag) for tag in tags])

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        yield SLOTS_RELEASED, sorted(work.slots_released)
        yield SLOTS_TAKEN, sorted(work.slots_taken)
        set_limits = work.limits_set.values()
        yield LIMITS_SET, [(limit.id, *limit.name, limit.concurrency_limit) for limit in set_limits]
        yield LIMITS_REMOVED, [(limit_id,) for limit_id in sorted(work.limits_removed)]
