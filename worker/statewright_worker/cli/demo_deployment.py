"""The demo's deployment: embedded servers, a migrated schema and worker replicas, gone when the demo ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer
import uvloop

from statewright import StatewrightError
from statewright_worker.cli.replicas import migrate_database, replicas
from statewright_worker.embedded import Servers, embedded_servers

LOG_LINES_SHOWN: Final = 20


@contextmanager
def deployment(folder: Path, count: int) -> Iterator[str]:
    """Run everything below `folder`, and yield the URL of Redis: all that a client needs to know."""
    log = folder / "workers.log"
    typer.echo("starting PostgreSQL and Redis ...")
    with embedded_servers(folder) as servers:
        environment = os.environ | _settings(servers)
        try:
            typer.echo("bringing the database to the newest schema ...")
            uvloop.run(migrate_database(servers.database_url))
            typer.echo(f"starting {count} workers ...")
            with replicas(count, environment, log):
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


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]) if log.exists() else ""
