"""Decoding: from a stream entry to a request, or to what is wrong with it."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

import orjson

from statewright.protocol.channels import REQUEST_ACTOR, REQUEST_MESSAGE, WAKE
from statewright.protocol.replies import ErrorReply
from statewright.protocol.requests import Request, request_from
from statewright.values import checked_actor
from statewright_worker.requests.base import Incoming
from statewright_worker.requests.kinds import kind_of
from statewright_worker.streams.entries import BadEntry, client_of, id_of, message_of
from statewright_worker.streams.proposals import Entry

_NUDGE: Final = frozenset({WAKE})


class Malformed(NamedTuple):
    """An entry that is no request, and what is wrong. It is answered if it names a reply stream and an id."""

    entry: Entry
    id: UUID | None
    reply_to: str | None
    problem: ErrorReply
    timer: None = None


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
        reply_to = client_of(entry)
        request_id = id_of(entry)
        request: Request = message_of(entry, place.max_message_bytes, request_from)
        _check_place(request, place)
        actor = _actor(entry)
        return Incoming(entry, request_id, reply_to, request, digest_of(entry.fields[REQUEST_MESSAGE]), actor)
    except BadEntry as bad:
        return Malformed(entry, request_id, reply_to, bad.problem)


def answers_to(entry: Entry) -> str | None:
    """Return the client that waits for the answer to an entry, None when there is none; the message is not decoded."""
    try:
        id_of(entry)
        return client_of(entry)
    except BadEntry:
        return None


def _actor(entry: Entry) -> str | None:
    named = entry.fields.get(REQUEST_ACTOR)
    return None if named is None else _named_actor(named)


@lru_cache(maxsize=4_096)
def _named_actor(named: bytes) -> str:
    try:
        return checked_actor(named.decode())
    except UnicodeDecodeError:
        raise BadEntry("actor", "actor must be UTF-8") from None
    except ValueError as error:
        raise BadEntry("actor", f"actor {error}") from None


def _check_place(request: Request, place: Place) -> None:
    field, belongs = kind_of(request).place(request, place.partitions)
    if belongs != place.partition:
        # If it were carried out here, it would have no order among the other requests of its tree.
        raise BadEntry(field, f"{field}: this belongs to partition {belongs}, and was pushed to {place.partition}")


def digest_of(body: bytes) -> int:
    """Return a digest of the message, a signed number of 64 bits; the order of the fields does not matter."""
    try:
        plain = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError):
        # orjson refuses some messages, such as one with a very large number: the digest is of the bytes then.
        plain = body
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big", signed=True)
