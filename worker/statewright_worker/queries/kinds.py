"""Which message is which kind of query: the one place where the kind is asked."""

from typing import Any, Final

from statewright.protocol.queries import ListPartitions
from statewright_worker.queries.base import QueryKind
from statewright_worker.queries.partitions import ListPartitionsKind

_KINDS: Final[dict[type, QueryKind[Any]]] = {
    ListPartitions: ListPartitionsKind(),
}


def kind_of(query: object) -> QueryKind[Any]:
    """Return the kind of the query."""
    return _KINDS[type(query)]
