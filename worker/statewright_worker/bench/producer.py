"""A producer of a benchmark: a process that tells its parent how far it is and, at its end, what it has measured."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from statewright import Client, StatewrightError
from statewright.sync import Client as SyncClient
from statewright_worker.bench.loops import Loops
from statewright_worker.bench.mixes import Mixer, Runs
from statewright_worker.bench.options import Load
from statewright_worker.bench.samples import Journal, Samples
from statewright_worker.bench.threads import Threads
from statewright_worker.garbage import collect_rarely
from statewright_worker.loop import run

PROGRESS_SECONDS: Final = 0.25

# All processes of a machine share this clock.
clock = time.monotonic


@dataclass(frozen=True, slots=True)
class Ready:
    """The producer is connected and waits for the moment at which to begin."""

    pid: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How many proposals were answered so far."""

    answered: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The producer cannot go on, and why."""

    reason: str


Told = Ready | Progress | Samples | Failed


def produce(load: Load, redis_url: str, parent: "Connection[Told, float]") -> None:
    """Put the load on the deployment from the moment that the parent names, and send it the samples."""
    # Ctrl-C reaches the whole process group, but it is the parent that ends its producers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    collect_rarely()
    try:
        if load.threads is None:
            parent.send(run(_produce(load, redis_url, parent)))
        else:
            parent.send(_produce_in_threads(load, load.threads, redis_url, parent))
    except StatewrightError as error:
        parent.send(Failed(str(error)))


async def _produce(load: Load, redis_url: str, parent: "Connection[Told, float]") -> Samples:
    async with Client(redis_url) as client:
        runs = Runs(client, Mixer(load.mix))
        for created in runs.prepare(load.prepared):
            await asyncio.gather(*created)
        parent.send(Ready(os.getpid()))
        begins = await asyncio.to_thread(parent.recv)
        opens = begins + load.warm_up
        journal = Journal(load.seconds, opens, clock)
        telling = asyncio.create_task(_tell_progress(journal.samples, parent))
        await Loops(client, runs, load, journal, clock=clock, begins=begins, ends=opens + load.seconds).run()
        telling.cancel()
        return journal.samples


def _produce_in_threads(load: Load, threads: int, redis_url: str, parent: "Connection[Told, float]") -> Samples:
    with SyncClient(redis_url) as client:
        loops = Threads(client, load, threads)
        loops.prepare()
        parent.send(Ready(os.getpid()))
        begins = parent.recv()
        return loops.run(clock, begins, lambda answered: parent.send(Progress(answered)), PROGRESS_SECONDS)


async def _tell_progress(samples: Samples, parent: "Connection[Told, float]") -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        parent.send(Progress(len(samples.answered)))
