"""Tasks of Celery's that are governed: each says that its run is RUNNING, keeps its lease, and says how it ended.

The client is made once, where the module is imported. Each process that Celery forks off opens its own when its first
task uses it. Where such a process ends, Celery runs nothing that Python does at its end, so a signal closes the client.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.signals import worker_process_shutdown

from statewright import LeaseLost, SetStateStatus, State
from statewright.sync import Client

LEASE_SECONDS = 30

app = Celery("tasks", broker=os.environ["CELERY_BROKER_URL"])
client = Client()


@worker_process_shutdown.connect
def close(**_: Any) -> None:
    """Send what is still to be sent."""
    client.close()


@app.task(bind=True, max_retries=None)
def count(self: Task, run_id: str, path: str) -> None:
    """Count the words of a file, once the task run may run; the number is the data of its last state."""
    verdict = client.propose(run_id, State.running(), lease=LEASE_SECONDS).answer()
    if verdict.status is SetStateStatus.WAIT:
        # A limit is full. The process does something else until then.
        raise self.retry(countdown=verdict.delay_seconds)
    if not verdict.accepted:
        return
    words = 0
    try:
        with client.keep_alive(verdict) as kept, Path(path).open() as lines:
            for line in lines:
                # Nothing cancels a block without an event loop, so a long one asks whether the run is still its own.
                kept.check()
                words += len(line.split())
    except LeaseLost:
        # Somebody has cancelled the run or taken it over, so its end is not ours to propose.
        return
    except OSError as error:
        client.propose(run_id, State.failed(message=str(error))).answer()
        raise
    client.propose(run_id, State.completed(data=words)).answer()
