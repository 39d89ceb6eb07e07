"""Answers that nobody awaits: those to proposals that an earlier process of the same name has sent, for example."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from statewright.log import LOG

UNCLAIMED_KEPT: Final = 10_000
UNCLAIMED_BYTES: Final = 16 * 1024 * 1024
_TOLD: Final = (b'{"type":"verdict"', b'{"type":"error"')
"""How the answers begin that are kept. What else was asked for can be asked for again."""


class _Answer(NamedTuple):
    entry_id: bytes
    number: int
    body: bytes


class Unclaimed:
    """The answers that nobody awaits, by request, oldest first; the oldest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._answers: dict[bytes, _Answer] = {}
        self._size = 0

    def keep(self, request_id: bytes, entry_id: bytes, number: int, body: bytes) -> None:
        """Keep an answer, the n-th that was received, which came with an entry of the reply stream."""
        if not body.startswith(_TOLD):
            return
        self.drop(request_id)
        self._answers[request_id] = _Answer(entry_id, number, body)
        self._size += len(body)
        while len(self._answers) > UNCLAIMED_KEPT or self._size > UNCLAIMED_BYTES:
            oldest = next(iter(self._answers))
            self.drop(oldest)
            LOG.debug("the answer to request %s is forgotten: nobody has asked for it", oldest.decode())

    def drop(self, request_id: bytes) -> None:
        """Forget the answer to a request."""
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            self._size -= len(answer.body)

    def first_behind(self, number: int) -> bytes | None:
        """Return the entry that brought the oldest answer behind the n-th that was received, None without one."""
        return next((answer.entry_id for answer in self._answers.values() if answer.number > number), None)

    def take(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each request and its answer, and forget it once the next one is asked for."""
        while self._answers:
            request_id, answer = next(iter(self._answers.items()))
            yield request_id, answer.body
            self.drop(request_id)
