"""Workers as processes of their own, for the demo and the benchmark."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

STOP_SECONDS: Final = 10.0

Process = subprocess.Popen[bytes]


@contextmanager
def worker_processes(count: int, environment: Mapping[str, str], log: Path) -> Iterator[list[Process]]:
    """Run `count` workers with this environment, and yield them. They append to `log`.

    At the end they are told to stop; one that has not ended after ten seconds is killed.
    """
    workers: list[Process] = []
    try:
        # Started one by one: if one cannot be started, those before it are stopped all the same.
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
