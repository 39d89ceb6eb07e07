"""A batch: it locks its partition, loads every fact that its requests ask for, and writes all that was decided."""

from collections.abc import Sequence
from typing import Final

from asyncpg import Record

from statewright.ids import IdSource
from statewright.protocol.requests import Propose
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.below import Below
from statewright_worker.facts.cache import Cache
from statewright_worker.facts.changes import Changes
from statewright_worker.facts.deletions import Deletions
from statewright_worker.facts.explained import Explained
from statewright_worker.facts.histories import Histories
from statewright_worker.facts.inquiries import Inquiries
from statewright_worker.facts.leases import Leases
from statewright_worker.facts.ledger import KNOWN, Ledger
from statewright_worker.facts.limits import Limits
from statewright_worker.facts.parked import Parked
from statewright_worker.facts.runs import FLOW_RUNS, TASK_RUNS, UNDER_WAY, Runs
from statewright_worker.facts.subscriptions import Subscriptions
from statewright_worker.facts.timelines import Timelines
from statewright_worker.facts.timers import Timers
from statewright_worker.orchestration.facts import Need
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Source, read_together
from statewright_worker.storage.errors import HoldLost
from statewright_worker.storage.sessions import RuleSessions
from statewright_worker.storage.transactions import Fence, Transaction
from statewright_worker.storage.writing import Part, Row, columns_of, write

_FENCE: Final = Source(
    "fence",
    (("epoch", "bigint"), ("sequence", "bigint"), ("now", "timestamptz")),
    "SELECT epoch, sequence, clock_timestamp() AS now FROM partition WHERE id = $1 FOR UPDATE",
)

# The partition's row is the fence, and the statement locks it first. The statement sees the database as it was when the
# statement began, so it does not see what was committed while it waited for the fence. That is harmless in each case:
# - A drain that has lost the partition held the row: it writes nothing any more.
# - A drain that takes the partition up held the row: the epoch differs, and this batch is thrown away.
# - This drain's own last transaction held the row, because the answer to its commit was lost: what this batch writes
#   collides with rows that it did not see, and the batch is decided again (Crossed).
_LOADED: Final = (_FENCE, FLOW_RUNS, TASK_RUNS, KNOWN, UNDER_WAY)
LOAD: Final = read_together(_LOADED)


class Asked:
    """What a batch's requests ask for, by subject.

    Subjects load in the order of `subjects`: every transaction locks runs before limits, so two never deadlock there.
    """

    def __init__(self) -> None:
        self.runs = Runs()
        self.ledger = Ledger()
        self.inquiries = Inquiries()
        self.explained = Explained()
        self.limits = Limits()
        self.parked = Parked(self.limits)
        self.below = Below(self.parked)
        self.deletions = Deletions(self.parked, self.limits)
        self.cache = Cache()
        self.histories = Histories()
        self.timelines = Timelines(self.histories)
        self.changes = Changes()
        self.leases = Leases()
        self.timers = Timers()
        self.subscriptions = Subscriptions()
        self.subjects: tuple[Subject, ...] = (
            self.runs,
            self.ledger,
            self.inquiries,
            self.explained,
            self.below,
            self.deletions,
            self.parked,
            self.limits,
            self.cache,
            self.histories,
            self.timelines,
            self.changes,
            self.leases,
            self.timers,
            self.subscriptions,
        )

    def foretell(self, proposal: Propose, needs: tuple[Need, ...]) -> None:
        """Ask for what the rules that may govern the proposal need."""
        for need in needs:
            self.subjects[_FORETOLD[need.fact]].foretell(proposal, need)


_FORETOLD: Final = {fact: n for n, subject in enumerate(Asked().subjects) for fact in subject.FORETOLD}
"""Where in `Asked.subjects` the subject of each declared fact stands."""


class Batch:
    """What is read and written in one transaction on one partition."""

    def __init__(self, transaction: Transaction, fence: Fence) -> None:
        self._driver = transaction.driver
        self._watch = transaction.watch
        self._fence = fence
        self._asked: Asked
        self.sequence = 0
        """The partition's last sequence number before this batch, once it is loaded."""
        self.sessions = RuleSessions(transaction.connection, transaction.driver)

    async def load(self, asked: Asked, ids: IdSource) -> UnitOfWork:
        """Lock the partition, then the runs and limits that the batch names, and return every fact that it asks for.

        Raises HoldLost when another drain has taken the partition up.
        """
        self._asked = asked
        self._watch.begin()
        partition = self._fence.partition
        found: dict[str, list[Record]] = {source.name: [] for source in _LOADED}
        for row in await self._driver.fetch(LOAD, partition, list(asked.runs.ids), asked.ledger.request_ids):
            found[row["source"]].append(row)
        fence = found[_FENCE.name]
        if not fence or fence[0]["epoch"] != self._fence.epoch:
            raise HoldLost(partition)
        self.sequence = fence[0]["sequence"]
        work = UnitOfWork(fence[0]["now"], ids, partition)
        reading = Reading(self._driver, partition, self.sequence, found)
        for subject in asked.subjects:
            if (loading := subject.load(reading, work)) is not None:
                await loading
        # The rules decide next. Their time has a limit of its own.
        self._watch.end()
        return work

    async def write(self, work: UnitOfWork) -> None:
        """Write all that was decided, in one statement. Every change of state advances the sequence by one."""
        work.waiting.call_waiters()
        written: dict[Part, Sequence[Row]] = {}
        for subject in self._asked.subjects:
            written |= {part: rows for part, rows in subject.parts(work, self.sequence) if rows}
        if written:
            self._watch.begin()
            arrays = [column for rows in written.values() for column in columns_of(rows)]
            sequence = self.sequence + len(work.state_changes)
            await self._driver.execute(write(tuple(written)), self._fence.partition, sequence, work.now, *arrays)
