"""`statewright dev`: all that a developer needs, out of one command."""

from pathlib import Path
from typing import Annotated, Final

import typer

from statewright_worker.cli.migrate import bring_to_newest_schema
from statewright_worker.cli.worker import work_until_stopped
from statewright_worker.embedded import embedded_servers
from statewright_worker.logging import configure_logging
from statewright_worker.loop import run
from statewright_worker.settings import WorkerSettings

DEFAULT_FOLDER: Final = Path(".statewright")

Folder = Annotated[Path, typer.Option("--data", help="Where the embedded servers keep their data.")]


def dev(folder: Folder = DEFAULT_FOLDER) -> None:
    """Run embedded servers and a worker in the foreground; nothing else needs to be installed or set."""
    with embedded_servers(folder) as servers:
        settings = WorkerSettings.load(database_url=servers.database_url, redis_url=servers.redis_url)
        configure_logging(settings)
        bring_to_newest_schema(settings)
        greeting = (
            f"# data in {folder.resolve()}; stop with Ctrl-C\n"
            f"export STATEWRIGHT_DATABASE_URL='{servers.database_url}'\n"
            f"export STATEWRIGHT_REDIS_URL='{servers.redis_url}'"
        )
        run(work_until_stopped(settings, greeting))
