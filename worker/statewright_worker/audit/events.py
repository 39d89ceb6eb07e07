"""The check of streams: what Redis tells of the newest events is what the histories say.

Redis is read before the snapshot of the database is taken: what was published by then was committed before.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from statewright_worker.audit.base import STATE_TABLES, Finding
from statewright_worker.streams.tails import Tail

TAIL: Final = 500
"""How many of the newest events of each partition are compared."""
STANDING: Final = """
    SELECT partition.id, partition.sequence, coalesce(low_water.sequence, 0) AS low
    FROM partition LEFT JOIN low_water ON low_water.partition = partition.id
"""
ERAS: Final = "SELECT partition, went_back_to, sequence FROM era"
NUMBERED: Final = " UNION ALL ".join(
    f"SELECT sequence, id FROM {table} WHERE partition = :partition AND sequence BETWEEN :first AND :last"
    for table in STATE_TABLES
)


class Kept(NamedTuple):
    """What the database says of a partition's events."""

    sequence: int
    """The newest number."""
    low: int
    """Up to which number states were deleted."""
    undone: tuple[range, ...]
    """Numbers of events whose changes no longer exist, and of those that say so."""
    ids: dict[int, str]
    """The ids of the states by their numbers, as far as the tail of the stream reaches."""


def compared(tails: Iterable[Tail], kept: dict[int, Kept]) -> Iterator[Finding]:
    """Yield what the streams tell otherwise than the database."""
    for tail in tails:
        said = kept.get(tail.partition)
        if said is None:
            yield _finding("stream of no partition", tail, f"it ends with number {tail.ends_with}")
        elif tail.ends_with > said.sequence:
            reached = f"the stream ends with number {tail.ends_with}, and the database with {said.sequence}"
            yield _finding("stream ahead of the database", tail, reached)
        else:
            yield from _events(tail, said)


def _events(tail: Tail, said: Kept) -> Iterator[Finding]:
    for number in sorted(tail.ids.keys() | said.ids.keys()):
        told, is_state = tail.ids.get(number), said.ids.get(number)
        if number <= said.low or any(number in passed for passed in said.undone):
            continue
        if told is None:
            if min(tail.ids) < number < tail.ends_with:
                yield _finding("change without its event", tail, f"number {number} is missing in the stream")
        elif is_state is None:
            yield _finding("event without its change", tail, f"number {number} is the event {told}")
        elif told != is_state:
            yield _finding("event of another change", tail, f"number {number} is the event {told}, not {is_state}")


def _finding(check: str, tail: Tail, detail: str) -> Finding:
    return Finding(check, f"partition {tail.partition}", None, detail, is_wrong=True)
