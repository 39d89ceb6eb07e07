"""Every query finds its way by the indexes that it should use, at a hundred thousand runs."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from statewright.protocol.queries import CountRuns, FindRuns
from statewright.runs import RunKind
from statewright.states import StateType
from statewright_worker.queries import find_runs, partitions, tree
from statewright_worker.queries.count_runs import counting
from statewright_worker.queries.filters import FAILED, OPEN
from statewright_worker.queries.find_runs import FEW, NEWEST, by_index, in_order
from statewright_worker.queries.rows import READ_FLOW_RUNS, READ_TASK_RUNS
from statewright_worker.storage.statements import BEGIN_READING
from tests.deployment import Deployment

ID = UUID(int=1)
FLOW, TASK = RunKind.FLOW_RUN, RunKind.TASK_RUN

# Of fifty runs one is open, one has failed, and one has a tag and a label; the others are COMPLETED.
FILL = """
    INSERT INTO flow_run (id, name, created, tags, labels, policy, state_type, flow_id, deployment_id)
        SELECT gen_random_uuid(), 'job-' || n % 1000, now() + n * interval '1 ms',
            CASE WHEN n % 50 = 0 THEN '["a"]'::jsonb ELSE '[]' END,
            CASE WHEN n % 50 = 0 THEN '{"a": "b"}'::jsonb ELSE '{}' END, '{}',
            CASE n % 50 WHEN 1 THEN 'RUNNING' WHEN 2 THEN 'FAILED' ELSE 'COMPLETED' END,
            md5((n % 500)::text)::uuid, md5((n % 500)::text)::uuid
        FROM generate_series(1, 100000) AS n;
    INSERT INTO task_run (id, name, created, tags, labels, policy, state_type, flow_run_id)
        SELECT gen_random_uuid(), name, created, tags, labels, policy, state_type, id FROM flow_run;
    INSERT INTO flow_run_state
            (id, run_id, ordinal, type, name, timestamp, state_details, run_count, partition, sequence)
        SELECT gen_random_uuid(), id, 1, 'RUNNING', 'Running', now(), '{}', 1, 0, row_number() OVER () FROM flow_run;
    INSERT INTO task_run_state
            (id, run_id, ordinal, type, name, timestamp, state_details, run_count, partition, sequence)
        SELECT gen_random_uuid(), id, 1, 'RUNNING', 'Running', now(), '{}', 1, 1, row_number() OVER () FROM task_run;
    UPDATE flow_run SET state_id = s.id FROM flow_run_state AS s WHERE s.run_id = flow_run.id;
    UPDATE task_run SET state_id = s.id FROM task_run_state AS s WHERE s.run_id = task_run.id;
    INSERT INTO timer (kind, id, partition, due)
        SELECT 'lease', gen_random_uuid(), n % 8, now() + interval '1 h' FROM generate_series(1, 100000) AS n;
    INSERT INTO partition (id) SELECT generate_series(0, 7);
