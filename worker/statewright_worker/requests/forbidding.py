"""What a deployment does not let producers do, although the protocol has it."""

from collections.abc import Iterable

from statewright.protocol.replies import ErrorCode, ErrorReply
from statewright.protocol.requests import FORCE, Propose, Request
from statewright_worker.requests.base import Incoming, refusal


def refusals(requests: Iterable[Incoming], forbidden: frozenset[str]) -> dict[str, ErrorReply]:
    """Return what those of the requests are answered that are forbidden, by the ids of their entries.

    What has come due is none of a producer's requests, and is never forbidden.
    """
    refused: dict[str, ErrorReply] = {}
    for incoming in requests:
        if incoming.timer is None and (problem := _problem(incoming.request, forbidden)) is not None:
            refused[incoming.entry.id] = problem
    return refused


def _problem(request: Request, forbidden: frozenset[str]) -> ErrorReply | None:
    if request.type in forbidden:
        return _refusal("type", request.type)
    if FORCE in forbidden and isinstance(request, Propose) and request.force:
        return _refusal(FORCE, FORCE)
    return None


def _refusal(field: str, what: str) -> ErrorReply:
    return refusal(
        ErrorCode.FORBIDDEN,
        field,
        f"{field}: this deployment does not let producers do this; its workers' setting STATEWRIGHT_FORBID names"
        f" {what!r}",
    )
