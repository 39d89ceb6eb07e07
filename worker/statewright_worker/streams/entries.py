"""What every entry says that asks for something, a request or a query: its id, who waits, and the message."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeVar
from uuid import UUID

import orjson
from pydantic import ValidationError

from statewright.protocol.channels import REQUEST_ACTOR, REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from statewright.protocol.replies import ErrorCode, ErrorReply
from statewright.protocol.requests import PROTOCOL_VERSION, VERSIONS_READ
from statewright_worker.streams.proposals import Entry

Message = TypeVar("Message")

_REPLY_TO: Final = re.compile(rb"^[A-Za-z0-9_.-]{1,64}\Z")
_PLAIN: Final = re.compile(rb"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_KNOWN: Final = frozenset({REQUEST_ID, REQUEST_REPLY_TO, REQUEST_ACTOR, REQUEST_MESSAGE})


class BadEntry(Exception):
    """Something is wrong with an entry: `problem` is the reply to it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.problem = ErrorReply(code=ErrorCode.INVALID_MESSAGE, message=message, field=field)


def client_of(entry: Entry) -> str | None:
    """Return the client that waits for the answer, None when nobody does. Raises BadEntry."""
    named = entry.fields.get(REQUEST_REPLY_TO)
    return None if named is None else _client(named)


@lru_cache(maxsize=4_096)
def _client(named: bytes) -> str:
    if not _REPLY_TO.match(named):
        raise BadEntry("reply_to", "reply_to must be 1 to 64 letters, digits, '_', '.' or '-'")
    return named.decode()


def id_of(entry: Entry) -> UUID:
    """Return the id of the request or query. Raises BadEntry."""
    named = entry.fields.get(REQUEST_ID, b"")
    if not _PLAIN.match(named):
        raise BadEntry("id", "id must be a UUID in its canonical form, in lower case; it names the request for ever")
    # A pattern checks the form, because UUID() takes twice as long.
    return UUID(int=int(named.replace(b"-", b""), 16))


def message_of(entry: Entry, max_message_bytes: int, read: Callable[[bytes], Message]) -> Message:
    """Return what `read` makes of the entry's message. Raises BadEntry where that raises ValidationError, and where the
    message is missing or too large."""
    body = entry.fields.get(REQUEST_MESSAGE)
    if body is None:
        raise BadEntry("message", "the entry has no field 'message' with the request as JSON")
    if len(body) > max_message_bytes:
        raise BadEntry("message", f"the message has {len(body)} bytes, at most {max_message_bytes} are accepted")
    if unknown := entry.fields.keys() - _KNOWN:
        name = min(unknown).decode(errors="replace")[:100]
        raise BadEntry(name, f"the entry has a field {name!r} that the protocol does not know")
    try:
        return read(body)
    except ValidationError as error:
        _check_version(body)
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = "type" if problem["type"].startswith("union_tag") else _path(problem["loc"])
        raise BadEntry(field, f"{field}: {problem['msg']}"[:1_000]) from None


def _check_version(body: bytes) -> None:
    """Raise what is wrong with a message of another version, whatever else is: that follows from it."""
    try:
        version = orjson.loads(body).get("v", PROTOCOL_VERSION)
    except (ValueError, AttributeError):
        return
    if version not in VERSIONS_READ:
        read = " and ".join(map(str, VERSIONS_READ))
        raise BadEntry("v", f"v: this engine reads version {read} of the protocol, and not {version!r:.100}")


def _path(location: tuple[int | str, ...]) -> str:
    # The first step of the path names the kind of request, which is no field.
    return ".".join(str(step) for step in location[1:])[:200] or "message"
