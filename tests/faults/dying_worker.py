"""A worker that kills itself with SIGKILL at a chosen point of its n-th batch of proposals.

Run as a script: `python dying_worker.py POINT N`; the settings come from the environment.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from statewright_worker.facts.batch import Batch
from statewright_worker.replica import run_replica
from statewright_worker.settings import WorkerSettings
from statewright_worker.streams.partition import PartitionStreams
from statewright_worker.streams.proposals import Proposals

# Each point: the method at whose side death comes, whether it comes before or after the method has done its work, and
# with which call of it the first batch gets there: requests are trimmed with the next read, and the first read comes
# before the first batch.
POINTS: dict[str, tuple[type, str, bool, int]] = {
    "before the batch is written": (Batch, "write", False, 1),
    "between write and commit": (Batch, "write", True, 1),
    "between commit and publish": (PartitionStreams, "publish", False, 1),
    "between publish and trim": (Proposals, "read", False, 2),
    "after trim": (Proposals, "read", True, 2),
}


def die_at(point: str, batch: int) -> None:
    kind, name, after, first = POINTS[point]
    original: Callable[..., Awaitable[Any]] = getattr(kind, name)
    calls = 0

    async def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < first - 1 + batch:
            return await original(*arguments, **named)
        if after:
            await original(*arguments, **named)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(kind, name, dying)


if __name__ == "__main__":
    die_at(sys.argv[1], int(sys.argv[2]))
    asyncio.run(run_replica(WorkerSettings.load(), asyncio.Event()))
