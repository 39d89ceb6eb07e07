"""Growth: the same load on an empty database and on one that has grown to a million runs and five million states."""

import argparse
import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

import asyncpg

from statewright_worker.bench.drive import Measurement, drive
from statewright_worker.bench.options import DEFAULT_CONCURRENCY, Load, Mix
from statewright_worker.bench.target import Target, embedded_target
from tests.benchmarks.harness import fetch_value, show

WARM_UP: Final = 4.0
CHUNK: Final = 50_000
TASKS_PER_FLOW: Final = 10
STATES_PER_RUN: Final = 5
OTHER_PARTITION: Final = 1_000
"""The old states lie in a partition that no worker holds, so that nobody publishes their events again."""

# Ids as a producer makes them: the milliseconds at which they were made, then chance.
SCHEMA: Final = """
    CREATE FUNCTION pg_temp.id_at(moment timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS $$
        SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7' || substr(chance, 1, 3)
            || '8' || substr(chance, 4, 15))::uuid
        FROM md5(random()::text) AS chance
    $$;
    CREATE TEMPORARY TABLE made (
        n bigint, id uuid, flow_id uuid, moment timestamptz, first_state uuid, last_state uuid
    );
"""
MADE: Final = """
    INSERT INTO made
    SELECT n, pg_temp.id_at(moment), NULL, moment, pg_temp.id_at(moment), pg_temp.id_at(moment)
    FROM generate_series($1::bigint, $2::bigint) AS n,
        LATERAL (SELECT now() - interval '30 days' + n * interval '1 millisecond' AS moment) AS _;
"""
FLOW_OF: Final = f"""
    UPDATE made SET flow_id = flow.id FROM made AS flow
    WHERE made.n % {TASKS_PER_FLOW} <> 0 AND flow.n = made.n - made.n % {TASKS_PER_FLOW}
"""
_RUN: Final = (
    "id, 'grown', moment, '[]', '{}', last_state, 'COMPLETED', 'Completed', moment,"
    f" {STATES_PER_RUN}, 1, moment, NULL, moment, moment, '1 s'"
)
_RUN_COLUMNS: Final = (
    "id, name, created, tags, policy, state_id, state_type, state_name, state_timestamp, state_count, run_count,"
    " expected_start_time, next_scheduled_start_time, start_time, end_time, total_run_time"
)
FLOW_RUNS: Final = f"INSERT INTO flow_run ({_RUN_COLUMNS}) SELECT {_RUN} FROM made WHERE flow_id IS NULL"
TASK_RUNS: Final = (
    f"INSERT INTO task_run ({_RUN_COLUMNS}, flow_run_id) SELECT {_RUN}, flow_id FROM made WHERE flow_id IS NOT NULL"
)
STATES: Final = """
    INSERT INTO {table} (id, run_id, ordinal, type, name, timestamp, state_details, previous_state_id, run_count,
        partition, sequence)
    SELECT CASE ordinal WHEN 1 THEN first_state WHEN {count} THEN last_state ELSE pg_temp.id_at(moment) END, id,
        ordinal, 'RUNNING', 'Running', moment, '{{}}', first_state, 1, {partition}, n * {count} + ordinal
    FROM made, generate_series(1, {count}) AS ordinal WHERE {which}
"""
VERDICTS: Final = f"""
    INSERT INTO verdict (proposal_id, run_id, status, state_id, rule_signature, finalization_signature, decided)
    SELECT pg_temp.id_at(moment), id, 'ACCEPT', last_state, 'PreventRedundantTransitions',
        'PreventRedundantTransitions', moment
    FROM made, generate_series(1, {STATES_PER_RUN})
"""


async def grow(target: Target, first: int, last: int) -> None:
    """Add runs number `first` to `last` with their states and verdicts, as if they had been governed a month ago."""
    connection = await asyncpg.connect(target.database_url)
    try:
        await connection.execute(SCHEMA)
        for start in range(first, last + 1, CHUNK):
            await _add(connection, start, min(start + CHUNK - 1, last))
        # What the sudden growth leaves to be done is done now, not while the next load is measured.
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _add(connection: Any, first: int, last: int) -> None:
    await connection.execute("TRUNCATE made")
    await connection.execute(MADE, first, last)
    for statement in _statements():
        await connection.execute(statement)


def _statements() -> Iterable[str]:
    common = {"count": STATES_PER_RUN, "partition": OTHER_PARTITION}
    yield FLOW_OF
    yield FLOW_RUNS
    yield TASK_RUNS
    yield STATES.format(table="flow_run_state", which="flow_id IS NULL", **common)
    yield STATES.format(table="task_run_state", which="flow_id IS NOT NULL", **common)
    yield VERDICTS


def measure(target: Target, seconds: float) -> Measurement:
    load = Load(Mix.PLAIN, seconds=seconds, warm_up=WARM_UP, concurrency=DEFAULT_CONCURRENCY)
    return drive(target, load, 1, lambda elapsed, answered: None)


def row(target: Target, measurement: Measurement) -> list[object]:
    counted = "SELECT (SELECT count(*) FROM flow_run{0}) + (SELECT count(*) FROM task_run{0})"
    memory = {usage.name: usage.memory_megabytes for usage in measurement.usages}
    return [
        fetch_value(target, counted.format("")),
        fetch_value(target, counted.format("_state")),
        measurement.samples.transitions() / measurement.samples.seconds,
        measurement.samples.percentiles()["p50"],
        measurement.samples.percentiles()["p99"],
        memory["worker 1"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="how many runs to grow to")
    parser.add_argument("--steps", type=int, default=4, help="measurements on the way")
    parser.add_argument("--seconds", type=float, default=15, help="how long each measurement takes")
    given = parser.parse_args()
    header = ["runs", "states", "transitions/s", "p50 ms", "p99 ms", "worker MB", "against empty"]
    with embedded_target(1) as target:
        rows = [row(target, measure(target, given.seconds))]
        for step in range(given.steps):
            began = time.perf_counter()
            bounds = (given.runs * step // given.steps + 1, given.runs * (step + 1) // given.steps)
            asyncio.run(grow(target, *bounds))
            print(f"grown by {bounds[1] - bounds[0] + 1:,} runs in {time.perf_counter() - began:.0f} s")
            rows.append(row(target, measure(target, given.seconds)))
        empty = float(str(rows[0][2]))
        rows = [[*one, f"{100 * (float(str(one[2])) / empty - 1):+.1f} %"] for one in rows]
        show("Growth", header, rows, target=target)


if __name__ == "__main__":
    main()
