"""Which message is which kind of request: the one place where the kind is asked."""

from typing import Any, Final

from statewright.messages import (
    CreateFlowRun,
    CreateTaskRun,
    Propose,
    ReadEvents,
    ReadLimit,
    ReadRun,
    Request,
    SetLimit,
    UpdateRun,
)
from statewright_worker.requests.base import Kind
from statewright_worker.requests.create_run import CreateRunKind
from statewright_worker.requests.limits import ReadLimitKind, SetLimitKind
from statewright_worker.requests.propose import ProposeKind
from statewright_worker.requests.read_events import ReadEventsKind
from statewright_worker.requests.read_run import ReadRunKind
from statewright_worker.requests.update_run import UpdateRunKind

_CREATE: Final = CreateRunKind()
_KINDS: Final[dict[type, Kind[Any]]] = {
    Propose: ProposeKind(),
    CreateFlowRun: _CREATE,
    CreateTaskRun: _CREATE,
    UpdateRun: UpdateRunKind(),
    ReadRun: ReadRunKind(),
    ReadEvents: ReadEventsKind(),
    SetLimit: SetLimitKind(),
    ReadLimit: ReadLimitKind(),
}


def kind_of(request: Request) -> Kind[Any]:
    """Return the kind of the request."""
    # By its exact type: isinstance takes long with pydantic's classes.
    return _KINDS[type(request)]
