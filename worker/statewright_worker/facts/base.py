"""A subject of facts: what a batch may ask of it, how it loads that, and what it writes."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from typing import ClassVar, Final, NamedTuple

from asyncpg import Connection, Record

from statewright.protocol.requests import Propose
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.writing import Part, Row

PAGE_BYTES: Final = 256 * 1024
"""How many bytes of states' data a page of a history may have; it has one state at least, however large."""


class Reading(NamedTuple):
    """What a subject loads with: the connection, the partition, and the rows that the first statement has found."""

    driver: Connection
    partition: int
    sequence: int
    """The partition's last sequence number before this batch."""
    found: dict[str, list[Record]]
    """The rows of LOAD, by their source."""


class Subject(ABC):
    """One subject of facts; each batch has an instance of its own, which holds what the batch asks for."""

    FORETOLD: ClassVar[frozenset[Fact]] = frozenset()
    """The facts of this subject that rules declare in NEEDS."""

    def foretell(self, proposal: Propose, need: Need) -> None:
        """Ask for what the proposal's rules may need; called only where the fact is one of `FORETOLD`."""
        raise NotImplementedError

    @abstractmethod
    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        """Put what was asked for into the unit of work; run statements only for what LOAD does not read.

        Returns what to await, None when there is nothing: most batches ask most subjects for nothing.
        """

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        """Return the parts of the write with their rows, which may be none.

        `sequence` is the partition's last sequence number before this batch.
        """
        return ()
