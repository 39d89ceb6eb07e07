"""What every subject is: what a batch may ask of it, how that is loaded, and what of it is written."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, NamedTuple

from asyncpg import Connection, Record

from statewright.messages import Propose
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.writing import Part, Row

PAGE_BYTES: Final = 256 * 1024
"""How large the data of a page of a history may be; one state is always told."""


class Reading(NamedTuple):
    """A batch that is being loaded: where it reads, and what its first statement has found."""

    driver: Connection
    partition: int
    sequence: int
    """The partition's last sequence number before this batch."""
    found: dict[str, list[Record]]
    """The rows of LOAD, by their source."""


class Subject(ABC):
    """One subject of facts; an instance holds what one batch asks of it."""

    FORETOLD: ClassVar[Fact | None] = None
    """The fact that rules declare and a proposal foretells."""

    def foretell(self, proposal: Propose, need: Need) -> None:
        """Ask for what rules may ask for when they govern the proposal; only of a subject with a `FORETOLD` fact."""
        raise NotImplementedError

    @abstractmethod
    async def load(self, reading: Reading, work: UnitOfWork) -> None:
        """Read what is asked for into the unit of work, with statements of its own, if it takes any."""

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        """Return what is to be written, perhaps no rows; `sequence` is the last one before this batch."""
        return ()
