"""What a benchmark has measured: when each proposal was asked and answered, and what came of it."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import quantiles

from statewright import SetStateStatus


def _doubles() -> "array[float]":
    return array("d")


@dataclass(slots=True)
class Samples:
    """When proposals were asked and answered, in seconds since the window opened; before 0 was the warm-up.

    A proposal's latency counts when it was asked within the window, however late its answer came; its answer counts as
    throughput when it came within the window.
    """

    seconds: float
    asked: "array[float]" = field(default_factory=_doubles)
    answered: "array[float]" = field(default_factory=_doubles)
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    created: int = 0

    @classmethod
    def together(cls, seconds: float, parts: Iterable["Samples"]) -> "Samples":
        """Return the samples of several producers as one."""
        whole = cls(seconds)
        for part in parts:
            whole.asked.extend(part.asked)
            whole.answered.extend(part.answered)
            whole.statuses.update(part.statuses)
            whole.errors.update(part.errors)
            whole.created += part.created
        return whole

    def transitions(self) -> int:
        """Return how many proposals were answered within the window."""
        return sum(1 for moment in self.answered if 0 <= moment < self.seconds)

    def latencies(self) -> list[float]:
        """Return how long each answer took, in milliseconds, the shortest first."""
        pairs = zip(self.asked, self.answered, strict=True)
        return sorted((answered - asked) * 1_000 for asked, answered in pairs if 0 <= asked < self.seconds)

    def percentiles(self) -> dict[str, float]:
        """Return the percentiles and the maximum of the latencies, in milliseconds; nothing for fewer than two."""
        latencies = self.latencies()
        if len(latencies) < 2:  # noqa: PLR2004  # a percentile lies between two values
            return {}
        cuts = quantiles(latencies, n=100, method="inclusive")
        return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": latencies[-1]}

    def throughput(self, width: float) -> list[float]:
        """Return the transitions per second in each interval of `width` seconds of the window."""
        counts = Counter(int(moment / width) for moment in self.answered if 0 <= moment < self.seconds)
        return [counts[number] / width for number in range(max(round(self.seconds / width), 1))]


class Journal:
    """Takes samples. The window opens when `clock` says `start`."""

    def __init__(self, seconds: float, start: float, clock: Callable[[], float]) -> None:
        self.samples = Samples(seconds)
        self._start = start
        self._clock = clock

    def created(self, count: int) -> None:
        """Take down that `count` runs were made just now."""
        self.samples.created += count * self._is_open(self._clock())

    def answered(self, asked: float, status: SetStateStatus) -> None:
        """Take down that a proposal, asked at the moment `asked`, has its verdict now."""
        self.samples.asked.append(asked - self._start)
        self.samples.answered.append(self._clock() - self._start)
        self.samples.statuses[status] += self._is_open(asked)

    def failed(self, asked: float, error: Exception) -> None:
        """Take down that a proposal got no verdict. Errors count in the warm-up too, because there should be none."""
        self.samples.errors[type(error).__name__] += 1

    def _is_open(self, moment: float) -> bool:
        return 0 <= moment - self._start < self.samples.seconds
