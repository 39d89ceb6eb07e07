"""Queries at a million runs: how long typical ones take while proposals are decided, and what these notice of it."""

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from typing import Any, Final
from uuid import UUID

import asyncpg

from statewright import Client
from statewright_worker.bench.target import Target, embedded_target
from statewright_worker.loop import run
from tests.benchmarks.harness import measured, show

CHUNK: Final = 100_000
RATE: Final = "500"
OTHER_PARTITION: Final = 1_000
"""The old states lie in a partition that no worker holds, so that nobody publishes their events again."""
ASKED_EACH_SECOND: Final = 5
WARM_UP: Final = 2.0

# Of the newest fiftieth most are open, and of all others one in a thousand is stuck. Seven in a thousand have failed.
# Ids are as a producer makes them: a moment, then chance. Of ten runs one is a flow run, the others are its task runs.
FILL: Final = """
    CREATE TEMPORARY TABLE made AS
    SELECT n, flow, created,
        (prefix || substr(chance, 1, 3) || '8' || substr(chance, 4, 15))::uuid AS id,
        (prefix || substr(chance, 2, 3) || '9' || substr(chance, 5, 15))::uuid AS state_id,
        CASE WHEN n % 200 = 7 THEN 'FAILED' WHEN n % 500 = 9 THEN 'CRASHED'
            WHEN n > 0.98 * $3 AND n % 10 < 7 THEN (ARRAY['RUNNING', 'SCHEDULED', 'PENDING'])[1 + n % 3]
            WHEN n % 1000 = 11 THEN 'RUNNING' ELSE 'COMPLETED' END AS type
    FROM (
        SELECT n, n / 10 * 10 AS flow, moment AS created, md5(n::text) AS chance,
            lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7' AS prefix
        FROM generate_series($1::bigint, $2::bigint) AS n,
            LATERAL (SELECT now() - interval '30 days' * (1 - n / $3::double precision) AS moment) AS _
    ) AS numbered
"""
_RUN: Final = """
    id, 'job-' || n % 1000, created,
    CASE WHEN n % 10 = 1 THEN '["etl"]'::jsonb WHEN n % 10000 = 2 THEN '["rare"]'::jsonb ELSE '[]'::jsonb END, '{}',
    state_id, type, initcap(type), created + interval '1 s', 3, 1, created,
    CASE WHEN type IN ('COMPLETED', 'FAILED', 'CRASHED') THEN created + interval '2 s' END,
    CASE WHEN n % 5 = 3 THEN jsonb_build_object('team', 'team-' || n % 100) ELSE '{}'::jsonb END
"""
_RUN_COLUMNS: Final = (
    "id, name, created, tags, policy, state_id, state_type, state_name, state_timestamp, state_count, run_count,"
    " start_time, end_time, labels"
)
_STATE: Final = f"""
    (id, run_id, ordinal, type, name, timestamp, state_details, run_count, partition, sequence)
    SELECT state_id, id, 3, type, initcap(type), created, '{{}}', 1, {OTHER_PARTITION}, n FROM made
"""
STATEMENTS: Final = (
    f"""INSERT INTO flow_run ({_RUN_COLUMNS}, flow_id, deployment_id)
        SELECT {_RUN}, md5('flow' || n % 100)::uuid, md5('deployment' || n % 1000)::uuid FROM made WHERE n = flow""",
    f"""INSERT INTO task_run ({_RUN_COLUMNS}, flow_run_id)
        SELECT {_RUN.replace("n %", "made.n %").replace(" id,", " made.id,", 1)}, parent.id
        FROM made JOIN (SELECT n AS of, id FROM made) AS parent ON parent.of = made.flow WHERE made.n <> flow""",
    f"INSERT INTO flow_run_state {_STATE} WHERE n = flow",
    f"INSERT INTO task_run_state {_STATE} WHERE n <> flow",
    "DROP TABLE made",
)

Query = Callable[[Client], Coroutine[Any, Any, object]]
Took = dict[str, list[float]]
"""How many milliseconds each query took, each time."""


def typical(flow_run: UUID) -> dict[str, Query]:
    """Return the five that people ask most."""
    open_types = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
    return {
        "the newest that failed": lambda client: client.find_runs(state_types=["FAILED", "CRASHED"]),
        "RUNNING for an hour": lambda client: client.find_runs(state_types=["RUNNING"], unchanged_for=3_600),
        "a rare tag": lambda client: client.find_runs(tags=["rare"]),
        "counts of what is open": lambda client: client.count_runs(state_types=open_types),
        "a tree": lambda client: client.tree(flow_run),
    }


