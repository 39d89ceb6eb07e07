"""The hot path: as many statements for a large batch as for a small one, each by the index that it should use."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from statewright import ProposedState, State
from statewright.ids import IdSource
from statewright.limits import LimitName, LimitScope
from statewright.protocol.requests import CreateFlowRun, CreateTaskRun, Propose, ReadRun, Request, UpdateRun
from statewright_worker.facts import (
    batch,
    cache,
    changes,
    deletions,
    explained,
    histories,
    inquiries,
    leases,
    ledger,
    limits,
    old_trees,
    parked,
    runs,
    subscriptions,
    timelines,
    timers,
)
from statewright_worker.facts.batch import Asked, Batch
from statewright_worker.orchestration import Engine, Proposal
from statewright_worker.orchestration.records import FlowRunRecord, TaskRunRecord
from statewright_worker.requests.answering import answer, asked_by
from statewright_worker.requests.base import InBatch, Incoming
from statewright_worker.storage import database, statements
from statewright_worker.storage.transactions import Fence, Storage
from statewright_worker.storage.writing import Part, write
from statewright_worker.streams.proposals import Entry
from tests.deployment import Deployment

ids = IdSource()
ROWS = 100_000
FIRST_VERSION_WITH_GENERIC_PLANS = 160_000

FILL = """
    INSERT INTO flow_run (id, name, created, tags, policy) SELECT gen_random_uuid(), 'f', now(), '[]', '{}'
        FROM generate_series(1, 100000);
    INSERT INTO task_run (id, name, created, tags, policy, flow_run_id)
        SELECT gen_random_uuid(), 't', now(), '[]', '{}', id FROM flow_run;
    INSERT INTO task_run_state
            (id, run_id, ordinal, type, name, timestamp, state_details, run_count, partition, sequence)
        SELECT gen_random_uuid(), id, 1, 'RUNNING', 'Running', now(), '{}', 1, 0, row_number() OVER () FROM task_run;
    INSERT INTO flow_run_state
            (id, run_id, ordinal, type, name, timestamp, state_details, run_count, partition, sequence)
        SELECT gen_random_uuid(), id, 1, 'RUNNING', 'Running', now(), '{}', 1, 1, row_number() OVER () FROM flow_run;
    INSERT INTO verdict (proposal_id, run_id, status, state_id, rule_signature, finalization_signature, decided)
        SELECT gen_random_uuid(), run_id, 'ACCEPT', id, '', '', now() FROM task_run_state;
    UPDATE task_run_state SET proposal_id = proposal.proposal_id
        FROM verdict AS proposal WHERE proposal.state_id = task_run_state.id;
    INSERT INTO pruned (run_id, tree, partition, pruned, is_left)
        SELECT gen_random_uuid(), id, 0, now(), false FROM task_run;
    INSERT INTO answer (request_id, digest, reply, answered, run_id)
        SELECT gen_random_uuid(), 0, '', now(), id FROM task_run;
    INSERT INTO low_water (partition, sequence) SELECT n, n FROM generate_series(0, 1000) AS n;
    INSERT INTO task_run_state_cache (cache_key, task_run_state_id, created)
        SELECT id::text, id, now() FROM task_run_state;
    INSERT INTO concurrency_limit (scope, key, concurrency_limit)
        SELECT 'tag', n::text, 1 FROM generate_series(1, 1000) AS n;
    INSERT INTO concurrency_slot (limit_id, run_id, taken)
        SELECT 1 + row_number() OVER () % 1000, id, now() FROM task_run;
    INSERT INTO parked (proposal_id, partition, run_id, digest, message, entry_id, since, priority, ticket)
        SELECT gen_random_uuid(), 0, id, 0, '', '1-0', now(), 0, row_number() OVER () FROM task_run;
    INSERT INTO waiter (limit_id, proposal_id, run_id, partition, priority, ticket, since)
        SELECT 1 + row_number() OVER () % 1000, proposal_id, run_id, 0, 0, ticket, now() FROM parked;
    INSERT INTO timer (kind, id, partition, due) SELECT 'parked', proposal_id, 0, now() FROM parked;
    INSERT INTO lease (run_id, partition, state_id, seconds, ends, executor)
        SELECT id, 0, id, 30, now(), CASE WHEN row_number() OVER () % 2 = 0 THEN 'e' || row_number() OVER () % 100 END
        FROM task_run;
    INSERT INTO timer (kind, id, partition, due) SELECT 'lease', run_id, 0, ends FROM lease WHERE executor IS NULL;
    INSERT INTO subscription (name, filter, max_tries, created, generation, is_settled)
        SELECT 's' || n, '{}', 5, now(), 0, true FROM generate_series(1, 1000) AS n;
    INSERT INTO subscription_member (subscription, name, instance, joined, seen, seconds)
        SELECT 's' || n, 'm' || m, gen_random_uuid(), now(), now(), 3
        FROM generate_series(1, 1000) AS n, generate_series(1, 100) AS m;
    INSERT INTO subscription_share (subscription, partition, share, position, epoch)
        SELECT 's' || n, p, share, 0, 0
        FROM generate_series(1, 1000) AS n, generate_series(0, 9) AS p, generate_series(0, 9) AS share;
    INSERT INTO subscription_dead_letter (subscription, partition, sequence, share, event_id, error, tries, at)
        SELECT 's' || n, 0, sequence, 0, gen_random_uuid(), '', 1, now()
        FROM generate_series(1, 1000) AS n, generate_series(1, 100) AS sequence;
    INSERT INTO executor (partition, name, seconds, ends)
        SELECT partition, 'e' || n, 30, now() FROM generate_series(1, 1000) AS n, generate_series(0, 7) AS partition;
