"""The cache: completed states that later runs with the same key take over."""

from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

from statewright.protocol.requests import Propose
from statewright_worker.facts.base import Reading, Subject
from statewright_worker.facts.states import STATE, joined_state
from statewright_worker.orchestration.facts import Fact, Need
from statewright_worker.orchestration.records import CacheEntry
from statewright_worker.orchestration.unit_of_work import UnitOfWork
from statewright_worker.storage.columns import Columns
from statewright_worker.storage.writing import Part, Row, insert

CACHE_COLUMNS: Final[Columns] = (
    ("cache_key", "text"),
    ("cache_expiration", "timestamptz"),
    ("task_run_state_id", "uuid"),
)
STATES_CACHED: Final = insert("task_run_state_cache", CACHE_COLUMNS, created="now")

READ_CACHE: Final = f"""
    SELECT newest.cache_key, newest.cache_expiration, {STATE}
    FROM unnest($1::text[]) AS wanted (cache_key)
    CROSS JOIN LATERAL (
        SELECT * FROM task_run_state_cache AS entry
        WHERE entry.cache_key = wanted.cache_key AND (entry.cache_expiration IS NULL OR entry.cache_expiration > $2)
        ORDER BY entry.id DESC LIMIT 1
    ) AS newest
    JOIN task_run_state AS s ON s.id = newest.task_run_state_id
"""


class Cache(Subject):
    """The newest cached state of each key that a batch's proposals name."""

    FORETOLD = frozenset({Fact.CACHED_STATE})

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def foretell(self, proposal: Propose, need: Need) -> None:
        cache_key = proposal.state.state_details.cache_key
        if cache_key:
            self._keys.add(cache_key)

    def load(self, reading: Reading, work: UnitOfWork) -> Awaitable[None] | None:
        return self._load(reading, work) if self._keys else None

    async def _load(self, reading: Reading, work: UnitOfWork) -> None:
        for row in await reading.driver.fetch(READ_CACHE, list(self._keys), work.now):
            entry = CacheEntry(row["cache_key"], row["cache_expiration"], joined_state(row))
            work.cache[entry.cache_key] = [entry]

    def parts(self, work: UnitOfWork, sequence: int) -> Iterable[tuple[Part, Sequence[Row]]]:
        added = work.cache_added
        return [(STATES_CACHED, [(entry.cache_key, entry.cache_expiration, entry.state.id) for entry in added])]
