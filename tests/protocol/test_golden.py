"""Golden files: every message as it was written once, which every later version must read as it was read then.

A file has a `message`, and what was `read` of it: a later version may read more of it, but nothing else. What a version
no longer speaks keeps its files as long as messages of that version are read.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from statewright.events import AnyEvent, event_from
from statewright.protocol.queries import Query, query_from
from statewright.protocol.replies import Reply, reply_from
from statewright.protocol.requests import PROTOCOL_VERSION, Request, request_from

READERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "request": request_from,
    "query": query_from,
    "reply": reply_from,
    "event": event_from,
}
MESSAGES: Final[dict[str, set[type[BaseModel]]]] = {
    "request": set(get_args(get_args(Request)[0])),
    "query": set(get_args(Query)),
    "reply": set(get_args(Reply)),
    "event": set(get_args(AnyEvent)),
}
LATER: Final = "from a later version"


class Golden(NamedTuple):
    """A golden file: `version/kind.type.json`, or `version/kind.type.variant.json`."""

    name: str
    kind: str
    message: dict[str, Any]
    read: dict[str, Any]

    def body(self) -> bytes:
        return json.dumps(self.message).encode()


def golden_file(path: Path) -> Golden:
    told = json.loads(path.read_text())
    return Golden(f"{path.parent.name}/{path.stem}", path.name.partition(".")[0], told["message"], told["read"])


FILES: Final = [golden_file(path) for path in sorted((Path(__file__).parent / "golden").glob("v*/*.json"))]
EVERY = pytest.mark.parametrize("golden", FILES, ids=lambda golden: golden.name)
REQUESTS, REPLIES, OF_ENGINE = (
    pytest.mark.parametrize(
        "golden", [golden for golden in FILES if golden.kind in kinds], ids=lambda golden: golden.name
    )
    for kinds in (("request", "query"), ("reply",), ("reply", "event"))
)


def differences(was: Any, now: Any, path: str = "") -> Iterable[str]:
    """Yield where what is read now differs from what was read; what there is beside it does not matter."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name, value in was.items():
            yield from differences(value, now.get(name, "nothing"), f"{path}.{name}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for n, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from differences(one, other, f"{path}[{n}]")
    elif was != now:
        yield f"{path} was {was!r} and is {now!r}"


def with_more(value: Any) -> Any:
    """Return a message with a field more in each of its objects."""
    if isinstance(value, dict):
        return {**{name: with_more(inner) for name, inner in value.items()}, "later": LATER}
    return [with_more(inner) for inner in value] if isinstance(value, list) else value


@EVERY
def test_a_message_is_read_as_it_was(golden: Golden) -> None:
    read = READERS[golden.kind](golden.body())
    assert list(differences(golden.read, to_jsonable_python(read.model_dump()))) == []


@OF_ENGINE
def test_what_a_later_engine_says_beside_it_is_ignored(golden: Golden) -> None:
    read = READERS[golden.kind](json.dumps(with_more(golden.message)).encode())
    told = to_jsonable_python(read.model_dump())
    assert list(differences(golden.read, told)) == []
    assert "later" not in told


@REQUESTS
def test_a_request_with_a_field_that_is_not_known_is_refused(golden: Golden) -> None:
    with pytest.raises(ValidationError, match=r"later\n.*Extra inputs are not permitted"):
        READERS[golden.kind](json.dumps({**golden.message, "later": LATER}).encode())


@pytest.mark.parametrize("kind", READERS)
def test_no_message_is_without_a_golden_file(kind: str) -> None:
    """Each message of this version has one, and each of its fields stands in one of them."""
    seen: dict[type[BaseModel], set[str]] = {message: set() for message in MESSAGES[kind]}
    for golden in FILES:
        if golden.kind == kind and golden.name.startswith(f"v{PROTOCOL_VERSION}/"):
            seen[type(READERS[kind](golden.body()))] |= golden.message.keys()
    missing = {
        f"{message.__name__}.{field}"
        for message, fields in seen.items()
        for field in message.model_fields.keys() - fields
    }
    assert missing == set(), f"add them to files in tests/protocol/golden/v{PROTOCOL_VERSION}"


@REPLIES
def test_a_reply_begins_with_its_type_and_the_version(golden: Golden) -> None:
    written = reply_from(golden.body()).model_dump_json()
    assert written.startswith(f'{{"type":"{golden.message["type"]}","v":{PROTOCOL_VERSION},')
