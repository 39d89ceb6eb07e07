"""`statewright migrate`: the database gets the newest schema."""

import typer

from statewright_worker.logging import configure_logging
from statewright_worker.loop import run
from statewright_worker.migrating import migrate_database
from statewright_worker.settings import WorkerSettings


def migrate() -> None:
    """Bring the database of STATEWRIGHT_DATABASE_URL to the newest schema."""
    settings = WorkerSettings.load()
    configure_logging(settings)
    typer.echo(f"the schema is at revision {bring_to_newest_schema(settings)}")


def bring_to_newest_schema(settings: WorkerSettings) -> str:
    """Migrate the database that the settings name, and return its revision.

    Raises ConfigurationError when it does not come within the setting `startup_timeout`.
    """
    return run(
        migrate_database(
            settings.database_url.get_secret_value(),
            pooled_transactions=settings.transaction_pooler,
            startup_seconds=settings.startup_timeout,
        )
    )
