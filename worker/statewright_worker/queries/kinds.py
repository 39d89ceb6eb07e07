"""Which message is which kind of query: the one place where the kind is asked."""

from typing import Any, Final

from statewright.protocol.queries import CountRuns, FindRuns, ListPartitions, ListWorkers, ReadTree
from statewright_worker.queries.base import QueryKind
from statewright_worker.queries.count_runs import CountRunsKind
from statewright_worker.queries.find_runs import FindRunsKind
from statewright_worker.queries.partitions import ListPartitionsKind
from statewright_worker.queries.tree import ReadTreeKind
from statewright_worker.queries.workers import ListWorkersKind

_KINDS: Final[dict[type, QueryKind[Any]]] = {
    FindRuns: FindRunsKind(),
    CountRuns: CountRunsKind(),
    ReadTree: ReadTreeKind(),
    ListPartitions: ListPartitionsKind(),
    ListWorkers: ListWorkersKind(),
}


def kind_of(query: object) -> QueryKind[Any]:
    """Return the kind of the query."""
    return _KINDS[type(query)]
