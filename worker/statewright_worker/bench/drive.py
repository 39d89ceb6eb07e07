"""How the producers of a benchmark are driven: started together, watched while they measure, and asked for samples."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Final, Protocol

from statewright import StatewrightError
from statewright_worker.bench.options import Load
from statewright_worker.bench.processes import Meter, Usage
from statewright_worker.bench.producer import Failed, Progress, Ready, Told, clock, produce
from statewright_worker.bench.samples import Samples
from statewright_worker.bench.target import POSTGRESQL, Target

if TYPE_CHECKING:
    Producer = Connection[float, Told]

POLL_SECONDS: Final = 0.05
HEAD_START_SECONDS: Final = 0.1
"""How long after the word to begin the producers begin, so that all of them have received it by then."""


class BenchFailed(StatewrightError):
    """The benchmark could not be carried out; the text says why."""


@dataclass(slots=True)
class Measurement:
    """What a benchmark has measured, between `opened` and `closed` of the wall clock."""

    samples: Samples
    opened: datetime
    closed: datetime
    usages: list[Usage] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)


class ShowProgress(Protocol):
    """Shows how many seconds have passed since the warm-up began, and how many proposals were answered."""

    def __call__(self, elapsed: float, answered: int) -> None: ...


def drive(target: Target, load: Load, count: int, show: ShowProgress) -> Measurement:
    """Let `count` producers put the load on the target, and return what was measured.

    Raises BenchFailed when a producer gives up.
    """
    with _producers(target.redis_url, load.shared_by(count)) as producers:
        pids = [_ready(producer) for producer in producers]
        named = {"producer" if count == 1 else f"producer {number}": pid for number, pid in enumerate(pids, 1)}
        meter = Meter({**named, **target.pids}, with_children=[POSTGRESQL])
        began = clock() + HEAD_START_SECONDS
        for producer in producers:
            producer.send(began)
        return _Watch(load, producers, meter, show, began).measurement()


class _Watch:
    """Listens to the producers, and meters the processes from when the window opens until it closes."""

    def __init__(
        self, load: Load, producers: Sequence["Producer"], meter: Meter, show: ShowProgress, began: float
    ) -> None:
        self._load = load
        self._open = list(producers)
        self._meter = meter
        self._show = show
        self._began = began
        self._answered: dict[int, int] = {}
        self._parts: list[Samples] = []

    def measurement(self) -> Measurement:
        """Wait for the end of the window and for the last answers, and return what was measured."""
        self._listen_until(self._began + self._load.warm_up)
        self._meter.open()
        opened = datetime.now(UTC)
        self._listen_until(self._began + self._load.warm_up + self._load.seconds)
        usages, closed = self._meter.close(), datetime.now(UTC)
        while self._open:
            self._listen(POLL_SECONDS)
        return Measurement(Samples.together(self._load.seconds, self._parts), opened, closed, usages)

    def _listen_until(self, moment: float) -> None:
        while (left := moment - clock()) > 0:
            self._listen(min(left, POLL_SECONDS))

    def _listen(self, timeout: float) -> None:
        if not self._open:
            time.sleep(timeout)
        for ready in wait(self._open, timeout):
            producer = next(producer for producer in self._open if producer is ready)
            match _received(producer):
                case Progress(answered=answered):
                    self._answered[id(producer)] = answered
                case Samples() as samples:
                    self._parts.append(samples)
                    self._open.remove(producer)
        self._show(clock() - self._began, sum(self._answered.values()))


@contextmanager
def _producers(redis_url: str, loads: Sequence[Load]) -> Iterator[list["Producer"]]:
    # Spawned, not forked, so that a producer inherits nothing from us but what it is told.
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    producers: list[Producer] = []
    try:
        for load in loads:
            ours, theirs = context.Pipe()
            process = context.Process(target=produce, args=(load, redis_url, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            producers.append(ours)
        yield producers
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _ready(producer: "Producer") -> int:
    match _received(producer):
        case Ready(pid=pid):
            return pid
        case other:
            raise BenchFailed(f"a producer began before it was told to: {other}")


def _received(producer: "Producer") -> Told:
    try:
        told: Told = producer.recv()
    except EOFError:
        raise BenchFailed("a producer ended before its time") from None
    if isinstance(told, Failed):
        raise BenchFailed(told.reason)
    return told
