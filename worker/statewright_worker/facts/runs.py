"""Runs: a batch locks them, loads them with their states, writes what changed, and appends to their histories."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from asyncpg import Record
from pydantic_core import from_json, to_json

from statewright.protocol.requests import Propose
from statewright.runs import RunPolicy
from statewright.states import StateType
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.states import STATE, STATE_COLUMNS, STORED_STATE, change_values, state_from
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.records import AnyRunRecord, FlowRunRecord, RunRecord, TaskRunRecord
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns, Source, names, selected
from statewright_worker.storage.writing import Part, Row, insert, update

VALUES_REMEMBERED = 4_096
REMEMBERED_LENGTH = 1_024
TAGS_REMEMBERED = 5
"""How many tags a run may have for their JSON to be remembered.

The three bounds keep what is remembered below a few megabytes."""


_BOOKKEEPING: Final[Columns] = (
    ("state_type", "text"),
    ("state_name", "text"),
    ("state_timestamp", "timestamptz"),
    ("state_count", "integer"),
    ("run_count", "integer"),
    ("expected_start_time", "timestamptz"),
    ("next_scheduled_start_time", "timestamptz"),
    ("start_time", "timestamptz"),
    ("end_time", "timestamptz"),
    ("total_run_time", "interval"),
)
_OF_TASK_RUNS: Final[Columns] = (("flow_run_run_count", "integer"),)
_DESCRIPTION: Final[Columns] = (("name", "text"), ("tags", "jsonb"), ("policy", "jsonb"))
"""What hardly any transition changes."""
_FLOW_IDENTITY: Final[Columns] = (
    ("created", "timestamptz"),
    ("flow_id", "uuid"),
    ("deployment_id", "uuid"),
    ("parent_task_run_id", "uuid"),
)
_TASK_IDENTITY: Final[Columns] = (("created", "timestamptz"), ("flow_run_id", "uuid"), ("task_key", "text"))

FLOW_CHANGES: Final[Columns] = (("id", "uuid"), ("state_id", "uuid"), *_BOOKKEEPING)
TASK_CHANGES: Final[Columns] = (*FLOW_CHANGES, *_OF_TASK_RUNS)
FLOW_REDESCRIPTIONS: Final[Columns] = (*FLOW_CHANGES, *_DESCRIPTION)
TASK_REDESCRIPTIONS: Final[Columns] = (*TASK_CHANGES, *_DESCRIPTION)
FLOW_COLUMNS: Final[Columns] = (*FLOW_REDESCRIPTIONS, *_FLOW_IDENTITY)
TASK_COLUMNS: Final[Columns] = (*TASK_REDESCRIPTIONS, *_TASK_IDENTITY)
_LABELS: Final = ("labels", "jsonb")

FLOW_RUNS_CREATED: Final = insert("flow_run", (*FLOW_COLUMNS, _LABELS))
TASK_RUNS_CREATED: Final = insert("task_run", (*TASK_COLUMNS, _LABELS))
FLOW_RUNS_CHANGED: Final = update("flow_run", FLOW_CHANGES)
TASK_RUNS_CHANGED: Final = update("task_run", TASK_CHANGES)
# Instead of the two before, because one statement updates a row only once.
FLOW_RUNS_REDESCRIBED: Final = update("flow_run", FLOW_REDESCRIPTIONS)
TASK_RUNS_REDESCRIBED: Final = update("task_run", TASK_REDESCRIPTIONS)
FLOW_RUN_STATES: Final = insert("flow_run_state", STATE_COLUMNS, partition="partition")
TASK_RUN_STATES: Final = insert("task_run_state", STATE_COLUMNS, partition="partition")


def _locked(table: str, columns: Columns, which: str) -> str:
    """Return the query that locks the runs that match `which`, by id, and selects them with their states."""
    return f"""
        SELECT {selected("run", columns)}, {STATE}
        FROM {table} AS run LEFT JOIN {table}_state AS s ON s.id = run.state_id
        WHERE {which}
        ORDER BY run.id FOR NO KEY UPDATE OF run
    """


_LOADED_STATE: Final[Columns] = tuple((f"s_{name}", kind) for name, kind in STORED_STATE)
_NAMED_FLOW_RUNS: Final = """run.id IN (
    SELECT unnest($2::uuid[]) UNION SELECT flow_run_id FROM task_run WHERE id = ANY ($2)
)"""
_NAMED_TASK_RUNS: Final = """run.id IN (
    SELECT unnest($2::uuid[]) UNION SELECT parent_task_run_id FROM flow_run WHERE id = ANY ($2)
)"""

# Every transaction locks flow runs before task runs, each by id, so that two of them do not deadlock.
FLOW_RUNS: Final = Source("flow", (*FLOW_COLUMNS, *_LOADED_STATE), _locked("flow_run", FLOW_COLUMNS, _NAMED_FLOW_RUNS))
TASK_RUNS: Final = Source("task", (*TASK_COLUMNS, *_LOADED_STATE), _locked("task_run", TASK_COLUMNS, _NAMED_TASK_RUNS))
# Task runs that a flow run sends to their retry can be found only once the flow run is locked. So they may be locked
# behind task runs with greater ids, and a deadlock with a batch of another partition is possible: PostgreSQL ends it,
# and the batch is tried again.
LOCK_FAILED_TASK_RUNS: Final = _locked(
    "task_run", TASK_COLUMNS, "run.flow_run_id = ANY ($1) AND run.state_type = 'FAILED'"
)
LOCK_FLOW_RUNS: Final = _locked("flow_run", FLOW_COLUMNS, "run.id = ANY ($1)")
LOCK_TASK_RUNS: Final = _locked("task_run", TASK_COLUMNS, "run.id = ANY ($1)")
READ_FLOW_STATES: Final = f"SELECT {STATE} FROM flow_run_state AS s WHERE s.id = ANY ($1)"
# Not part of LOAD: few requests ask for labels, and no rule does.
READ_LABELS: Final = """
    SELECT id, labels::text AS labels FROM flow_run WHERE id = ANY ($1)
    UNION ALL SELECT id, labels::text FROM task_run WHERE id = ANY ($1)
