"""A worker that kills itself with SIGKILL at a chosen point of its n-th batch of proposals.

Run as a script: `python dying_worker.py POINT N`; the settings come from the environment.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from statewright_worker.publishing.streams import Streams
from statewright_worker.replica import run_replica
from statewright_worker.settings import WorkerSettings
from statewright_worker.storage.batches import Batch

# Each point: the method at whose side death comes, and whether it comes before or after the method has done its work.
POINTS: dict[str, tuple[type, str, bool]] = {
    "before the batch is written": (Batch, "write", False),
    "between write and commit": (Batch, "write", True),
    "between commit and publish": (Streams, "publish", False),
    "between publish and trim": (Streams, "read", False),
    "after trim": (Streams, "read", True),
}


def die_at(point: str, times: int) -> None:
    owner, name, after = POINTS[point]
    original: Callable[..., Awaitable[Any]] = getattr(owner, name)
    calls = 0

    async def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < times:
            return await original(*arguments, **named)
        if after:
            await original(*arguments, **named)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


if __name__ == "__main__":
    # Requests are trimmed together with the next read, and the first read comes before the first batch.
    first = 1 if POINTS[sys.argv[1]][1] == "read" else 0
    die_at(sys.argv[1], first + int(sys.argv[2]))
    asyncio.run(run_replica(WorkerSettings.load(), asyncio.Event()))
