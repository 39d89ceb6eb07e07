"""How a read is cut into transactions: limits hold from where they were set, and no statement grows too large."""

from uuid import uuid4

from statewright.messages import ReadLimit, Request, SetLimit
from statewright_worker.drain.decoding import Incoming
from statewright_worker.drain.drain import SEGMENT_BYTES, segments
from statewright_worker.streams.proposals import Entry

READ = ReadLimit(tag="database")
SET = SetLimit(tag="database", concurrency_limit=1)
HALF = bytes(SEGMENT_BYTES // 2)


def taken(request: Request, body: bytes = b"") -> Incoming:
    return Incoming(Entry("1-0", {b"message": body}), uuid4(), None, request, 0)


def lengths(*requests: Incoming) -> list[int]:
    return [len(segment) for segment in segments(requests)]


def test_a_limit_that_is_set_begins_a_segment() -> None:
    assert lengths(taken(READ), taken(READ), taken(SET), taken(READ), taken(SET)) == [2, 2, 1]


def test_a_segment_does_not_outgrow_a_statement() -> None:
    assert lengths(*[taken(READ, HALF)] * 5) == [2, 2, 1]


def test_a_message_that_is_too_large_for_a_segment_stands_alone() -> None:
    assert lengths(taken(READ), taken(READ, HALF + HALF + b"."), taken(READ)) == [1, 1, 1]
