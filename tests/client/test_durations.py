"""Times and durations: a client takes the standard library's and pendulum's, and says which argument is wrong."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pendulum
import pytest

from statewright import Client, ConfigurationError, InvalidRequest, ProposedState, RunPolicy, State
from statewright.client.requests import seconds_of
from statewright.protocol.requests import CreateFlowRun, encode, request_from
from statewright.runs import MAX_RETRY_DELAY_SECONDS
from statewright.settings import ClientSettings

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
IN_BERLIN = pendulum.datetime(2030, 1, 1, 13, tz="Europe/Berlin")
TWO_MINUTES = [120, 120.0, timedelta(minutes=2), pendulum.duration(minutes=2), IN_BERLIN.add(minutes=2) - IN_BERLIN]
NO_DURATIONS = [timedelta(seconds=-1), pendulum.duration(days=-1), IN_BERLIN, NOON, "soon", [None]]


@pytest.mark.parametrize("duration", TWO_MINUTES, ids=repr)
def test_a_duration_is_kept_as_seconds(duration: Any) -> None:
    assert RunPolicy(retry_delay=duration).retry_delay == 120
    assert RunPolicy(retry_delay=[duration, 1]).retry_delay == (120, 1)
    settings = ClientSettings.load(answer_timeout=duration, wait_for_room=duration)
    assert (settings.answer_timeout, settings.wait_for_room) == (120, 120)
    assert seconds_of(duration) == 120


@pytest.mark.parametrize("wrong", [*NO_DURATIONS, timedelta(seconds=MAX_RETRY_DELAY_SECONDS + 1)], ids=repr)
def test_what_is_no_delay_is_refused_by_the_name_of_its_field(wrong: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        RunPolicy(retry_delay=wrong)
    assert raised.value.field.startswith("retry_delay")


@pytest.mark.parametrize("setting", ["answer_timeout", "wait_for_room"])
@pytest.mark.parametrize("wrong", NO_DURATIONS, ids=repr)
def test_what_is_no_timeout_is_refused_by_the_name_of_its_setting(setting: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^STATEWRIGHT_{setting.upper()}: "):
        Client(**{setting: wrong})


@pytest.mark.parametrize("wrong", NO_DURATIONS, ids=repr)
def test_what_is_no_timeout_of_a_proposal_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be 0 seconds or more") as raised:
        seconds_of(wrong)
    assert raised.value.field == "timeout"


@pytest.mark.parametrize("moment", [NOON, IN_BERLIN, pendulum.instance(NOON)], ids=repr)
def test_a_moment_is_kept_whichever_zone_it_names(moment: datetime) -> None:
    assert State.scheduled(moment).state_details.scheduled_time == NOON
    assert State.awaiting_retry(moment).state_details.scheduled_time == NOON
    assert State.paused(timeout_at=moment).state_details.pause_timeout == NOON
    assert State.completed(cache_key="key", cache_expiration=moment).state_details.cache_expiration == NOON
    written = State.scheduled(moment).model_dump_json()
    assert ProposedState.model_validate_json(written) == State.scheduled(NOON)


@pytest.mark.parametrize(
    "wrong", [pendulum.naive(2030, 1, 1), pendulum.date(2030, 1, 1), pendulum.duration(days=1), timedelta(1)], ids=repr
)
def test_what_is_no_moment_is_refused_by_the_name_of_its_field(wrong: Any) -> None:
    for make in (State.scheduled, State.awaiting_retry):
        with pytest.raises(InvalidRequest) as raised:
            make(wrong)
        assert raised.value.field == "scheduled_time"


def test_the_wire_has_seconds_alone() -> None:
    policy = RunPolicy(retry_delay=(timedelta(minutes=2), 1))
    request = CreateFlowRun(run_id=UUID("01a200ef-06bf-7500-83c5-73e04725151e"), name="nightly", policy=policy)
    assert b'"retry_delay":[120.0,1.0]' in encode(request)
    assert request_from(encode(request)) == request
    with pytest.raises(ValueError, match="retry_delay"):
        RunPolicy.model_validate_json('{"retry_delay": "PT2M"}')


def test_who_uses_no_pendulum_does_not_wait_for_it() -> None:
    script = "import sys, statewright; print('pendulum' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "False\n"
    )
