"""The command line."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop

from statewright_worker.cli.bench import DEFAULT_WORKERS, Options, run_bench
from statewright_worker.cli.bench_options import DEFAULT_CONCURRENCY, Load, Mix
from statewright_worker.cli.demo import run_demo
from statewright_worker.cli.replicas import migrate_database
from statewright_worker.embedded import embedded_servers
from statewright_worker.garbage import collect_rarely
from statewright_worker.logging import configure_logging
from statewright_worker.replica import run_replica
from statewright_worker.settings import WorkerSettings

DEFAULT_FOLDER = Path(".statewright")

Result = TypeVar("Result")
Folder = Annotated[Path, typer.Option("--data", help="Where the embedded servers keep their data.")]

app = typer.Typer(
    name="statewright",
    help="Govern the state transitions of workflow runs: proposals in through Redis, verdicts and events out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def worker() -> None:
    """Run one worker replica against STATEWRIGHT_DATABASE_URL and STATEWRIGHT_REDIS_URL, until SIGTERM or Ctrl-C."""
    settings = WorkerSettings.load()
    configure_logging(settings)
    _run(lambda: _worker(settings))


@app.command()
def migrate() -> None:
    """Bring the database of STATEWRIGHT_DATABASE_URL to the newest schema."""
    settings = WorkerSettings.load()
    configure_logging(settings)
    typer.echo(f"the schema is at revision {_migrate(settings)}")


@app.command()
def dev(folder: Folder = DEFAULT_FOLDER) -> None:
    """Run embedded servers and a worker in the foreground; nothing else needs to be installed or set."""
    with embedded_servers(folder) as servers:
        settings = WorkerSettings.load(database_url=servers.database_url, redis_url=servers.redis_url)
        configure_logging(settings)
        _migrate(settings)
        greeting = (
            f"# data in {folder.resolve()}; stop with Ctrl-C\n"
            f"export STATEWRIGHT_DATABASE_URL='{servers.database_url}'\n"
            f"export STATEWRIGHT_REDIS_URL='{servers.redis_url}'"
        )
        _run(lambda: _worker(settings, greeting))


@app.command()
def demo() -> None:
    """Watch two workers govern a flow run with a dozen task runs, on embedded servers in a temporary folder."""
    run_demo()


@app.command()
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
    """Measure how fast transitions are decided: on the deployment of STATEWRIGHT_REDIS_URL, in whose database the runs
    stay, or without one on an embedded deployment that is gone afterwards."""
    if concurrency is not None and rate is not None:
        raise typer.BadParameter("--concurrency is for a closed loop and --rate for an open one; give one of them")
    load = Load(mix, seconds, warm_up, concurrency or DEFAULT_CONCURRENCY, rate, prepare)
    run_bench(Options(load, producers, redis_url, database_url, workers, in_json, plot))


def _migrate(settings: WorkerSettings) -> str:
    return _run(
        lambda: migrate_database(
            settings.database_url.get_secret_value(),
            pooled_transactions=settings.transaction_pooler,
            startup_seconds=settings.startup_timeout,
        )
    )


async def _worker(settings: WorkerSettings, greeting: str = "") -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if greeting:
        # Only now: whoever reads it may press Ctrl-C at once.
        typer.echo(greeting)
    collect_rarely()
    await run_replica(settings, stop)


def _run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    return uvloop.run(work())
