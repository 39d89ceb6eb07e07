"""What is owed: answers and dead letters that a full Redis has refused, kept until there is room for them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from statewright.connection import Command

OWED_BYTES: Final = 16 * 1024 * 1024
"""A partition owes no more bytes than this: beyond, the oldest commands are given up."""


def size_of(command: Command) -> int:
    """Return about how many bytes a command takes."""
    return sum(len(argument) for argument in command if isinstance(argument, bytes))


class _Entry(NamedTuple):
    command: Command
    size: int
    kept_until: float


class Owed:
    """Commands that are to be sent again, oldest first.

    What is too old or too much is given up: a client that still wants the answer asks again, and the ledger has it. An
    answer is kept here no longer than a reply stream would keep it. Otherwise the answers to a client that reads none
    would fill Redis again as soon as the last ones had expired.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._entries: deque[_Entry] = deque()
        self._size = 0
        self.given_up = 0
        """How many were given up."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, commands: Iterable[Command]) -> None:
        """Owe these commands as well."""
        kept_until = self._clock() + self._seconds
        for command in commands:
            size = size_of(command)
            self._entries.append(_Entry(command, size, kept_until))
            self._size += size
        while self._size > OWED_BYTES:
            self._give_up_the_oldest()

    def oldest(self, size: int) -> list[Command]:
        """Return the oldest commands, about `size` bytes of them, and at least one unless nothing is owed."""
        now = self._clock()
        while self._entries and self._entries[0].kept_until < now:
            self._give_up_the_oldest()
        return list(self._within(size))

    def settle(self, taken: list[bool]) -> None:
        """Remove those of the oldest commands that Redis has taken."""
        tried = [self._entries.popleft() for _ in taken]
        left = [entry for entry, is_taken in zip(tried, taken, strict=True) if not is_taken]
        self._size -= sum(entry.size for entry in tried) - sum(entry.size for entry in left)
        self._entries.extendleft(reversed(left))

    def _within(self, size: int) -> Iterator[Command]:
        for entry in self._entries:
            yield entry.command
            size -= entry.size
            if size <= 0:
                break

    def _give_up_the_oldest(self) -> None:
        self._size -= self._entries.popleft().size
        self.given_up += 1
