"""Errors: one class per reason, with what a program needs to know as attributes."""

from uuid import UUID

import pytest
from pydantic import ValidationError

import statewright
from statewright import (
    Delivery,
    InvalidRequest,
    MessageTooLarge,
    NoAnswer,
    Overloaded,
    PartitionCountMismatch,
    RequestFailed,
    StatewrightError,
)
from statewright.errors import error_from
from statewright.protocol.replies import ErrorCode, ErrorReply, reply_from
from statewright.protocol.requests import Propose

ID = UUID("01a200ef-06bf-7500-83c5-73e04725151e")


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_is_an_exception_of_the_same_name(code: ErrorCode) -> None:
    error = error_from(ErrorReply(code=code, message="what was wrong", field="state"), ID)
    assert type(error).__name__.lower() == code.value.replace("_", "")
    assert isinstance(error, RequestFailed)
    assert (str(error), error.code, error.field, error.request_id) == ("what was wrong", code, "state", ID)


def test_a_code_of_a_later_engine_is_a_failed_request() -> None:
    reply = reply_from(b'{"type":"error","v":1,"code":"too_late","message":"it is too late"}')
    assert isinstance(reply, ErrorReply)
    error = error_from(reply, ID)
    assert (type(error), str(error), error.code) == (RequestFailed, "it is too late", "too_late")


def test_every_public_error_can_be_caught_as_one() -> None:
    errors = [value for value in vars(statewright).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) > 10
    assert all(issubclass(error, StatewrightError) for error in errors)


def test_an_invalid_request_names_its_field() -> None:
    with pytest.raises(ValidationError) as raised:
        Propose.model_validate({"run_id": ID, "state": {"type": "WALKING"}})
    error = InvalidRequest(raised.value)
    assert error.field == "state.type"
    assert str(error).startswith("state.type: ")


def test_errors_about_numbers_say_both_numbers() -> None:
    too_large = MessageTooLarge(size=2_000, limit=1_024)
    assert (too_large.size, too_large.limit) == (2_000, 1_024)
    assert all(part in str(too_large) for part in ("2000", "1024", "STATEWRIGHT_MAX_MESSAGE_BYTES"))
    mismatch = PartitionCountMismatch(configured=4, actual=8)
    assert (mismatch.configured, mismatch.actual) == (4, 8)
    assert all(part in str(mismatch) for part in ("4", "STATEWRIGHT_PARTITIONS=8"))


def test_an_invalid_request_can_be_told_in_plain_words() -> None:
    error = InvalidRequest("run", "must be an id")
    assert (error.field, str(error)) == ("run", "run: must be an id")


@pytest.mark.parametrize("delivery", Delivery)
def test_no_answer_says_under_which_id_to_ask_again_and_how_far_the_request_got(delivery: Delivery) -> None:
    error = NoAnswer(ID, 2.5, delivery, "Redis: LOADING")
    assert (error.proposal_id, error.timeout, error.delivery) == (ID, 2.5, delivery)
    assert all(part in str(error) for part in (str(ID), "within 2.5 s", "(Redis: LOADING)"))
    assert ("queued" in str(error)) is (delivery is Delivery.UNANSWERED)
    assert ("not sent" in str(error)) is (delivery is Delivery.NOT_SENT)


def test_who_has_no_room_is_told_how_much_is_unanswered_for_how_long() -> None:
    error = Overloaded.unsent(ID, 3, unanswered=10_000, size=2_000_000, oldest_seconds=12.34)
    assert (error.partition, error.unanswered, error.bytes, error.oldest_seconds) == (3, 10_000, 2_000_000, 12.34)
    assert all(part in str(error) for part in ("partition 3", "10000", "2000000", "12.3 s", "STATEWRIGHT_MAX_BACKLOG"))


def test_what_has_been_waiting_for_long_is_told_in_words() -> None:
    error = Overloaded.unsent(ID, 3, unanswered=1, size=1, oldest_seconds=2 * 86_400 + 3 * 3_600 + 0.4)
    assert "has been waiting for 2 days 3 hours;" in str(error)