def others(deployment: UUID) -> dict[str, Query]:
    """Return some that are asked less often."""
    week = datetime.now(UTC) - timedelta(days=7)
    return {
        "the newest of all": lambda client: client.find_runs(),
        "a common tag": lambda client: client.find_runs(tags=["etl"]),
        "a label": lambda client: client.find_runs(labels={"team": "team-3"}),
        "a deployment's last week": lambda client: client.find_runs(deployment_id=deployment, created_after=week),
        "a name that failed": lambda client: client.find_runs(name="job-7", state_types=["FAILED"]),
        "counts of all": lambda client: client.count_runs(),
        "partitions": lambda client: client.list_partitions(),
        "workers": lambda client: client.list_workers(),
    }


async def fill(target: Target, runs: int) -> None:
    connection = await asyncpg.connect(target.database_url)
    try:
        for start in range(0, runs, CHUNK):
            await connection.execute(
                FILL.replace("$1", str(start)).replace("$2", str(start + CHUNK - 1)).replace("$3", str(runs))
            )
            for statement in STATEMENTS:
                await connection.execute(statement)
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def known(target: Target) -> Any:
    """Return a flow run, and its deployment."""
    connection = await asyncpg.connect(target.database_url)
    try:
        return await connection.fetchrow("SELECT id, deployment_id FROM flow_run ORDER BY created LIMIT 1")
    finally:
        await connection.close()


async def asked(target: Target, queries: dict[str, Query], seconds: float) -> Took:
    """Ask the queries in turn for so many seconds, so many each second; return how many milliseconds each took."""
    took: Took = {name: [] for name in queries}
    async with Client(redis_url=target.redis_url, answer_timeout=60) as client:
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            for name, ask in queries.items():
                began = time.perf_counter()
                await ask(client)
                took[name].append(1_000 * (time.perf_counter() - began))
                await asyncio.sleep(max(0.0, began + 1 / ASKED_EACH_SECOND - time.perf_counter()))
    return took


async def asked_under_load(target: Target, queries: dict[str, Query], seconds: float) -> tuple[Took, dict[str, float]]:
    """Return what `asked` does, and the latency of the load in milliseconds."""
    load = asyncio.create_task(asyncio.to_thread(loaded, target, seconds))
    await asyncio.sleep(WARM_UP)
    return await asked(target, queries, seconds), await load


def loaded(target: Target, seconds: float) -> dict[str, float]:
    window = ("--seconds", str(seconds), "--warm-up", str(WARM_UP), "--rate", RATE)
    latency: dict[str, float] = measured(target, *window)["latency_ms"]
    return latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="how many runs there are")
    parser.add_argument("--seconds", type=float, default=20, help="how long is measured each time")
    parser.add_argument("--rounds", type=int, default=3, help="how often, with queries and without")
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    given = parser.parse_args()
    with embedded_target(given.workers) as target:
        run(fill(target, given.runs))
        flow_run, deployment = run(known(target))
        took: Took = {name: [] for name in typical(flow_run)}
        latencies: list[list[object]] = []
        for number in range(1, given.rounds + 1):
            # Which goes first alternates, because the machine may change meanwhile.
            alone = loaded(target, given.seconds) if number % 2 else {}
            answers, beside = run(asked_under_load(target, typical(flow_run), given.seconds))
            alone = alone or loaded(target, given.seconds)
            for name, values in answers.items():
                took[name] += values
            latencies.append([number, *(latency[which] for which in ("p50", "p99") for latency in (alone, beside))])
        less_often, _ = run(asked_under_load(target, others(deployment), given.seconds))
        header = [f"{given.runs:,} runs, beside {RATE} proposals/s", "asked", "p50 ms", "p95 ms", "greatest ms"]
        rows = [[name, len(ms), median(ms), quantiles(ms, n=20)[18], max(ms)] for name, ms in took.items()]
        show("The five queries that are asked most", header, rows, target=target)
        rows = [[name, len(ms), median(ms), quantiles(ms, n=20)[18], max(ms)] for name, ms in less_often.items()]
        show("Others", header, rows, target=target)
        header = ["round", "p50 alone", "p50 beside queries", "p99 alone", "p99 beside queries"]
        show(f"Proposals ({RATE}/s) beside {ASKED_EACH_SECOND} queries/s, in ms", header, latencies, target=target)


if __name__ == "__main__":
    main()
