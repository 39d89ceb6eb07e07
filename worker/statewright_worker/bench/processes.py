"""The CPU and memory that the processes of a benchmark take."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from statewright import ConfigurationError

MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process took while it was watched."""

    name: str
    cpu_percent: float
    """100 is one core."""
    memory_megabytes: float


class Meter:
    """Watches named processes between `open` and `close`. Those of `with_children` are counted with their children."""

    def __init__(self, pids: Mapping[str, int], with_children: Sequence[str] = ()) -> None:
        self._psutil = _psutil()
        self._watched = {name: self._psutil.Process(pid) for name, pid in pids.items()}
        self._with_children = with_children
        self._before: dict[str, float] = {}
        self._opened = 0.0

    def open(self) -> None:
        """Begin to watch."""
        self._opened = time.monotonic()
        self._before = {name: self._cpu_seconds(name) for name in self._watched}

    def close(self) -> list[Usage]:
        """Return what each process has used since `open`."""
        elapsed = time.monotonic() - self._opened
        return [
            Usage(name, 100 * (self._cpu_seconds(name) - before) / elapsed, self._memory(name) / MEGABYTE)
            for name, before in self._before.items()
        ]

    def _cpu_seconds(self, name: str) -> float:
        total = 0.0
        for process in self._processes(name):
            with suppress(self._psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                if name in self._with_children:
                    # The usage of a child that has ended since then counts with its parent.
                    total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return total

    def _memory(self, name: str) -> float:
        total = 0.0
        for process in self._processes(name):
            with suppress(self._psutil.NoSuchProcess):
                used = process.memory_full_info()
                # PostgreSQL's processes share most of their memory; if the system says how much, each counts its part.
                total += getattr(used, "pss", used.rss)
        return total

    def _processes(self, name: str) -> list[Any]:
        process = self._watched[name]
        return [process, *process.children()] if name in self._with_children else [process]


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        raise ConfigurationError("psutil is not installed; run `pip install 'statewright[worker,bench]'`") from None
    return psutil
