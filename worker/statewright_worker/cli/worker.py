"""`statewright worker`: one replica in the foreground."""

import asyncio
import signal

import typer

from statewright_worker.garbage import collect_rarely
from statewright_worker.logging import configure_logging
from statewright_worker.loop import run
from statewright_worker.replica import run_replica
from statewright_worker.settings import WorkerSettings


def worker() -> None:
    """Run one worker replica against STATEWRIGHT_DATABASE_URL and STATEWRIGHT_REDIS_URL, until SIGTERM or Ctrl-C."""
    settings = WorkerSettings.load()
    configure_logging(settings)
    run(work_until_stopped(settings))


async def work_until_stopped(settings: WorkerSettings, greeting: str = "") -> None:
    """Run a replica until SIGTERM or Ctrl-C, after printing the greeting, if there is one.

    Raises ConfigurationError, as `run_replica` does.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if greeting:
        # Only now, because a user who reads the greeting may press Ctrl-C at once.
        typer.echo(greeting)
    collect_rarely()
    await run_replica(settings, stop)
