"""What a deployment does not let producers do, although the protocol has it."""

from collections.abc import Iterable

from statewright.protocol.replies import ErrorReply
from statewright.protocol.requests import FORCE, DeleteRun, Propose, Request
from statewright_worker.requests.base import Incoming, forbidden


def refusals(requests: Iterable[Incoming], names: frozenset[str]) -> dict[str, ErrorReply]:
    """Return what those of the requests are answered that are forbidden, by the ids of their entries.

    What has come due is none of a producer's requests, and is never forbidden.
    """
    refused: dict[str, ErrorReply] = {}
    for incoming in requests:
        if incoming.timer is None and (problem := _problem(incoming.request, names)) is not None:
            refused[incoming.entry.id] = problem
    return refused


def _problem(request: Request, names: frozenset[str]) -> ErrorReply | None:
    if request.type in names:
        return forbidden("type", request.type)
    if FORCE in names and isinstance(request, Propose | DeleteRun) and request.force:
        return forbidden(FORCE, FORCE)
    return None
