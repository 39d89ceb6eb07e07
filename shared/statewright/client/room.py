"""How much room a partition has for requests: what a client knows of its backlog, and what it asks Redis about it.

Asking before each push would cost a round trip. So a client asks behind a push now and then, and counts what it has
sent since. It asks before a push only when it comes near to the bound, or when it knows nothing.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from redis.exceptions import ResponseError

from statewright.connection import Command

NEWS_SECONDS: Final = 0.2
NEWS_REQUESTS: Final = 64
NEWS_BYTES: Final = 1_000_000
"""After so many seconds, requests or bytes, the client asks again, behind a push."""

KNOWN_SECONDS: Final = 5.0
"""After so many seconds an answer is worthless, because others push as well."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How many requests of one partition may be unanswered, and how many bytes they may take."""

    requests: int
    size: int


class Backlog:
    """What is known of one partition's unanswered requests."""

    __slots__ = ("_bound", "_known_until", "_look_at", "_look_requests", "_look_size", "requests", "size")

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self.requests = 0
        """How many there are: those that were there when Redis was asked, and those sent since."""
        self.size = 0
        """How many bytes they take, about."""
        self._look_at = self._known_until = -inf
        self._look_requests = self._look_size = 0

    def learn(self, answers: Sequence[Any], now: float) -> None:
        """Take the answers to `asking`. Where Redis refuses them, the user may not ask: then there is no bound here."""
        self.requests, self.size = (_number(answer) for answer in answers)
        if self.requests == 0:
            # An empty stream takes memory too, which is no backlog.
            self.size = 0
        self._known_until = now + KNOWN_SECONDS
        self._look_at = now + NEWS_SECONDS
        self._look_requests = min(self.requests + NEWS_REQUESTS, self._bound.requests // 2)
        self._look_size = min(self.size + NEWS_BYTES, self._bound.size // 2)

    def count(self, size: int, now: float) -> bool:
        """Take note of a request of so many bytes that is to be sent; return whether to ask, before it or behind it."""
        self.requests += 1
        self.size += size
        return self.requests > self._look_requests or now > self._look_at or self.size > self._look_size

    def is_doubtful(self, now: float) -> bool:
        """Return whether to ask before sending what was counted, rather than behind it."""
        return now > self._known_until or 2 * self.requests > self._bound.requests or 2 * self.size > self._bound.size

    def has_room(self, size: int) -> bool:
        """Return whether a request of so many bytes may be sent; one always may when nothing else waits."""
        return self.requests == 0 or (self.requests < self._bound.requests and self.size + size <= self._bound.size)


def asking(stream: str) -> tuple[Command, Command]:
    """Return the commands whose answers `Backlog.learn` takes."""
    return ("XLEN", stream), ("MEMORY", "USAGE", stream)


def asking_for_the_oldest(stream: str) -> tuple[Command, Command]:
    """Return the commands whose answers `age_of_the_oldest` takes."""
    return ("XRANGE", stream, "-", "+", "COUNT", 1), ("TIME",)


def age_of_the_oldest(answers: Iterable[Any]) -> float:
    """Return for how many seconds the oldest request has been waiting, by Redis' clock; 0 when that is not known."""
    entries, now = answers
    if isinstance(entries, ResponseError) or not entries:
        return 0.0
    pushed = int(entries[0][0].partition(b"-")[0]) / 1_000
    # Without the right to TIME, the client's own clock must do.
    seconds = time.time() if isinstance(now, ResponseError) else int(now[0]) + int(now[1]) / 1_000_000
    return max(0.0, seconds - pushed)


def _number(answer: Any) -> int:
    return answer if isinstance(answer, int) else 0