"""
READ_TASK_STATES: Final = f"SELECT {STATE} FROM task_run_state AS s WHERE s.id = ANY ($1)"

UNDER_WAY: Final = Source(
    "deleting",
    (("id", "uuid"),),
    "SELECT tree AS id FROM pruned WHERE partition = $1 AND is_left LIMIT 1",
)
"""Whether the deletion of a large tree is under way in the partition: some of its runs are still there."""
READ_GONE: Final = "SELECT run_id, is_left FROM pruned WHERE run_id = ANY ($1)"

Overtaken = dict[UUID, UUID]
"""Runs by the id of their current state."""

_stored_policies: dict[int, tuple[RunPolicy, str]] = {}


class Runs(Subject):
    """The runs that a batch names, and the flow runs and parent task runs to which they belong."""

    FORETOLD = frozenset({Fact.FAILED_TASK_RUNS})

    def __init__(self) -> None:
        self.ids: set[UUID] = set()
        self.new: set[UUID] = set()
        """Those of them that the batch creates, unless they exist."""
        self.labelled: set[UUID] = set()
        """Those of them that are loaded with their labels, if they exist."""
        self._failing: set[UUID] = set()

    def foretell(self, proposal: Propose, need: Need) -> None:
        self._failing.add(proposal.run_id)

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        overtaken = [
            _taken(work, reading.found[FLOW_RUNS.name], flow_run_from),
            _taken(work, reading.found[TASK_RUNS.name], task_run_from),
        ]
        missing = self.ids - work.runs.keys() - self.new
        asks = missing or any(overtaken) or self._failing or self.labelled or reading.found[UNDER_WAY.name]
        return self._load(reading, work, overtaken, missing) if asks else None

    async def _load(
        self, reading: Reading, work: UnitOfWork, overtaken: Sequence[Overtaken], missing: set[UUID]
    ) -> None:
        for read_states, states in zip((READ_FLOW_STATES, READ_TASK_STATES), overtaken, strict=True):
            await _catch_up(reading, work, states, read_states)
        if self._failing:
            failed = await reading.driver.fetch(LOCK_FAILED_TASK_RUNS, list(self._failing))
            await _take(reading, work, failed, task_run_from, READ_TASK_STATES)
        if missing:
            rows = await reading.driver.fetch(READ_GONE, list(missing))
            work.deleting.gone.update(row["run_id"] for row in rows)
        await hide_deleted(reading, work)
        if labelled := self.labelled & work.runs.keys():
            for row in await reading.driver.fetch(READ_LABELS, list(labelled)):
                work.labels[row["id"]] = from_json(row["labels"])

    def parts(self, work: UnitOfWork, sequence: int) -> Iterator[tuple[Part, Sequence[Row]]]:
        created = work.created_runs
        changed = [run for run_id, run in work.changed_runs.items() if run_id not in created]
        numbered = list(enumerate(work.state_changes, sequence + 1))
        if created:
            yield FLOW_RUNS_CREATED, _created_values(work, FlowRunRecord)
            yield TASK_RUNS_CREATED, _created_values(work, TaskRunRecord)
        if work.redescribed_runs:
            redescribed = [run for run in changed if run.id in work.redescribed_runs]
            changed = [run for run in changed if run.id not in work.redescribed_runs]
            yield FLOW_RUNS_REDESCRIBED, _redescribed_values(redescribed, FlowRunRecord)
            yield TASK_RUNS_REDESCRIBED, _redescribed_values(redescribed, TaskRunRecord)
        yield FLOW_RUNS_CHANGED, _changed_values(changed, FlowRunRecord)
        yield TASK_RUNS_CHANGED, _changed_values(changed, TaskRunRecord)
        for part, kind in ((FLOW_RUN_STATES, FlowRunRecord), (TASK_RUN_STATES, TaskRunRecord)):
            yield part, [change_values(change, number) for number, change in numbered if isinstance(change.run, kind)]


async def lock_runs(reading: Reading, work: UnitOfWork, run_ids: Sequence[UUID]) -> None:
    """Load more runs, found once those that the batch names are locked; so they are locked as LOCK_FAILED_TASK_RUNS."""
    new = [run_id for run_id in run_ids if run_id not in work.runs]
    if new:
        await _take(reading, work, await reading.driver.fetch(LOCK_FLOW_RUNS, new), flow_run_from, READ_FLOW_STATES)
        await _take(reading, work, await reading.driver.fetch(LOCK_TASK_RUNS, new), task_run_from, READ_TASK_STATES)


async def hide_deleted(reading: Reading, work: UnitOfWork) -> None:
    """Let nobody see runs of large trees whose deletion is under way."""
    if reading.found[UNDER_WAY.name]:
        for row in await reading.driver.fetch(READ_GONE, list(work.runs)):
            if row["is_left"]:
                del work.runs[row["run_id"]]
                work.deleting.gone.add(row["run_id"])
                work.deleting.hidden.add(row["run_id"])


async def _take(
    reading: Reading,
    work: UnitOfWork,
    locked: Sequence[Record],
    run_from: Callable[[Record], AnyRunRecord],
    read_states: str,
) -> None:
    await _catch_up(reading, work, _taken(work, locked, run_from), read_states)


def _taken(work: UnitOfWork, locked: Sequence[Record], run_from: Callable[[Record], AnyRunRecord]) -> Overtaken:
    """Take the runs, and return those whose state is not the one that was read with them.

    A query that waited for a run's lock gets the newest version of the run, but joins it to the state it had before.
    """
    for row in locked:
        work.runs[row["id"]] = run_from(row)
    return {row["state_id"]: row["id"] for row in locked if row["state_id"] != row["s_id"]}


async def _catch_up(reading: Reading, work: UnitOfWork, overtaken: Overtaken, read_states: str) -> None:
    if overtaken:
        for row in await reading.driver.fetch(read_states, list(overtaken)):
            work.runs[overtaken[row["s_id"]]].state = state_from(row)


def flow_run_from(row: Record) -> FlowRunRecord:
    """Return the flow run of a row of FLOW_RUNS."""
    return FlowRunRecord(
        **_shared(row),
        flow_id=row["flow_id"],
        deployment_id=row["deployment_id"],
        parent_task_run_id=row["parent_task_run_id"],
    )


def task_run_from(row: Record) -> TaskRunRecord:
    """Return the task run of a row of TASK_RUNS or LOCK_FAILED_TASK_RUNS."""
    return TaskRunRecord(
        **_shared(row),
        flow_run_id=row["flow_run_id"],
        task_key=row["task_key"],
        flow_run_run_count=row["flow_run_run_count"],
    )


def _changed_values(runs: Iterable[AnyRunRecord], kind: type[AnyRunRecord]) -> list[Row]:
    """Return the rows of those of the runs that are of the kind, in the order of its CHANGES."""
    bookkeeping = _bookkeeping_of[kind]
    return [
        (run.id, None if run.state is None else run.state.id, *bookkeeping(run))
        for run in runs
        if isinstance(run, kind)
    ]


def _redescribed_values(runs: Iterable[AnyRunRecord], kind: type[AnyRunRecord]) -> list[Row]:
    found = [run for run in runs if isinstance(run, kind)]
    changes = _changed_values(found, kind)
    return [(*change, *_description(run)) for change, run in zip(changes, found, strict=True)]


def _created_values(work: UnitOfWork, kind: type[AnyRunRecord]) -> list[Row]:
    found = [run for run in work.created_runs.values() if isinstance(run, kind)]
    identity = _identity_of[kind]
    return [
        (*values, *identity(run), _stored_labels(work.labels[run.id]))
        for values, run in zip(_redescribed_values(found, kind), found, strict=True)
    ]


def _description(run: RunRecord) -> Row:
    return run.name, _stored_tags(run.tags), _stored_policy(run.policy)


_bookkeeping_of: Final[dict[type[AnyRunRecord], Callable[[AnyRunRecord], Row]]] = {
    FlowRunRecord: attrgetter(*names(_BOOKKEEPING)),
    TaskRunRecord: attrgetter(*names(_BOOKKEEPING), *names(_OF_TASK_RUNS)),
}
_identity_of: Final[dict[type[AnyRunRecord], Callable[[AnyRunRecord], Row]]] = {
    FlowRunRecord: attrgetter(*names(_FLOW_IDENTITY)),
    TaskRunRecord: attrgetter(*names(_TASK_IDENTITY)),
}


def _stored_labels(labels: dict[str, str]) -> str:
    return to_json(labels).decode() if labels else "{}"


def _shared(row: Record) -> dict[str, Any]:
    state_type = row["state_type"]
    return {
        "id": row["id"],
        "name": row["name"],
        "created": row["created"],
        "tags": tags_from(row["tags"]),
        "policy": _policy(row["policy"]),
        "state": state_from(row),
        "state_count": row["state_count"],
        "state_type": None if state_type is None else StateType(state_type),
        "state_name": row["state_name"],
        "state_timestamp": row["state_timestamp"],
        "run_count": row["run_count"],
        "expected_start_time": row["expected_start_time"],
        "next_scheduled_start_time": row["next_scheduled_start_time"],
        "start_time": row["start_time"],
        "end_time": row["end_time"],
        "total_run_time": row["total_run_time"],
    }


def tags_from(stored: str) -> tuple[str, ...]:
    """Return the tags that are stored as JSON."""
    return (_remembered_tags if len(stored) <= REMEMBERED_LENGTH else _decoded_tags)(stored)


def _decoded_tags(stored: str) -> tuple[str, ...]:
    return tuple(from_json(stored))


def _policy(stored: str) -> RunPolicy:
    return (_remembered_policy if len(stored) <= REMEMBERED_LENGTH else RunPolicy.model_validate_json)(stored)


_remembered_tags = lru_cache(maxsize=VALUES_REMEMBERED)(_decoded_tags)
_remembered_policy = lru_cache(maxsize=VALUES_REMEMBERED)(RunPolicy.model_validate_json)


def _stored_policy(policy: RunPolicy) -> str:
    # Found by identity, because hashing and comparing a policy costs more than the rest of its run's row.
    known = _stored_policies.get(id(policy))
    if known is not None and known[0] is policy:
        return known[1]
    stored = policy.model_dump_json(exclude_defaults=True)
    if len(stored) <= REMEMBERED_LENGTH:
        if len(_stored_policies) >= VALUES_REMEMBERED:
            _stored_policies.clear()
        _stored_policies[id(policy)] = policy, stored
    return stored


@lru_cache(maxsize=VALUES_REMEMBERED)
def _few_tags(tags: tuple[str, ...]) -> str:
    return to_json(tags).decode()


def _stored_tags(tags: tuple[str, ...]) -> str:
    return _few_tags(tags) if len(tags) <= TAGS_REMEMBERED else to_json(tags).decode()
