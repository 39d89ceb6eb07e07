"""Retention: the same load with and without it, and how large the database and Redis are meanwhile."""

import argparse
import os
import time
from typing import Final, NamedTuple

from redis import Redis

from statewright_worker.bench.drive import Measurement, drive
from statewright_worker.bench.options import DEFAULT_CONCURRENCY, Load, Mix
from statewright_worker.bench.target import Target, embedded_target
from tests.benchmarks.harness import fetch_value, show

WARM_UP: Final = 4.0
KEEP_RUNS: Final = "STATEWRIGHT_KEEP_RUNS"
MEGABYTE: Final = 1_000_000
RUNS: Final = "SELECT (SELECT count(*) FROM flow_run) + (SELECT count(*) FROM task_run)"


class Size(NamedTuple):
    """How large everything is, so many seconds after the load began."""

    seconds: float
    runs: int
    database_megabytes: float
    redis_megabytes: float


class Scales:
    """Weighs the target now and then, while the load is on."""

    def __init__(self, target: Target, every: float) -> None:
        self._target = target
        self._every = every
        self._next = 0.0
        self.sizes: list[Size] = []

    def __call__(self, elapsed: float, answered: int) -> None:
        if elapsed >= self._next:
            self._next = elapsed + self._every
            self.sizes.append(self.weigh(elapsed))

    def weigh(self, elapsed: float) -> Size:
        with Redis.from_url(self._target.redis_url) as redis:
            memory: int = redis.info("memory")["used_memory"]  # type: ignore[index]
        size = fetch_value(self._target, "SELECT pg_database_size(current_database())")
        return Size(elapsed, fetch_value(self._target, RUNS), size / MEGABYTE, memory / MEGABYTE)


def measure(load: Load, every: float) -> tuple[Measurement, list[Size]]:
    with embedded_target(1) as target:
        scales = Scales(target, every)
        return drive(target, load, 1, scales), scales.sizes


def row(name: str, measurement: Measurement, sizes: list[Size], without: float | None) -> list[object]:
    rate = measurement.samples.transitions() / measurement.samples.seconds
    percentiles = measurement.samples.percentiles()
    against = "-" if without is None else f"{100 * (rate / without - 1):+.1f} %"
    last = sizes[-1]
    return [name, rate, against, percentiles["p50"], percentiles["p99"], last.runs, last.database_megabytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="how long the load with retention lasts")
    parser.add_argument("--without", type=float, default=60, help="how long the one without lasts")
    parser.add_argument("--keep", default="20", help="STATEWRIGHT_KEEP_RUNS")
    parser.add_argument("--rate", type=float, help="proposals per second; by default as many as are answered")
    parser.add_argument("--mix", type=Mix, default=Mix.PLAIN)
    given = parser.parse_args()

    def load(seconds: float) -> Load:
        return Load(given.mix, seconds, WARM_UP, concurrency=DEFAULT_CONCURRENCY, rate=given.rate)

    os.environ.pop(KEEP_RUNS, None)
    kept, kept_sizes = measure(load(given.without), given.without / 4)
    os.environ[KEEP_RUNS] = given.keep
    began = time.perf_counter()
    pruned, sizes = measure(load(given.seconds), given.seconds / 12)
    print(f"took {time.perf_counter() - began:.0f} s")
    without = kept.samples.transitions() / kept.samples.seconds
    header = ["load", "transitions/s", "against without", "p50 ms", "p99 ms", "runs at the end", "database MB"]
    rows = [
        row("runs are kept", kept, kept_sizes, None),
        row(f"runs are kept for {given.keep} s", pruned, sizes, without),
    ]
    show("Retention", header, rows)
    show("Sizes with retention", ["s", "runs", "database MB", "Redis MB"], sizes)


if __name__ == "__main__":
    main()
