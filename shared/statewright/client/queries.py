"""What a client asks beside the lanes: arguments are checked and become queries. No IO."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict
from uuid import UUID

from statewright.client.requests import RunReference, checked, id_of_run
from statewright.errors import InvalidRequest
from statewright.overview import Place
from statewright.protocol.queries import CountRuns, FindRuns, ListPartitions, ListWorkers, ReadTree
from statewright.runs import RunKind
from statewright.states import StateType
from statewright.values import Duration


class RunFilters(TypedDict, total=False):
    """Which runs are meant: those that match all that is given. None says nothing."""

    kind: RunKind | str | None
    state_types: Sequence[StateType | str] | None
    """The run is in one of them."""
    state_names: Sequence[str] | None
    """The run is in a state of one of these names."""
    name: str | None
    """The run's name begins so."""
    tags: Sequence[str] | None
    """The run has all of them."""
    labels: Mapping[str, str] | None
    """The run has all of them."""
    flow_id: UUID | str | None
    deployment_id: UUID | str | None
    parent: RunReference | None
    """The run is a task run of this flow run, or a subflow of this task run."""
    tree: RunReference | None
    """The run is this one, or somewhere below it."""
    created_after: datetime | None
    """The run was created, was RUNNING for the first time, or ended at that very moment or later."""
    created_before: datetime | None
    started_after: datetime | None
    started_before: datetime | None
    ended_after: datetime | None
    ended_before: datetime | None
    ended: bool | None
    """Whether the run has come to an end; one without a state has not."""
    leased: bool | None
    """Whether the run is held by a lease."""
    unchanged_for: Duration | None
    """For how long, at least, the run has been in its state, in seconds or as a duration."""


_RUNS: Final = ("parent", "tree")
_SEVERAL: Final = ("state_types", "state_names", "tags")
# What a query calls otherwise than the client's argument.
_CALLED: Final = {"name": "name_prefix"}


def find_runs(seconds: float, filters: RunFilters, limit: int, after: Place | None) -> FindRuns:
    """Return the query for a page of runs. Raises InvalidRequest."""
    return checked(FindRuns, seconds=seconds, limit=limit, after=after, **_fields(filters))


def count_runs(seconds: float, filters: RunFilters) -> CountRuns:
    """Return the query for the numbers of runs. Raises InvalidRequest."""
    return checked(CountRuns, seconds=seconds, **_fields(filters))


def read_tree(seconds: float, run: RunReference) -> ReadTree:
    """Return the query for a run with what is below it. Raises InvalidRequest."""
    return checked(ReadTree, seconds=seconds, run_id=id_of_run(run))


def list_partitions(seconds: float) -> ListPartitions:
    """Return the query for all partitions."""
    return checked(ListPartitions, seconds=seconds)


def list_workers(seconds: float) -> ListWorkers:
    """Return the query for all workers."""
    return checked(ListWorkers, seconds=seconds)


def _fields(filters: RunFilters) -> dict[str, Any]:
    fields: dict[str, Any] = {_CALLED.get(name, name): value for name, value in filters.items() if value is not None}
    for name in _RUNS:
        if name in fields:
            fields[name] = id_of_run(fields[name], name)
    for name in _SEVERAL:
        if isinstance(fields.get(name), str):
            raise InvalidRequest(name, f"must be some texts, not one: write [{fields[name]!r:.100}]")
        if name in fields:
            fields[name] = tuple(fields[name])
    return fields
