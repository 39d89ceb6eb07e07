"""The demo's deployment: embedded servers, a migrated schema and worker replicas, gone when the demo ends."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from statewright import ConfigurationError, StatewrightError
from statewright_worker.embedded import Servers, embedded_servers

STOP_SECONDS: Final = 10.0
LOG_LINES_SHOWN: Final = 20

Process = subprocess.Popen[bytes]


@contextmanager
def deployment(folder: Path, replicas: int) -> Iterator[str]:
    """Run everything below `folder`, and yield the URL of Redis: all that a client needs to know."""
    log = folder / "workers.log"
    typer.echo("starting PostgreSQL and Redis ...")
    with embedded_servers(folder) as servers:
        environment = os.environ | _settings(servers)
        try:
            typer.echo("bringing the database to the newest schema ...")
            _migrate(environment, log)
            typer.echo(f"starting {replicas} workers ...")
            with _workers(replicas, environment, log):
                yield servers.redis_url
        except StatewrightError:
            # The log is about to be deleted with its folder.
            typer.echo(_last_lines(log), err=True)
            raise


def _settings(servers: Servers) -> dict[str, str]:
    return {
        "STATEWRIGHT_DATABASE_URL": servers.database_url,
        "STATEWRIGHT_REDIS_URL": servers.redis_url,
        # Whoever finds a limit full is told to come back soon, so that the demo stays short.
        "STATEWRIGHT_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    }


def _migrate(environment: Mapping[str, str], log: Path) -> None:
    if _start("migrate", environment, log).wait():
        raise ConfigurationError("the database of the demo could not be migrated")


@contextmanager
def _workers(count: int, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    workers: list[Process] = []
    try:
        # Appended one by one: if one cannot be started, those before it are stopped all the same.
        workers.extend(_start("worker", environment, log) for _ in range(count))
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            _reap(worker)


def _start(command: str, environment: Mapping[str, str], log: Path) -> Process:
    with log.open("ab") as output:
        # Detached from the terminal, so that Ctrl-C reaches the demo alone, which stops the rest in order.
        return subprocess.Popen(  # noqa: S603  # this program itself
            [sys.executable, "-m", "statewright_worker", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _reap(worker: Process) -> None:
    try:
        worker.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]) if log.exists() else ""
