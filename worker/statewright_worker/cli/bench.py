"""`statewright bench`: how fast a deployment decides."""

from pathlib import Path
from typing import Annotated

import typer

from statewright_worker.bench.bench import run_bench
from statewright_worker.bench.options import (
    DEFAULT_CONCURRENCY,
    DEFAULT_THREADS,
    DEFAULT_WORKERS,
    ClientKind,
    Load,
    Mix,
    Options,
)


def bench(
    *,
    mix: Annotated[Mix, typer.Option(help="What the task runs are like.")] = Mix.PLAIN,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help=f"Closed loop: task runs in flight.  [default: {DEFAULT_CONCURRENCY}]"),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1, help="Open loop: proposals per second.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long to measure.")] = 10,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of load before that.")] = 2,
    prepare: Annotated[int, typer.Option(min=0, help="Task runs that are made before the load begins.")] = 0,
    client: Annotated[
        ClientKind, typer.Option(help="With an event loop, or in threads without one.")
    ] = ClientKind.ASYNC,
    threads: Annotated[
        int | None, typer.Option(min=1, help=f"Threads of each producer, when sync.  [default: {DEFAULT_THREADS}]")
    ] = None,
    producers: Annotated[int, typer.Option(min=1, help="Processes that produce the load.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help=f"Worker replicas, when embedded.  [default: {DEFAULT_WORKERS}]")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(envvar="STATEWRIGHT_REDIS_URL", show_envvar=True)] = None,
    database_url: Annotated[
        str | None,
        typer.Option(envvar="STATEWRIGHT_DATABASE_URL", show_envvar=True, help="Only read, for the sizes of batches."),
    ] = None,
    in_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw latencies and throughput.")] = None,
) -> None:
    """Measure how fast a deployment decides: that of STATEWRIGHT_REDIS_URL, or an embedded one.

    The runs that are made stay in the database. An embedded deployment is gone afterwards, with all its data.
    """
    if concurrency is not None and rate is not None:
        raise typer.BadParameter("--concurrency is for a closed loop and --rate for an open one; give one of them")
    if client is ClientKind.SYNC and rate is not None:
        raise typer.BadParameter("--rate is for an open loop, which only the async client has here")
    if client is ClientKind.ASYNC and threads is not None:
        raise typer.BadParameter("--threads is for the sync client; give --client sync as well")
    in_threads = None if client is ClientKind.ASYNC else threads or DEFAULT_THREADS
    load = Load(mix, seconds, warm_up, concurrency or DEFAULT_CONCURRENCY, rate, prepare, in_threads)
    run_bench(Options(load, producers, redis_url, database_url, workers, in_json, plot))