"""

INDEXES: dict[str | Part, set[str]] = {
    batch.LOAD: {
        "pk_partition",
        "pk_flow_run",
        "pk_task_run",
        "pk_flow_run_state",
        "pk_task_run_state",
        "pk_verdict",
        "pk_answer",
        "pk_parked",
        "ix_pruned__partition_tree",
    },
    runs.READ_GONE: {"pk_pruned"},
    runs.LOCK_FAILED_TASK_RUNS: {"ix_task_run__flow_run_id", "pk_task_run_state"},
    ledger.READ_VERDICTS: {"pk_verdict", "pk_flow_run_state", "pk_task_run_state"},
    inquiries.READ_WAITING: {"pk_parked"},
    histories.READ_HISTORY: {
        "uq_flow_run_state__run_id_ordinal",
        "uq_task_run_state__run_id_ordinal",
        "pk_verdict",
    },
    explained.READ_QUEUES: {
        "ix_waiter__proposal_id",
        "pk_concurrency_limit",
        "pk_concurrency_slot",
        "ix_waiter__limit_id_priority_ticket",
    },
    explained.READ_LEFT: {"pk_verdict", "pk_flow_run_state", "pk_task_run_state"},
    timelines.READ_CAUSES: {"pk_verdict"},
    timelines.READ_REFUSED: {"ix_verdict__run_id_decided"},
    timelines.READ_NEXT: {
        "uq_flow_run_state__run_id_ordinal",
        "uq_task_run_state__run_id_ordinal",
        "pk_verdict",
    },
    timelines.READ_WAITS: {"ix_parked__run_id"},
    timelines.READ_SLOTS_OF: {"ix_concurrency_slot__run_id", "pk_concurrency_limit"},
    timelines.READ_LEASE: {"pk_lease", "pk_executor"},
    cache.READ_CACHE: {"ix_task_run_state_cache__cache_key_id", "pk_task_run_state"},
    changes.READ_CHANGES: {
        "uq_flow_run_state__partition_sequence",
        "uq_task_run_state__partition_sequence",
        "pk_flow_run",
        "pk_task_run",
        "pk_flow_run_state",
        "pk_task_run_state",
        "pk_verdict",
    },
    changes.FIND_POSITION: {"uq_flow_run_state__partition_sequence", "uq_task_run_state__partition_sequence"},
    subscriptions.READ_SUBSCRIPTIONS: {"pk_subscription", "pk_subscription_member"},
    subscriptions.ACKNOWLEDGE: {"pk_partition", "pk_subscription_share"},
    subscriptions.FAIL: {"pk_subscription_share", "pk_subscription_dead_letter"},
    subscriptions.KEEP_LETTERS_FEW: {"pk_subscription_dead_letter"},
    subscriptions.DEAL_WITH: {"pk_subscription_share", "pk_subscription_dead_letter"},
    subscriptions.READ_SHARES: {"pk_subscription_share"},
    subscriptions.READ_AGAIN: {"pk_subscription_dead_letter"},
    subscriptions.READ_LETTERS: {"pk_subscription_dead_letter"},
    subscriptions.LIST_SUBSCRIPTIONS: {
        "pk_partition",
        "pk_subscription",
        "pk_subscription_member",
        "pk_subscription_share",
        "pk_subscription_dead_letter",
    },
    subscriptions.SUBSCRIPTIONS_SET: {"pk_partition"},
    subscriptions.SUBSCRIPTIONS_REMOVED: {"pk_partition", "pk_subscription"},
    subscriptions.MEMBERS_HEARD: {"pk_partition"},
    subscriptions.MEMBERS_GONE: {"pk_partition", "pk_subscription_member"},
    subscriptions.SHARES_SET: {"pk_partition"},
    subscriptions.LETTERS_AGAIN: {"pk_partition", "pk_subscription_dead_letter"},
    subscriptions.LETTERS_PUT_BACK: {"pk_partition", "pk_subscription_dead_letter"},
    subscriptions.LETTERS_DROPPED: {"pk_partition", "pk_subscription_dead_letter"},
    subscriptions.LETTERS_CLEARED: {"pk_partition", "pk_subscription_dead_letter"},
    limits.LOCK_LIMITS: {"uq_concurrency_limit__scope_key"},
    limits.READ_SLOTS: {"pk_concurrency_slot", "ix_waiter__limit_id_priority_ticket"},
    runs.FLOW_RUNS_CHANGED: {"pk_partition", "pk_flow_run"},
    runs.TASK_RUNS_CHANGED: {"pk_partition", "pk_task_run"},
    runs.FLOW_RUNS_REDESCRIBED: {"pk_partition", "pk_flow_run"},
    runs.TASK_RUNS_REDESCRIBED: {"pk_partition", "pk_task_run"},
    runs.READ_LABELS: {"pk_flow_run", "pk_task_run"},
    limits.SLOTS_RELEASED: {"pk_partition", "ix_concurrency_slot__run_id"},
    limits.LIMITS_SET: {"pk_partition"},
    limits.RATES_USED: {"pk_partition", "pk_concurrency_limit"},
    limits.LIMITS_REMOVED: {"pk_partition", "pk_concurrency_limit"},
    timers.READ_TIMERS: {"ix_timer__partition_due", "pk_parked"},
    timers.TIMERS_CLEARED: {"pk_partition", "pk_timer"},
    timers.FOLLOW_LEASES: {"ix_timer__partition_due", "pk_timer", "pk_lease"},
    leases.RENEW: {"pk_lease"},
    leases.RENEW_EXECUTORS: {"pk_executor"},
    leases.READ_LEASES: {"pk_lease"},
    leases.READ_EXECUTORS: {"pk_executor"},
    leases.END_EXECUTORS: {"pk_executor", "ix_lease__partition_executor"},
    leases.READ_STANDINGS: {"pk_flow_run", "pk_task_run", "pk_flow_run_state", "pk_task_run_state"},
    leases.LEASES_ENDED: {"pk_partition", "pk_lease"},
    parked.READ_PARKED: {"pk_parked", "ix_parked__run_id", "ix_waiter__proposal_id", "pk_concurrency_limit"},
    parked.PARKED_CHANGED: {"pk_partition", "pk_parked"},
    parked.PARKED_REMOVED: {"pk_partition", "pk_parked"},
    changes.LOW_WATER: {"pk_low_water"},
    deletions.TREES: {
        "pk_flow_run",
        "pk_task_run",
        "ix_task_run__flow_run_id",
        "ix_flow_run__parent_task_run_id",
        "ix_parked__run_id",
    },
    deletions.READ_LEFT: {"ix_pruned__partition_tree", "pk_flow_run", "pk_task_run"},
    deletions.READ_NUMBERS: {"uq_flow_run_state__run_id_ordinal", "uq_task_run_state__run_id_ordinal"},
    deletions.FLOW_VERDICTS_DELETED: {"pk_partition", "uq_flow_run_state__run_id_ordinal", "pk_verdict"},
    deletions.TASK_VERDICTS_DELETED: {"pk_partition", "uq_task_run_state__run_id_ordinal", "pk_verdict"},
    deletions.OTHER_VERDICTS_DELETED: {"pk_partition", "ix_verdict__run_id_decided"},
    deletions.ANSWERS_DELETED: {"pk_partition", "ix_answer__run_id"},
    deletions.CACHED_DELETED: {
        "pk_partition",
        "uq_task_run_state__run_id_ordinal",
        "ix_task_run_state_cache__task_run_state_id",
    },
    deletions.FLOW_STATES_DELETED: {"pk_partition", "uq_flow_run_state__run_id_ordinal"},
    deletions.TASK_STATES_DELETED: {"pk_partition", "uq_task_run_state__run_id_ordinal"},
    deletions.FLOW_RUNS_DELETED: {"pk_partition", "pk_flow_run"},
    deletions.TASK_RUNS_DELETED: {"pk_partition", "pk_task_run"},
    deletions.TIMERS_DELETED: {"pk_partition", "pk_timer"},
    old_trees.ROOTS[0]: {"ix_flow_run__created_id"},
    old_trees.ROOTS[1]: {"ix_task_run__created"},
    old_trees.FORGET: {"ix_pruned__pruned", "pk_pruned"},
    old_trees.FORGET_ANSWERS: {"ix_answer__answered", "pk_answer", "pk_flow_run", "pk_task_run"},
}


class CountingDriver:
    """A connection of the driver that counts what is sent over it."""

    def __init__(self, driver: asyncpg.Connection) -> None:
        self._driver = driver
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("execute", "fetch", "fetchrow"):
            self.sent += 1
        return getattr(self._driver, name)


@asynccontextmanager
async def storage(deployment: Deployment) -> AsyncIterator[Storage]:
    engine = database.create_engine(deployment.database_url, pool_size=1, settings=statements.BATCH_SETTINGS)
    await database.fix_partitions(engine, None, default=1)
    opened = Storage(engine)
    try:
        yield opened
    finally:
        await opened.release(0)
        await engine.dispose()


async def decide(batch: Batch, runs: list[TaskRunRecord], state: Any) -> None:
    engine = Engine()
    proposals = [Proposal(ids.new(), run.id, state, datetime.now(UTC)) for run in runs]
    asked = Asked()
    for proposal in proposals:
        asked.runs.ids.add(proposal.run_id)
        asked.ledger.request_ids.append(proposal.id)
        propose = Propose(run_id=proposal.run_id, state=state)
        asked.foretell(propose, engine.needs(propose))
    work = await batch.load(asked, ids)
    for proposal in proposals:
        work.begin()
        work.record_verdict(await engine.decide(proposal, work))
        work.commit()
    await batch.write(work)


async def statements_for(opened: Storage, fence: Fence, size: int, *tags: str, state: ProposedState) -> int:
    """Return how many statements a batch of `size` proposals takes, each run with a limit on each of its tags."""
    async with opened.transaction(fence.partition) as transaction:
        batch = Batch(transaction, fence)
        asked = Asked()
        names = [LimitName(LimitScope.TAG, tag) for tag in tags]
        asked.limits.read.update(names)
        asked.limits.to_set.update({key: [size] for key in names})
        work = await batch.load(asked, ids)
        flow_run = FlowRunRecord(id=ids.new(), name="f", created=work.now)
        fields: dict[str, Any] = {"created": work.now, "tags": tags, "flow_run_id": flow_run.id}
        runs = [TaskRunRecord(id=ids.new(), name="t", **fields) for _ in range(size)]
        work.create_run(flow_run)
        for run in runs:
            work.create_run(run)
        for name in names:
            work.set_limit(name, 1_000)
        await batch.write(work)
    with counted(opened) as counting:
        async with opened.transaction(fence.partition) as transaction:
            await decide(Batch(transaction, fence), runs, state)
    return counting.sent


@contextmanager
def counted(opened: Storage) -> Iterator[CountingDriver]:
    """Count what is sent over the connection of partition 0."""
    kept = opened._kept[0]
    counting = CountingDriver(kept.transaction.driver)
    opened._kept[0] = kept._replace(transaction=kept.transaction._replace(driver=counting))
    try:
        yield counting
    finally:
        opened._kept[0] = kept


async def statements_to_answer(opened: Storage, fence: Fence, *requests: Request) -> int:
    """Return how many statements a batch of the requests takes."""
    entry, engine = Entry("1-0", {}), Engine()
    incoming = [Incoming(entry, ids.new(), None, request, 0) for request in requests]
    with counted(opened) as counting:
        async with opened.transaction(fence.partition) as transaction:
            batch = Batch(transaction, fence)
            work = await batch.load(asked_by(incoming, engine, ()), ids)
            within = InBatch(engine, work, batch.sessions, fence.partition, batch.sequence, lambda *_: ())
            replies = [await answer(one, within, None) for one in incoming]
            await batch.write(work)
    assert "error" not in [reply and reply.type for reply in replies], replies
    return counting.sent


async def test_a_batch_takes_the_same_number_of_statements_whatever_its_size(deployment: Deployment) -> None:
    async with storage(deployment) as opened:
        fence = (await opened.take_up(0)).fence

        async def taken(state: ProposedState, *tags: str) -> set[int]:
            return {await statements_for(opened, fence, size, *tags, state=state) for size in (1, 2, 30, 300)}

        plain, limited = await taken(State.running()), await taken(State.running(), "tag")
        unconcerned = await taken(State.pending(), "tag")
    # BEGIN, load, write, COMMIT.
    assert plain == {4}
    # And the limits, and who holds them.
    assert limited == {6}
    # Nobody asks for limits when a run that does not run is not to run either.
    assert unconcerned == {4}


async def test_only_who_asks_about_a_run_that_exists_pays_for_its_labels(deployment: Deployment) -> None:
    run, task = ids.new(), ids.new()
    made = CreateFlowRun(run_id=run, name="f", labels={"team": "data"})
    with_state = CreateTaskRun(run_id=task, name="t", flow_run_id=run, state=State.pending())
    async with storage(deployment) as opened:
        fence = (await opened.take_up(0)).fence

        async def taken(*requests: Request) -> int:
            return await statements_to_answer(opened, fence, *requests)

        # BEGIN, load, write, COMMIT.
        assert await taken(made, with_state) == 4
        assert await taken(Propose(run_id=run, state=State.running())) == 4
        # The labels, and nothing to write.
        assert await taken(ReadRun(run_id=run, history=False)) == 4
        # The history as well.
        assert await taken(ReadRun(run_id=run)) == 5
        # Labels, and what else the ledger knows of the run. Nothing is written.
        assert await taken(made) == 5
        assert await taken(UpdateRun(run_id=run, name="g")) == 5


def test_no_hot_statement_touches_what_no_transition_changes() -> None:
    assert "labels" not in batch.LOAD
    for part in (runs.FLOW_RUNS_CHANGED, runs.TASK_RUNS_CHANGED):
        assert {"labels", "name", "tags"}.isdisjoint(name for name, _ in part.columns)


@pytest.fixture
async def filled(deployment: Deployment) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(deployment.database_url, server_settings=statements.BATCH_SETTINGS)
    try:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(FILL)
        await connection.execute("ANALYZE")
        yield connection
    finally:
        await connection.close()


async def test_every_hot_statement_uses_its_indexes_at_a_hundred_thousand_rows(filled: asyncpg.Connection) -> None:
    if filled.get_server_version().major * 10_000 < FIRST_VERSION_WITH_GENERIC_PLANS:
        pytest.skip("EXPLAIN shows generic plans from PostgreSQL 16 on")
    for statement, expected in INDEXES.items():
        name = text = write((statement,)) if isinstance(statement, Part) else statement
        nodes = _nodes(await _plan(filled, text))
        assert not [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"], name
        assert {node["Index Name"] for node in nodes if "Index Name" in node} == expected, name


async def _plan(connection: asyncpg.Connection, statement: str) -> dict[str, Any]:
    """Return the plan of a statement with placeholders, which can be explained only as text within the server."""
    await connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS explained (told json); DELETE FROM explained;"
        " DO $outer$ DECLARE told json; BEGIN"
        f" EXECUTE $inner$EXPLAIN (GENERIC_PLAN, FORMAT JSON) {statement}$inner$ INTO told;"
        " INSERT INTO explained VALUES (told); END $outer$"
    )
    plan: dict[str, Any] = json.loads(await connection.fetchval("SELECT told FROM explained"))[0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]
