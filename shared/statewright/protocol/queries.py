"""What is asked beside the lanes: reads that any worker answers, in no order with requests. JSON only, every field
checked.

A query is one entry of the stream of queries, with the fields of a request; its JSON body is one of `Query`. It has no
effect, and is forgotten once its asker no longer waits: then it is asked again.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter
from pydantic_core import to_json

from statewright.protocol.requests import PROTOCOL_VERSION
from statewright.values import Frozen

MAX_QUERY_SECONDS: Final = 86_400.0


class _Query(Frozen):
    v: Literal[1] = PROTOCOL_VERSION
    seconds: Annotated[float, Field(gt=0, le=MAX_QUERY_SECONDS)]
    """For how long its asker waits; when it is older, nobody answers it."""


class ListPartitions(_Query):
    """All partitions as they stand."""

    type: Literal["list_partitions"] = "list_partitions"


Query = ListPartitions
QUERY: Final[TypeAdapter[Query]] = TypeAdapter(Annotated[Query, Field()])


def encode_query(query: Query) -> bytes:
    """Return the JSON body of a query. What is None is left out."""
    return to_json(query, exclude_none=True)


def query_from(body: bytes) -> Query:
    """Return the query that a JSON body carries. Raises ValidationError, naming the field."""
    return QUERY.validate_json(body, strict=True)