"""


@pytest.fixture
async def filled(deployment: Deployment) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(deployment.database_url)
    try:
        await connection.execute(FILL)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute(BEGIN_READING)
        yield connection
    finally:
        await connection.close()


def find(**filters: Any) -> FindRuns:
    return FindRuns(seconds=30, limit=100, **filters)


async def indexes_of(connection: asyncpg.Connection, asked: tuple[str, list[object]]) -> set[str]:
    """Return the indexes that a statement uses; fail where it reads a table or sorts much."""
    statement, values = asked
    told = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *values)
    nodes = list(_nodes(json.loads(told)[0]["Plan"]))
    read = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert read <= {"partition", "parked"}, statement
    return {node["Index Name"] for node in nodes if "Index Name" in node}


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


async def test_every_query_uses_its_indexes_at_a_hundred_thousand_runs(filled: asyncpg.Connection) -> None:
    running, failed = (StateType.RUNNING,), (StateType.FAILED,)
    await filled.execute(find_runs._IN_ORDER)
    for query, kind, phase, expected in [
        (find(), FLOW, None, "ix_flow_run__created_id"),
        (find(tags=("a",)), TASK, None, "ix_task_run__created_id"),
        (find(state_types=running), TASK, OPEN, "ix_task_run__phase_created_id"),
        (find(state_types=failed, name_prefix="job"), FLOW, FAILED, "ix_flow_run__phase_created_id"),
        (find(ended=False), TASK, OPEN, "ix_task_run__phase_created_id"),
        (find(flow_id=ID), FLOW, None, "ix_flow_run__flow_id_created_id"),
        (find(deployment_id=ID, state_types=running), FLOW, OPEN, "ix_flow_run__deployment_id_created_id"),
    ]:
        for most in (NEWEST, None):
            assert await indexes_of(filled, in_order(query, kind, phase, most)) == {expected}, query

    await filled.execute(find_runs._BY_INDEXES)
    for query, kind, phase, expected in [
        (find(tags=("a",)), TASK, None, "ix_task_run__tags"),
        (find(labels={"a": "b"}), FLOW, None, "ix_flow_run__labels"),
        (find(name_prefix="job-77"), TASK, None, "ix_task_run__name"),
        (find(state_types=running, unchanged_for=1), TASK, OPEN, "ix_task_run__phase_created_id"),
        (find(flow_id=ID), FLOW, None, "ix_flow_run__flow_id_created_id"),
        (find(deployment_id=ID), FLOW, None, "ix_flow_run__deployment_id_created_id"),
    ]:
        assert expected in await indexes_of(filled, by_index(query, kind, phase, FEW + 1)), query

    await filled.execute(find_runs._AS_USUAL)
    below = {"ix_task_run__flow_run_id", "ix_flow_run__parent_task_run_id", "pk_flow_run", "pk_task_run"}
    for query, kind, expected_ones in [
        (find(parent=ID), TASK, {"ix_task_run__flow_run_id"}),
        (find(parent=ID), FLOW, {"ix_flow_run__parent_task_run_id"}),
        (find(tree=ID), TASK, below),
        (find(tree=ID), FLOW, below),
    ]:
        assert await indexes_of(filled, by_index(query, kind, None, FEW + 1)) == expected_ones, query
    for phase in (OPEN, FAILED):
        counted = counting(CountRuns(seconds=30), TASK, phase)
        assert await indexes_of(filled, counted) == {"ix_task_run__phase_created_id"}
    ids: list[object] = [[ID] * 100, 1]
    assert await indexes_of(filled, (READ_FLOW_RUNS, ids)) == {"pk_flow_run", "pk_flow_run_state"}
    assert await indexes_of(filled, (READ_TASK_RUNS, ids)) == {"pk_task_run", "pk_task_run_state"}
    level: list[object] = [[ID], [ID], 100]
    assert await indexes_of(filled, (tree.READ_LEVEL, level)) == below - {"pk_flow_run", "pk_task_run"}
    assert await indexes_of(filled, (partitions.READ_PARTITIONS, [])) == {"ix_timer__partition_due"}


async def test_no_transition_but_a_runs_end_changes_an_index(filled: asyncpg.Connection) -> None:
    """An update that changes an index is no HOT one, and takes more time and room the more indexes there are."""
    await filled.execute("COMMIT; BEGIN")
    run_id = await filled.fetchval("SELECT id FROM flow_run WHERE state_type = 'RUNNING' LIMIT 1")
    hot = 0
    for state_type, is_hot in [
        ("PENDING", True),
        ("RUNNING", True),
        ("COMPLETED", False),
        ("COMPLETED", True),
        ("SCHEDULED", False),
        ("FAILED", False),
        ("CRASHED", True),
    ]:
        await filled.execute(
            "UPDATE flow_run SET state_type = $1, state_name = $1, state_timestamp = now(), start_time = now(),"
            " end_time = now(), run_count = run_count + 1 WHERE id = $2",
            state_type,
            run_id,
        )
        hot += is_hot
        counted = await filled.fetchval("SELECT pg_stat_get_xact_tuples_hot_updated('flow_run'::regclass)")
        assert counted == hot, state_type
