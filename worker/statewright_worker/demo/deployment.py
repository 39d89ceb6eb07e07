"""The demo's deployment: embedded servers, a migrated schema and workers, all of which end with the demo."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from statewright import StatewrightError
from statewright_worker.embedded import Servers, embedded_servers
from statewright_worker.loop import run
from statewright_worker.migrating import migrate_database
from statewright_worker.worker_processes import worker_processes

LOG_LINES_SHOWN: Final = 20


@contextmanager
def deployment(folder: Path, count: int) -> Iterator[str]:
    """Run servers and `count` workers with their data below `folder`; yield the URL of Redis, which clients need."""
    log = folder / "workers.log"
    typer.echo("starting PostgreSQL and Redis ...")
    with embedded_servers(folder) as servers:
        environment = os.environ | _settings(servers)
        try:
            typer.echo("bringing the database to the newest schema ...")
            run(migrate_database(servers.database_url))
            typer.echo(f"starting {count} workers ...")
            with worker_processes(count, environment, log):
                yield servers.redis_url
        except StatewrightError:
            # The log is about to be deleted with its folder.
            typer.echo(_last_lines(log), err=True)
            raise


def _settings(servers: Servers) -> dict[str, str]:
    return {
        "STATEWRIGHT_DATABASE_URL": servers.database_url,
        "STATEWRIGHT_REDIS_URL": servers.redis_url,
        # A producer that finds a limit full is told to come back soon, so that the demo stays short.
        "STATEWRIGHT_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    }


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]) if log.exists() else ""
