"""How a read is cut into transactions: by bytes, so that no statement grows too large, and round what stands alone."""

from uuid import uuid4

from statewright import State
from statewright.protocol.requests import DeleteRun, Propose, ReadLimit, ReadRun, Request, SetLimit
from statewright_worker.drain.drain import SEGMENT_BYTES, segments
from statewright_worker.requests.base import Incoming
from statewright_worker.requests.kinds import kind_of
from statewright_worker.streams.proposals import Entry

READ = ReadLimit(tag="database")
SET = SetLimit(tag="database", concurrency_limit=1)
PROPOSE = Propose(run_id=uuid4(), state=State.pending())
HALF = bytes(SEGMENT_BYTES // 2)


def taken(request: Request, body: bytes = b"") -> Incoming:
    return Incoming(Entry("1-0", {b"message": body}), uuid4(), None, request, 0)


def lengths(*requests: Incoming) -> list[int]:
    return [len(segment) for segment in segments(requests)]


def test_a_limit_is_set_in_one_transaction_with_what_is_beside_it() -> None:
    assert lengths(taken(READ), taken(READ), taken(SET), taken(READ), taken(SET)) == [5]


def test_large_answers_count_as_much_as_large_messages() -> None:
    read = ReadRun(run_id=uuid4())
    fit = SEGMENT_BYTES // kind_of(read).answer_bytes
    assert lengths(*[taken(read)] * (2 * fit + 1)) == [fit, fit, 1]


def test_a_segment_does_not_outgrow_a_statement() -> None:
    assert lengths(*[taken(PROPOSE, HALF)] * 5) == [2, 2, 1]


def test_a_message_that_is_too_large_for_a_segment_stands_alone() -> None:
    assert lengths(taken(PROPOSE), taken(PROPOSE, HALF + HALF + b"."), taken(PROPOSE)) == [1, 1, 1]


def test_a_deletion_stands_alone() -> None:
    delete = DeleteRun(run_id=uuid4())
    every: list[Request] = [PROPOSE, PROPOSE, delete, delete, PROPOSE, delete]
    assert lengths(*[taken(request) for request in every]) == [2, 1, 1, 1, 1]
