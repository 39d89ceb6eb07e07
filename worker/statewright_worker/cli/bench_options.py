"""What a benchmark is asked to do."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

DEFAULT_CONCURRENCY: Final = 500


class Mix(StrEnum):
    """What the task runs of a benchmark are like."""

    PLAIN = "plain"
    LIMITS = "limits"
    CACHE = "cache"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Load:
    """A load on a deployment. With `rate` (proposals per second) the loop is open, without it is closed."""

    mix: Mix
    seconds: float
    warm_up: float
    concurrency: int = DEFAULT_CONCURRENCY
    """How many task runs are in flight in a closed loop."""
    rate: float | None = None
    prepared: int = 0
    """How many task runs are made before the load begins, so that it consists of transitions until they are used up."""

    @property
    def description(self) -> str:
        """The load in a few words."""
        loop = f"closed loop, {self.concurrency} in flight" if self.rate is None else f"open loop, {self.rate:g}/s"
        return f"mix {self.mix}, {loop}, {self.seconds:g} s"

    def shared_by(self, producers: int) -> list["Load"]:
        """Return what each of the producers is to do, so that together they do this."""
        whole, rest = divmod(self.concurrency, producers)
        rate = None if self.rate is None else self.rate / producers
        prepared = -(-self.prepared // producers)
        return [
            replace(self, concurrency=whole + (number < rest), rate=rate, prepared=prepared)
            for number in range(producers)
        ]
