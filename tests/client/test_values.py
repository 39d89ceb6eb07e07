"""Field types: what PostgreSQL and JSON cannot hold is refused where it enters, in words that say why."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from statewright import InvalidRequest, ProposedState, RunPolicy, State, StateDetails, StateType, Verdict
from statewright.events import TRUNCATE_MESSAGES_AT, truncated
from statewright.protocol.requests import CreateFlowRun, Propose
from statewright.runs import MAX_PAUSE_KEYS, MAX_RETRIES, MAX_RETRY_DELAYS
from statewright.values import (
    MAX_CACHE_KEY_LENGTH,
    MAX_MESSAGE_LENGTH,
    MAX_NAME_LENGTH,
    CacheKey,
    Json,
    Message,
    Moment,
    Name,
)
from statewright.verdicts import MAX_DELAY_SECONDS

ID = UUID("01a200ef-06bf-7500-83c5-73e04725151e")
MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)
JSON: TypeAdapter[Any] = TypeAdapter(Json)
NAN, INFINITY = float("nan"), float("inf")
NEW_YORK = timezone(-timedelta(hours=5))


# -- moments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naive", [datetime(2030, 1, 1), "2030-01-01T12:00:00", "2030-01-01"])  # noqa: DTZ001
def test_a_moment_without_a_time_zone_is_refused(naive: object) -> None:
    with pytest.raises(ValidationError):
        MOMENT.validate_python(naive)


def test_a_naive_scheduled_time_is_refused_when_the_state_is_made() -> None:
    with pytest.raises(InvalidRequest, match="timezone"):
        State.scheduled(datetime(2030, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    "given",
    [
        "2030-01-01T12:00:00Z",
        "2030-01-01T13:30:00+01:30",
        datetime(2030, 1, 1, 7, tzinfo=NEW_YORK),
    ],
)
def test_a_moment_is_kept_in_utc(given: object) -> None:
    moment = MOMENT.validate_python(given)
    assert moment == datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert moment.tzinfo is UTC


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_first_and_the_last_moment_of_the_calendar_are_moments(moment: datetime) -> None:
    assert MOMENT.validate_json(MOMENT.dump_json(moment)) == moment


@pytest.mark.parametrize(
    "beyond",
    [
        "9999-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00+00:01",
        datetime.max.replace(tzinfo=NEW_YORK),
    ],
)
def test_a_moment_that_leaves_the_calendar_in_utc_is_refused(beyond: object) -> None:
    with pytest.raises(ValidationError, match="outside the years 1 to 9999"):
        MOMENT.validate_python(beyond)


def test_microseconds_survive_the_wire() -> None:
    moment = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert MOMENT.validate_json(MOMENT.dump_json(moment)) == moment


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    ["\x00", "a\x00b", ["\x00"], {"key": "\x00"}, {"\x00": 1}, {"a": [{"b": ["c", {"d\x00": None}]}]}, [[[["x\x00"]]]]],
)
def test_a_nul_is_refused_anywhere_in_data(data: Any) -> None:
    with pytest.raises(InvalidRequest, match="NUL character"):
        State.completed(data=data)


@pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
def test_a_number_that_json_cannot_express_is_refused_anywhere_in_data(number: float) -> None:
    anywhere: list[Any] = [number, [1, number], {"a": number}, {"a": [[{"b": number}]]}]
    for data in anywhere:
        with pytest.raises(InvalidRequest, match="NaN or infinity"):
            State.failed(data=data)


@pytest.mark.parametrize("body", ["NaN", "-Infinity", "1e999", "[[-1e999]]"])
def test_such_a_number_is_refused_on_the_wire_too(body: str) -> None:
    with pytest.raises(ValidationError, match="NaN or infinity"):
        JSON.validate_json(body)


@pytest.mark.parametrize("data", [b"bytes", {1, 2}, object(), datetime(2030, 1, 1, tzinfo=UTC), {1: 2}, {"a": (1, 2)}])
def test_data_that_is_not_json_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest):
        State.completed(data=data)


@pytest.mark.parametrize(
    "data",
    [None, True, 0, -1, 10**300, 1.5, 1e308, "", "ä\n\t\U0001f3c3", [], {}, {"": None}, {"a": [None, {"b": [[]]}]}],
)
def test_everything_else_that_json_knows_is_kept_as_it_is(data: Any) -> None:
    assert State.completed(data=data).data == data
    assert JSON.validate_json(JSON.dump_json(data)) == data


@pytest.mark.parametrize("data", ["\ud800", ["\udfff"], {"\ud800": 1}])
def test_text_that_is_not_unicode_is_refused_in_data(data: Any) -> None:
    with pytest.raises(InvalidRequest):
        State.completed(data=data)


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "longest"), [(Name, MAX_NAME_LENGTH), (CacheKey, MAX_CACHE_KEY_LENGTH)])
def test_text_has_a_greatest_length(kind: Any, longest: int) -> None:
    text: TypeAdapter[str] = TypeAdapter(kind)
    assert text.validate_python("ä" * longest) == "ä" * longest
    with pytest.raises(ValidationError, match="at most"):
        text.validate_python("ä" * (longest + 1))


@pytest.mark.parametrize("kind", [Name, CacheKey])
@pytest.mark.parametrize("text", ["\x00", "before\x00", "\x00after", "line\nline\x00\nline\n", "\ud800"])
def test_text_contains_neither_nul_nor_what_is_not_unicode(kind: Any, text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(text)


@pytest.mark.parametrize("kind", [Name, Message, CacheKey])
def test_text_may_have_several_lines_and_any_script(kind: Any) -> None:
    text = "erste\r\nzweite\n\t漢字 \U0001f3c3\n"
    assert TypeAdapter(kind).validate_python(text) == text


def test_a_name_is_not_empty_but_a_cache_key_may_be() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        TypeAdapter(Name).validate_python("")
    assert TypeAdapter(CacheKey).validate_python("") == ""


# -- messages ----------------------------------------------------------------------------------------------------------

MESSAGE: TypeAdapter[str] = TypeAdapter(Message)
LEFT_OUT = re.compile(r"\.\.\.(\d+) characters left out\.\.\.")


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("a\x00b", r"a\u0000b"),
        ("\x00\x00", r"\u0000\u0000"),
        ("\ud800", r"\ud800"),
        ("ä\udfffö \U0001f3c3", "ä\\udfffö \U0001f3c3"),
        ("\x00ä\ud800", r"\u0000ä\ud800"),
        (b"a\x00\xffb", r"a\u0000\xffb"),
        ("plain\n\x1b[31mred\x7f", "plain\n\x1b[31mred\x7f"),
    ],
)
def test_what_a_message_cannot_hold_is_escaped_and_never_refused(message: str, kept: str) -> None:
    assert MESSAGE.validate_python(message) == kept
    assert State.failed(message=message).message == kept
    assert MESSAGE.validate_json(MESSAGE.dump_json(kept)) == kept


def test_a_nul_in_a_message_is_escaped_on_the_wire_too() -> None:
    assert MESSAGE.validate_json('"a\\u0000b"', strict=True) == r"a\u0000b"


@pytest.mark.parametrize("left_out", [41, 99, 100, 1_750_000])
def test_a_long_message_is_cut_in_its_middle(left_out: int) -> None:
    half = MAX_MESSAGE_LENGTH // 2
    message = "ä" * half + "x" * left_out + "ö" * half
    cut = MESSAGE.validate_python(message)
    assert cut == "ä" * half + f"...{left_out} characters left out..." + "ö" * half
    assert len(cut) <= len(message)


@pytest.mark.parametrize("beyond", [0, 1, 2, 26, 27, 28, 40])
def test_a_message_that_a_note_would_hardly_shorten_stays_as_it_is(beyond: int) -> None:
    message = "ä" * (MAX_MESSAGE_LENGTH + beyond)
    assert MESSAGE.validate_python(message) == message
    assert truncated("ä" * (TRUNCATE_MESSAGES_AT + beyond)) == "ä" * (TRUNCATE_MESSAGES_AT + beyond)


@pytest.mark.parametrize("length", [*range(100_000, 100_200), 1_000_000])
def test_no_message_becomes_longer_when_it_is_cut_and_what_was_cut_is_not_cut_again(length: int) -> None:
    cut = truncated("x" * length)
    assert cut is not None
    assert len(cut) <= length
    assert truncated(cut) == cut
    for note in LEFT_OUT.finditer(cut):
        assert cut == "x" * 50_000 + note[0] + "x" * 50_000
        assert int(note[1]) == length - 100_000


@pytest.mark.parametrize("message", [7, ["a"], True])
def test_a_message_is_text(message: object) -> None:
    with pytest.raises(ValidationError):
        MESSAGE.validate_python(message, strict=True)


# -- run policies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"retries": -1},
        {"retry_delay": -0.5},
        {"retry_delay": (1, -1)},
        {"retry_delay": NAN},
        {"retry_delay": (INFINITY,)},
        {"retry_jitter_factor": -1},
        {"retry_type": "sometimes"},
        {"attempts": 3},
        {"retries": MAX_RETRIES + 1},
        {"retry_delay": (1,) * (MAX_RETRY_DELAYS + 1)},
        {"pause_keys": frozenset(map(str, range(MAX_PAUSE_KEYS + 1)))},
        {"pause_keys": frozenset({"k" * (MAX_NAME_LENGTH + 1)})},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_its_field(fields: dict[str, Any]) -> None:
    [name] = fields
    with pytest.raises(InvalidRequest, match=f"^{name}") as raised:
        RunPolicy(**fields)
    assert raised.value.field.startswith(name)


def test_a_policy_may_be_as_large_as_its_bounds_say() -> None:
    RunPolicy(
        retries=MAX_RETRIES,
        retry_delay=(1,) * MAX_RETRY_DELAYS,
        pause_keys=frozenset(map(str, range(MAX_PAUSE_KEYS))),
    )


def test_values_cannot_be_changed_and_know_their_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunPolicy().retries = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        StateDetails.model_validate({"colour": "red"})
    assert StateType("RUNNING") is StateType.RUNNING


def test_a_number_that_no_parser_would_take_back_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than 1024 bits"):
        State.completed(data=[10**5_000])


# -- made by hand or decoded -------------------------------------------------------------------------------------------

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
MADE_BY_HAND: dict[str, tuple[Callable[[], object], str]] = {
    "scheduled": (lambda: State.scheduled(NAIVE), "scheduled_time"),
    "awaiting_retry": (lambda: State.awaiting_retry(NAIVE), "scheduled_time"),
    "pending": (lambda: State.pending(message=7), "message"),  # type: ignore[arg-type]
    "running": (lambda: State.running(cache_key="k" * (MAX_CACHE_KEY_LENGTH + 1)), "cache_key"),
    "completed": (lambda: State.completed(data=[NAN]), "data"),
    "failed": (lambda: State.failed(data="\x00"), "data"),
    "cancelled": (lambda: State.cancelled(message=[]), "message"),  # type: ignore[arg-type]
    "crashed": (lambda: State.crashed(message=1.5), "message"),  # type: ignore[arg-type]
    "paused": (lambda: State.paused(timeout_at=NAIVE), "pause_timeout"),
    "name": (lambda: State.scheduled(name=""), "name"),
    "details": (lambda: StateDetails(pause_key=""), "pause_key"),
    "proposed": (lambda: ProposedState(type="WALKING"), "type"),
    "policy": (lambda: RunPolicy(retries="many"), "retries"),
}


@pytest.mark.parametrize(("make", "field"), MADE_BY_HAND.values(), ids=MADE_BY_HAND)
def test_what_is_made_out_of_wrong_arguments_is_refused_by_the_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as raised:
        make()
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (RunPolicy, '{"retries": -1}'),
        (CreateFlowRun, f'{{"run_id": "{ID}", "name": "n", "policy": {{"retries": -1}}}}'),
        (Propose, f'{{"run_id": "{ID}", "state": {{"type": "RUNNING", "state_details": {{"pause_key": ""}}}}}}'),
        (ProposedState, '{"type": "WALKING"}'),
    ],
)
def test_what_is_decoded_is_refused_as_pydantic_refuses(kind: type[BaseModel], body: str) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate_json(body)
    with pytest.raises(ValidationError):
        kind.model_validate(json.loads(body))


@pytest.mark.parametrize("seconds", [-1, MAX_DELAY_SECONDS + 1])
def test_a_verdict_tells_no_delay_that_no_database_can_hold(seconds: int) -> None:
    body = f'{{"proposal_id": "{ID}", "run_id": "{ID}", "status": "WAIT", "delay_seconds": {seconds}}}'
    with pytest.raises(ValidationError, match="delay_seconds"):
        Verdict.model_validate_json(body)
