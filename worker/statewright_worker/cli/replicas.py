"""Replicas as processes of their own, and the schema that they need, for the demo and the benchmark."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from statewright_worker.starting import when_there
from statewright_worker.storage import database

STOP_SECONDS: Final = 10.0
MIGRATION_SECONDS: Final = 3_600.0

log = structlog.get_logger()

Process = subprocess.Popen[bytes]


async def migrate_database(database_url: str, *, pooled_transactions: bool = False, startup_seconds: float = 0) -> str:
    """Bring a database to the newest schema, and return its revision; wait for it up to `startup_seconds`.

    Raises ConfigurationError when it is not there by then, or the URL is wrong.
    """
    engine = database.create_engine(
        database_url,
        pool_size=1,
        pooled_transactions=pooled_transactions,
        application="migrate",
        command_timeout=MIGRATION_SECONDS,
    )

    async def there() -> None:
        async with database.connected(engine):
            pass

    try:
        # The migration itself may take longer than its start.
        await when_there(there, startup_seconds, log.warning)
        return await database.migrate(engine)
    finally:
        await engine.dispose()


@contextmanager
def replicas(count: int, environment: Mapping[str, str], log: Path) -> Iterator[list[Process]]:
    """Run workers with this environment, which append to `log`; stop them in order at the end."""
    workers: list[Process] = []
    try:
        # One by one: if one cannot be started, those before it are stopped all the same.
        workers.extend(_start_worker(environment, log) for _ in range(count))
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            _reap(worker)


def _start_worker(environment: Mapping[str, str], log: Path) -> Process:
    with log.open("ab") as output:
        # Detached from the terminal: Ctrl-C reaches the command alone, which stops the rest in order.
        return subprocess.Popen(
            [sys.executable, "-m", "statewright_worker", "worker"],
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
