"""Limits: how many runs may hold a slot of each, and which runs do; of rates, what is used of them."""

from collections import defaultdict
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from asyncpg import Connection, Record

from statewright.limits import LimitName, LimitScope, SlotHolder, Waiter
from statewright.protocol.requests import Propose
from statewright.runs import RunKind
from statewright.states import StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.records import (
    QUEUE_LOADED,
    LimitRecord,
    NameOfLimit,
    Queued,
    limits_on_tags,
)
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES
from statewright_worker.orchestration.unit_of_work import HOLDERS_TOLD, LimitPage, UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, columns_of, delete, insert, update

LIMITS_PER_PAGE: Final = 100
WAITERS_TOLD: Final = 100

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
# Of the queue it reads as many as may get a slot in this batch, if all holders among its runs leave, and one more.
READ_SLOTS: Final = """
    SELECT wanted.limit_id, slots.held, slots.holders, queue.proposals, queue.partitions, queue.priorities,
        queue.tickets
    FROM unnest($1::bigint[], $4::integer[]) AS wanted (limit_id, most)
    CROSS JOIN LATERAL (
        SELECT count(*) AS held,
            array_agg(run_id) FILTER (WHERE run_id = ANY ($2) OR limit_id = ANY ($3)) AS holders
        FROM concurrency_slot WHERE limit_id = wanted.limit_id
    ) AS slots
    CROSS JOIN LATERAL (
        SELECT array_agg(proposal_id) AS proposals, array_agg(partition) AS partitions,
            array_agg(priority) AS priorities, array_agg(ticket) AS tickets
        FROM (
            SELECT proposal_id, partition, priority, ticket FROM waiter WHERE limit_id = wanted.limit_id
            ORDER BY priority DESC, ticket
            LIMIT least(greatest(wanted.most - slots.held, 0) + coalesce(cardinality(slots.holders), 0) + 1, $5)
        ) AS first
    ) AS queue
"""
# Whoever waits for a limit that is removed waits for it no longer.
CALL_WAITERS: Final = """
    WITH called AS (
        INSERT INTO timer (kind, id, partition, due)
        SELECT 'parked', proposal_id, partition, $2 FROM waiter WHERE limit_id = ANY ($1) ORDER BY proposal_id
        ON CONFLICT (kind, id) DO UPDATE SET due = least(timer.due, excluded.due) RETURNING partition
    )
    SELECT DISTINCT partition FROM called
"""
_NAMED_RUN: Final = """
    SELECT 'flow-run' AS kind, name FROM flow_run WHERE id = {run}
    UNION ALL SELECT 'task-run', name FROM task_run WHERE id = {run}
"""
READ_HOLDERS: Final = f"""
    SELECT wanted.limit_id, slot.run_id, slot.taken, run.kind, run.name, coalesce(executor.ends, lease.ends) AS ends
    FROM unnest($1::bigint[]) AS wanted (limit_id)
    CROSS JOIN LATERAL (
        SELECT run_id, taken FROM concurrency_slot WHERE limit_id = wanted.limit_id ORDER BY taken, run_id LIMIT $2
    ) AS slot
    CROSS JOIN LATERAL ({_NAMED_RUN.format(run="slot.run_id")}) AS run
    LEFT JOIN lease ON lease.run_id = slot.run_id
    LEFT JOIN executor ON executor.partition = lease.partition AND executor.name = lease.executor
    ORDER BY slot.taken, slot.run_id
"""
READ_WAITERS: Final = f"""
    SELECT wanted.limit_id, waiter.proposal_id, waiter.run_id, waiter.priority, waiter.since, run.name, queue.waiting
    FROM unnest($1::bigint[]) AS wanted (limit_id)
    CROSS JOIN LATERAL (SELECT count(*) AS waiting FROM waiter WHERE limit_id = wanted.limit_id) AS queue
    CROSS JOIN LATERAL (
        SELECT proposal_id, run_id, priority, ticket, since FROM waiter WHERE limit_id = wanted.limit_id
        ORDER BY priority DESC, ticket LIMIT $2
    ) AS waiter
    CROSS JOIN LATERAL ({_NAMED_RUN.format(run="waiter.run_id")}) AS run
    ORDER BY waiter.priority DESC, waiter.ticket
"""
LIST_LIMITS: Final = """
    SELECT listed.*, (SELECT count(*) FROM concurrency_slot WHERE limit_id = listed.id) AS held,
        (SELECT count(*) FROM waiter WHERE limit_id = listed.id) AS waiting
    FROM (SELECT * FROM concurrency_limit WHERE id > $1 ORDER BY id LIMIT $2) AS listed ORDER BY listed.id
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
        """Limits that are told, with the first of those that hold their slots or wait for them."""
        self.also: set[NameOfLimit] = set()
        """Limits that are loaded because parked proposals stand in their queues."""
        self.to_set: dict[NameOfLimit, list[int]] = {}
        """Those of `read` that will be set, and so need an id if they do not exist yet, each with its new numbers."""
        self.to_remove: set[LimitName] = set()
        """Those of `read` that will be removed."""
        self.of_runs: set[UUID] = set()
        """Runs whose limits are loaded, whatever they are in."""
        self.pages: set[int] = set()
        """Places; a page of all limits is read behind each."""
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

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        names = self._names(work)
        return self._load(reading, work, names) if names or self.pages else None

    async def _load(self, reading: Reading, work: UnitOfWork, names: set[NameOfLimit]) -> None:
        for after in self.pages:
            found = await reading.driver.fetch(LIST_LIMITS, after, LIMITS_PER_PAGE + 1)
            page = [_listed(row, work.now) for row in found[:LIMITS_PER_PAGE]]
            work.limit_pages[after] = LimitPage(page, page[-1].id if len(found) > LIMITS_PER_PAGE else None)
        if names:
            await self._load_limits(reading, work, names)

    async def _load_limits(self, reading: Reading, work: UnitOfWork, names: set[NameOfLimit]) -> None:
        limits: dict[int, LimitRecord] = {}
        for row in await reading.driver.fetch(LOCK_LIMITS, *columns_of(names)):
            limits[row["id"]] = limit_from(row, work.now)
        if limits:
            # A limit that is removed takes its slots with it, unless its row stays, because it is set again.
            emptied = self.to_remove & self.to_set.keys()
            complete = [limit.id for limit in limits.values() if limit.name in emptied]
            most = [self._loaded_of_queue(limit, work) for limit in limits.values()]
            asked = (list(limits), list(work.runs), complete, most, QUEUE_LOADED)
            for row in await reading.driver.fetch(READ_SLOTS, *asked):
                limit = limits[row["limit_id"]]
                limit.slots_held = row["held"]
                limit.holders = set(row["holders"] or ())
                if row["proposals"] is not None:
                    queue = row["proposals"], row["partitions"], row["priorities"], row["tickets"]
                    limit.queue = list(map(Queued, *queue))
                    limit.is_cut = len(limit.queue) == QUEUE_LOADED
            work.limits.update((limit.name, limit) for limit in limits.values())
            if removed := [limit.id for limit in limits.values() if limit.name in self.to_remove]:
                called = await reading.driver.fetch(CALL_WAITERS, removed, work.now)
                work.waiting.partitions_called.update(row["partition"] for row in called)
            if told := [limit.id for limit in limits.values() if limit.name in self.read]:
                await _load_told(reading.driver, limits, told)
        if new := self.to_set.keys() - work.limits.keys():
            for row in await reading.driver.fetch(RESERVE_IDS, *columns_of(new)):
                work.limit_ids[LimitName(LimitScope(row["scope"]), row["key"])] = row["id"]

    def _loaded_of_queue(self, limit: LimitRecord, work: UnitOfWork) -> int:
        """Return how many slots may become free, and how many waiters may leave the queue without taking one."""
        slots = [limit.concurrency_limit, *self.to_set.get(limit.name, ())]
        # A limit of 0 turns everybody away.
        return QUEUE_LOADED if 0 in slots else max(slots) + len(work.waiting.parked)

    def _names(self, work: UnitOfWork) -> set[NameOfLimit]:
        names: set[NameOfLimit] = {*self.read, *self.also}
        for which in self._types.keys() | self._proposed.keys():
            fact, kind = which
            types, proposed = self._types[which], self._proposed[which]
            for run in work.runs.values():
                if run.kind is kind and (run.state_type in types or run.id in proposed):
                    names.update(run.limit_names() if fact is Fact.SLOTS else limits_on_tags(run.tags))
        for run_id in self.of_runs & work.runs.keys():
            names.update(work.runs[run_id].limit_names())
        for kind, run_id, tags, its_names in self._created:
            if run_id in self._proposed[Fact.SLOTS, kind]:
                names.update(its_names)
            if run_id in self._proposed[Fact.LIMITS, kind]:
                names.update(limits_on_tags(tags))
        return names

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        return _parts(work) if work.limits or work.limits_removed else ()


def _parts(work: UnitOfWork) -> Iterator[tuple[Part, Sequence[Row]]]:
    yield SLOTS_RELEASED, sorted(work.slots_released)
    yield SLOTS_TAKEN, sorted(work.slots_taken)
    yield LIMITS_SET, [limit_values(limit, work.now) for limit in work.limits_set.values()]
    # The row of a limit that was set says what is used of it already, and a removed one has no row any more.
    used = work.rates_used.keys() - work.limits_set.keys() - work.limits_removed
    yield RATES_USED, [(limit_id, used_until(work.rates_used[limit_id], work.now)) for limit_id in sorted(used)]
    yield LIMITS_REMOVED, [(limit_id,) for limit_id in sorted(work.limits_removed)]


async def _load_told(driver: Connection, limits: dict[int, LimitRecord], told: list[int]) -> None:
    """Load who holds slots of these limits, and who waits for them, to tell it."""
    holders: defaultdict[int, list[SlotHolder]] = defaultdict(list)
    for row in await driver.fetch(READ_HOLDERS, told, HOLDERS_TOLD):
        holders[row["limit_id"]].append(holder_from(row))
    waiters: defaultdict[int, list[Waiter]] = defaultdict(list)
    for row in await driver.fetch(READ_WAITERS, told, WAITERS_TOLD):
        limits[row["limit_id"]].waiting = row["waiting"]
        waiters[row["limit_id"]].append(
            Waiter(
                proposal_id=row["proposal_id"],
                run_id=row["run_id"],
                name=row["name"],
                priority=row["priority"],
                since=row["since"],
            )
        )
    for limit_id in told:
        limits[limit_id].shown = tuple(holders[limit_id])
        limits[limit_id].waiters = tuple(waiters[limit_id])


def holder_from(row: Record) -> SlotHolder:
    """Return the holder of a row of READ_HOLDERS."""
    return SlotHolder(
        run_id=row["run_id"], kind=RunKind(row["kind"]), name=row["name"], since=row["taken"], lease_ends=row["ends"]
    )


def _listed(row: Record, now: datetime) -> LimitRecord:
    limit = limit_from(row, now)
    limit.slots_held, limit.waiting = row["held"], row["waiting"]
    return limit


def limit_from(row: Record, now: datetime) -> LimitRecord:
    """Return the limit of a row of LOCK_LIMITS or LIST_LIMITS as it is at `now`, without its holders."""
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
