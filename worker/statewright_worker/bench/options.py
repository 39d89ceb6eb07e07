"""What a benchmark is asked to do."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

DEFAULT_CONCURRENCY: Final = 500
DEFAULT_WORKERS: Final = 1
DEFAULT_THREADS: Final = 8


class Mix(StrEnum):
    """What the task runs of a benchmark are like."""

    PLAIN = "plain"
    LIMITS = "limits"
    CACHE = "cache"
    FULL = "full"
    PARK = "park"
    LEASE = "lease"


class ClientKind(StrEnum):
    """Which client the producers use."""

    ASYNC = "async"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class Load:
    """A load on a deployment. With a `rate`, in proposals per second, the loop is open; without one it is closed."""

    mix: Mix
    seconds: float
    warm_up: float
    concurrency: int = DEFAULT_CONCURRENCY
    """How many task runs are in flight in a closed loop."""
    rate: float | None = None
    prepared: int = 0
    """So many task runs are made before the load begins; until they are used up, it consists of transitions alone."""
    threads: int | None = None
    """In how many threads a producer uses the client without an event loop; None for the client with one."""

    @property
    def description(self) -> str:
        """The load in a few words."""
        loop = f"closed loop, {self.concurrency} in flight" if self.rate is None else f"open loop, {self.rate:g}/s"
        client = "" if self.threads is None else f", sync client in {self.threads} threads"
        return f"mix {self.mix}, {loop}{client}, {self.seconds:g} s"

    @property
    def client(self) -> ClientKind:
        """The client that the producers use."""
        return ClientKind.ASYNC if self.threads is None else ClientKind.SYNC

    def shared_by(self, producers: int) -> list["Load"]:
        """Return the part of each producer, or of each thread; together they make this load."""
        whole, rest = divmod(self.concurrency, producers)
        rate = None if self.rate is None else self.rate / producers
        prepared = -(-self.prepared // producers)
        return [
            replace(self, concurrency=whole + (number < rest), rate=rate, prepared=prepared)
            for number in range(producers)
        ]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `statewright bench`. Without a URL of Redis, it measures an embedded deployment."""

    load: Load
    producers: int = 1
    redis_url: str | None = None
    database_url: str | None = None
    workers: int | None = None
    in_json: bool = False
    plot: Path | None = None
