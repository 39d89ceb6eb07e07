"""End to end: every mix in a closed loop, and the latency of a deployment that is not loaded."""

import argparse
from typing import Any

from statewright_worker.bench.options import DEFAULT_CONCURRENCY, Mix
from statewright_worker.bench.target import embedded_target
from tests.benchmarks.harness import measured, show

HEADER = ["load", "transitions/s", "requests/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors", "batch p50 / max"]


def row(name: str, told: dict[str, Any]) -> list[object]:
    latency = told["latency_ms"]
    batch = told["batch_size"]
    return [
        name,
        told["transitions_per_second"],
        told["requests_per_second"],
        *[latency.get(percentile, "-") for percentile in ("p50", "p95", "p99", "max")],
        sum(told["errors"].values()),
        f"{batch['p50']:.0f} / {batch['max']}" if batch else "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", default="6", help="how long to measure each load")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", default=str(DEFAULT_CONCURRENCY))
    given = parser.parse_args()
    window = ("--seconds", given.seconds, "--warm-up", "1.5")
    with embedded_target(given.workers) as target:
        rows = [row("one at a time", measured(target, *window, "--concurrency", "1"))]
        rows.append(row("open loop, 500/s", measured(target, *window, "--rate", "500")))
        for mix in Mix:
            told = measured(target, *window, "--mix", mix, "--concurrency", given.concurrency)
            rows.append(row(f"{mix}, {given.concurrency} in flight", told))
        show(f"End to end, workers: {given.workers}", HEADER, rows, target=target)


if __name__ == "__main__":
    main()
