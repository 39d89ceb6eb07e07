"""What is asked beside the lanes: reads that any worker answers, in no order with requests. JSON only, every field
checked.

A query is one entry of the stream of queries, with the fields of a request; its JSON body is one of `Query`. It has no
effect, and is forgotten once its asker no longer waits: then it is asked again.
"""

from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter
from pydantic_core import to_json

from statewright.overview import Place
from statewright.protocol.requests import PROTOCOL_VERSION
from statewright.runs import RunKind
from statewright.states import StateType
from statewright.values import TAKES_DURATIONS, Frozen, Labels, Moment, Name, Tags

MAX_QUERY_SECONDS: Final = 86_400.0
MAX_RUNS_PER_PAGE: Final = 1_000
MAX_STATE_NAMES: Final = 100
MAX_UNCHANGED_SECONDS: Final = 100 * 365 * 86_400


class _Query(Frozen):
    v: Literal[1] = PROTOCOL_VERSION
    seconds: Annotated[float, Field(gt=0, le=MAX_QUERY_SECONDS)]
    """For how long its asker waits; when it is older, nobody answers it."""


class _OfRuns(_Query):
    """Which runs are meant: those that match all that is said. What is None or empty says nothing."""

    kind: RunKind | None = None
    """The run is of this kind."""
    state_types: Annotated[tuple[StateType, ...], Field(max_length=len(StateType))] = ()
    """The run is in one of them."""
    state_names: Annotated[tuple[Name, ...], Field(max_length=MAX_STATE_NAMES)] = ()
    """The run is in a state of one of these names."""
    name_prefix: Name | None = None
    """The run's name begins so."""
    tags: Tags = ()
    """The run has all of them."""
    labels: Labels = Field(default_factory=dict)
    """The run has all of them."""
    flow_id: UUID | None = None
    """The run is a flow run of this flow."""
    deployment_id: UUID | None = None
    """The run is a flow run of this deployment."""
    parent: UUID | None = None
    """The run is a task run of this flow run, or a subflow of this task run."""
    tree: UUID | None = None
    """The run is this one, or somewhere below it."""
    created_after: Moment | None = None
    """The run was created then or later."""
    created_before: Moment | None = None
    """The run was created earlier."""
    started_after: Moment | None = None
    """The run was RUNNING for the first time then or later."""
    started_before: Moment | None = None
    """The run was RUNNING for the first time earlier."""
    ended_after: Moment | None = None
    """The run came to an end then or later."""
    ended_before: Moment | None = None
    """The run came to an end earlier."""
    ended: bool | None = None
    """Whether the run has come to an end; one without a state has not."""
    leased: bool | None = None
    """Whether the run is held by a lease."""
    unchanged_for: (
        Annotated[float, Field(ge=0, le=MAX_UNCHANGED_SECONDS, allow_inf_nan=False), TAKES_DURATIONS] | None
    ) = None
    """For how many seconds, at least, the run has been in its state, by the database's clock."""


class FindRuns(_OfRuns):
    """A page of the runs that match, the newest first."""

    type: Literal["find_runs"] = "find_runs"
    limit: Annotated[int, Field(ge=1, le=MAX_RUNS_PER_PAGE)]
    """How many at most; large ones may make the page shorter."""
    after: Place | None = None
    """Where the page before has ended."""


class CountRuns(_OfRuns):
    """How many runs match, for each kind and state."""

    type: Literal["count_runs"] = "count_runs"


class ReadTree(_Query):
    """A run with what is below it, level by level, up to a bound."""

    type: Literal["read_tree"] = "read_tree"
    run_id: UUID
    """The run from which on the tree is told."""


class ListPartitions(_Query):
    """All partitions as they stand."""

    type: Literal["list_partitions"] = "list_partitions"


class ListWorkers(_Query):
    """All workers that are alive."""

    type: Literal["list_workers"] = "list_workers"


Query = FindRuns | CountRuns | ReadTree | ListPartitions | ListWorkers
QUERY: Final[TypeAdapter[Query]] = TypeAdapter(Annotated[Query, Field(discriminator="type")])


def encode_query(query: Query) -> bytes:
    """Return the JSON body of a query. What says nothing is left out."""
    return to_json(query, exclude_none=True)


def query_from(body: bytes) -> Query:
    """Return the query that a JSON body carries. Raises ValidationError, naming the field."""
    return QUERY.validate_json(body, strict=True)
