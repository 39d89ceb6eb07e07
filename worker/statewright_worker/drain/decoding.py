"""Decoding: from a stream entry to a request, or to what is wrong with it."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

import orjson
from pydantic import ValidationError

from statewright.protocol.channels import REQUEST_ACTOR, REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO, WAKE
from statewright.protocol.replies import ErrorCode, ErrorReply
from statewright.protocol.requests import PROTOCOL_VERSION, VERSIONS_READ, Request, request_from
from statewright.values import checked_actor
from statewright_worker.requests.base import Incoming
from statewright_worker.requests.kinds import kind_of
from statewright_worker.streams.proposals import Entry

_REPLY_TO: Final = re.compile(rb"^[A-Za-z0-9_.-]{1,64}\Z")
_PLAIN: Final = re.compile(rb"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_KNOWN: Final = frozenset({REQUEST_ID, REQUEST_REPLY_TO, REQUEST_ACTOR, REQUEST_MESSAGE})
_NUDGE: Final = frozenset({WAKE})


class Malformed(NamedTuple):
    """An entry that is no request, and what is wrong. It is answered if it names a reply stream and an id."""

    entry: Entry
    id: UUID | None
    reply_to: str | None
    problem: ErrorReply
    timer: None = None


class _BadEntry(Exception):
    def __init__(self, field: str, message: str) -> None:
        self.problem = ErrorReply(code=ErrorCode.INVALID_MESSAGE, message=message, field=field)


@dataclass(frozen=True, slots=True)
class Place:
    """What decoding must know: where the entries are read, and how large their messages may be."""

    partition: int
    partitions: int
    max_message_bytes: int


def is_nudge(entry: Entry) -> bool:
    """Return whether an entry, which is no request, says that something has come due."""
    return entry.fields.keys() == _NUDGE


def decode(entry: Entry, place: Place) -> Incoming | Malformed:
    """Return the request that an entry carries, or what is wrong with it; never raises."""
    request_id: UUID | None = None
    reply_to: str | None = None
    try:
        reply_to = _reply_to(entry)
        request_id = _request_id(entry)
        request = _request(entry, place.max_message_bytes)
        _check_place(request, place)
        actor = _actor(entry)
        return Incoming(entry, request_id, reply_to, request, digest_of(entry.fields[REQUEST_MESSAGE]), actor)
    except _BadEntry as bad:
        return Malformed(entry, request_id, reply_to, bad.problem)


def answers_to(entry: Entry) -> str | None:
    """Return the client that waits for the answer to an entry, None when there is none; the message is not decoded."""
    try:
        _request_id(entry)
        return _reply_to(entry)
    except _BadEntry:
        return None


def _reply_to(entry: Entry) -> str | None:
    named = entry.fields.get(REQUEST_REPLY_TO)
    return None if named is None else _client(named)


@lru_cache(maxsize=4_096)
def _client(named: bytes) -> str:
    if not _REPLY_TO.match(named):
        raise _BadEntry("reply_to", "reply_to must be 1 to 64 letters, digits, '_', '.' or '-'")
    return named.decode()


def _actor(entry: Entry) -> str | None:
    named = entry.fields.get(REQUEST_ACTOR)
    return None if named is None else _named_actor(named)


@lru_cache(maxsize=4_096)
def _named_actor(named: bytes) -> str:
    try:
        return checked_actor(named.decode())
    except UnicodeDecodeError:
        raise _BadEntry("actor", "actor must be UTF-8") from None
    except ValueError as error:
        raise _BadEntry("actor", f"actor {error}") from None


def _request_id(entry: Entry) -> UUID:
    named = entry.fields.get(REQUEST_ID, b"")
    if not _PLAIN.match(named):
        raise _BadEntry("id", "id must be a UUID in its canonical form, in lower case; it names the request for ever")
    # A pattern checks the form, because UUID() takes twice as long.
    return UUID(int=int(named.replace(b"-", b""), 16))


def _request(entry: Entry, max_message_bytes: int) -> Request:
    body = entry.fields.get(REQUEST_MESSAGE)
    if body is None:
        raise _BadEntry("message", "the entry has no field 'message' with the request as JSON")
    if len(body) > max_message_bytes:
        raise _BadEntry("message", f"the message has {len(body)} bytes, at most {max_message_bytes} are accepted")
    if unknown := entry.fields.keys() - _KNOWN:
        name = min(unknown).decode(errors="replace")[:100]
        raise _BadEntry(name, f"the entry has a field {name!r} that the protocol does not know")
    try:
        return request_from(body)
    except ValidationError as error:
        _check_version(body)
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = "type" if problem["type"].startswith("union_tag") else _path(problem["loc"])
        raise _BadEntry(field, f"{field}: {problem['msg']}"[:1_000]) from None


def _check_version(body: bytes) -> None:
    """Raise what is wrong with a message of another version, whatever else is: that follows from it."""
    try:
        version = orjson.loads(body).get("v", PROTOCOL_VERSION)
    except (ValueError, AttributeError):
        return
    if version not in VERSIONS_READ:
        read = " and ".join(map(str, VERSIONS_READ))
        raise _BadEntry("v", f"v: this engine reads version {read} of the protocol, and not {version!r:.100}")


def _check_place(request: Request, place: Place) -> None:
    field, belongs = kind_of(request).place(request, place.partitions)
    if belongs != place.partition:
        # If it were carried out here, it would have no order among the other requests of its tree.
        raise _BadEntry(field, f"{field}: this belongs to partition {belongs}, and was pushed to {place.partition}")


def digest_of(body: bytes) -> int:
    """Return a digest of the message, a signed number of 64 bits; the order of the fields does not matter."""
    try:
        plain = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError):
        # orjson refuses some messages, such as one with a very large number: the digest is of the bytes then.
        plain = body
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big", signed=True)


def _path(location: tuple[int | str, ...]) -> str:
    # The first step of the path names the kind of request, which is no field.
    return ".".join(str(step) for step in location[1:])[:200] or "message"
