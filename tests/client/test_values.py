"""Field types: what PostgreSQL and JSON cannot hold is refused where it enters, in words that say why."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from statewright import RunPolicy, State, StateDetails, StateType
from statewright.values import (
    MAX_CACHE_KEY_LENGTH,
    MAX_NAME_LENGTH,
    MAX_TEXT_LENGTH,
    CacheKey,
    Json,
    Moment,
    Name,
    Text,
)

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
    with pytest.raises(ValidationError, match="timezone"):
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
    with pytest.raises(ValidationError, match="NUL character"):
        State.completed(data=data)


@pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
def test_a_number_that_json_cannot_express_is_refused_anywhere_in_data(number: float) -> None:
    anywhere: list[Any] = [number, [1, number], {"a": number}, {"a": [[{"b": number}]]}]
    for data in anywhere:
        with pytest.raises(ValidationError, match="NaN or infinity"):
            State.failed(data=data)


@pytest.mark.parametrize("body", ["NaN", "-Infinity", "1e999", "[[-1e999]]"])
def test_such_a_number_is_refused_on_the_wire_too(body: str) -> None:
    with pytest.raises(ValidationError, match="NaN or infinity"):
        JSON.validate_json(body)


@pytest.mark.parametrize("data", [b"bytes", {1, 2}, object(), datetime(2030, 1, 1, tzinfo=UTC), {1: 2}, {"a": (1, 2)}])
def test_data_that_is_not_json_is_refused(data: Any) -> None:
    with pytest.raises(ValidationError):
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
    with pytest.raises(ValidationError):
        State.completed(data=data)


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "longest"), [(Name, MAX_NAME_LENGTH), (Text, MAX_TEXT_LENGTH), (CacheKey, MAX_CACHE_KEY_LENGTH)]
)
def test_text_has_a_greatest_length(kind: Any, longest: int) -> None:
    text: TypeAdapter[str] = TypeAdapter(kind)
    assert text.validate_python("ä" * longest) == "ä" * longest
    with pytest.raises(ValidationError, match="at most"):
        text.validate_python("ä" * (longest + 1))


@pytest.mark.parametrize("kind", [Name, Text, CacheKey])
@pytest.mark.parametrize("text", ["\x00", "before\x00", "\x00after", "line\nline\x00\nline\n", "\ud800"])
def test_text_contains_neither_nul_nor_what_is_not_unicode(kind: Any, text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(text)


@pytest.mark.parametrize("kind", [Name, Text, CacheKey])
def test_text_may_have_several_lines_and_any_script(kind: Any) -> None:
    text = "erste\r\nzweite\n\t漢字 \U0001f3c3\n"
    assert TypeAdapter(kind).validate_python(text) == text


def test_a_name_is_not_empty_but_a_cache_key_may_be() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        TypeAdapter(Name).validate_python("")
    assert TypeAdapter(CacheKey).validate_python("") == ""


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
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunPolicy(**fields)


def test_values_cannot_be_changed_and_know_their_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunPolicy().retries = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        StateDetails.model_validate({"colour": "red"})
    assert StateType("RUNNING") is StateType.RUNNING


def test_a_number_that_no_parser_would_take_back_is_refused() -> None:
    with pytest.raises(ValidationError, match="more than 1024 bits"):
        State.completed(data=[10**5_000])
