"""Limits: how many runs with a tag may be RUNNING, and who holds their slots."""

from collections.abc import Iterator, Sequence
from typing import Final
from uuid import UUID

from statewright.messages import Propose
from statewright.runs import RunKind
from statewright.states import StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.records import LimitRecord
from statewright_worker.orchestration.rules.base import ALL_ORCHESTRATION_STATES
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, delete, insert

SLOT_COLUMNS: Final[Columns] = (("limit_id", "bigint"), ("run_id", "uuid"))
LIMIT_COLUMNS: Final[Columns] = (("id", "bigint"), ("tag", "text"), ("concurrency_limit", "integer"))

SLOTS_RELEASED: Final = delete("concurrency_slot", SLOT_COLUMNS)
SLOTS_TAKEN: Final = insert("concurrency_slot", SLOT_COLUMNS, taken="now")
LIMITS_SET: Final = insert(
    "concurrency_limit",
    LIMIT_COLUMNS,
    otherwise="ON CONFLICT (id) DO UPDATE SET concurrency_limit = excluded.concurrency_limit",
)
LIMITS_REMOVED: Final = delete("concurrency_limit", (("id", "bigint"),))

# All that a batch uses or sets are locked together, by id: whoever locks limits does it in this order, behind runs.
LOCK_LIMITS: Final = (
    "SELECT id, tag, concurrency_limit FROM concurrency_limit WHERE tag = ANY ($1) ORDER BY id FOR UPDATE"
)
# A statement of its own, so that it sees what the previous holder of the locks has committed.
READ_SLOTS: Final = """
    SELECT limit_id, count(*) AS held,
        array_agg(run_id) FILTER (WHERE run_id = ANY ($2) OR limit_id = ANY ($3)) AS holders
    FROM concurrency_slot WHERE limit_id = ANY ($1) GROUP BY limit_id
"""
# A tag's limit is administered by one partition, so nobody else makes it meanwhile.
RESERVE_IDS: Final = """
    SELECT tag, nextval(pg_get_serial_sequence('concurrency_limit', 'id')) AS id FROM unnest($1::text[]) AS tag
"""


class Limits(Subject):
    """The limits on the tags of the runs that a batch's rules may ask about, and those that are read or set."""

    FORETOLD = Fact.LIMITS

    def __init__(self) -> None:
        self.read: set[str] = set()
        """Tags whose limits are loaded with all who hold their slots."""
        self.set: set[str] = set()
        """Tags of these that are to have a limit, and may have none yet."""
        self._created: list[tuple[RunKind, UUID, Sequence[str]]] = []
        self._proposed: dict[RunKind, set[UUID]] = {kind: set() for kind in RunKind}
        """Runs whose limits are asked for whatever they are in."""
        self._types: dict[RunKind, set[StateType | None]] = {kind: set() for kind in RunKind}
        """Types in which runs' limits are asked for."""

    def foretell(self, proposal: Propose, need: Need) -> None:
        if need.from_types is ALL_ORCHESTRATION_STATES:
            self._proposed[need.kind].add(proposal.run_id)
        else:
            self._types[need.kind].update(need.from_types)

    def created(self, kind: RunKind, run_id: UUID, tags: Sequence[str]) -> None:
        """Take note of a run that is made by the batch itself, which may propose something for it too."""
        if tags:
            self._created.append((kind, run_id, tags))

    async def load(self, reading: Reading, work: UnitOfWork) -> None:
        tags = self._tags(work)
        if tags:
            limits = {
                row["id"]: LimitRecord(row["id"], row["tag"], row["concurrency_limit"])
                for row in await reading.driver.fetch(LOCK_LIMITS, sorted(tags))
            }
            if limits:
                complete = [limit.id for limit in limits.values() if limit.tag in self.read]
                for row in await reading.driver.fetch(READ_SLOTS, list(limits), list(work.runs), complete):
                    limits[row["limit_id"]].slots_held = row["held"]
                    limits[row["limit_id"]].holders = set(row["holders"] or ())
                work.limits = {limit.tag: limit for limit in limits.values()}
            if new := self.set - work.limits.keys():
                for row in await reading.driver.fetch(RESERVE_IDS, sorted(new)):
                    work.limit_ids[row["tag"]] = row["id"]

    def _tags(self, work: UnitOfWork) -> set[str]:
        tags = set(self.read)
        for run in work.runs.values():
            if run.tags and (run.state_type in self._types[run.kind] or run.id in self._proposed[run.kind]):
                tags.update(run.tags)
        for kind, run_id, its_tags in self._created:
            if run_id in self._proposed[kind]:
                tags.update(its_tags)
        return tags

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        yield SLOTS_RELEASED, sorted(work.slots_released)
        yield SLOTS_TAKEN, sorted(work.slots_taken)
        set_limits = work.limits_set.values()
        yield LIMITS_SET, [(limit.id, limit.tag, limit.concurrency_limit) for limit in set_limits]
        yield LIMITS_REMOVED, [(limit_id,) for limit_id in sorted(work.limits_removed)]
