"""A worker's settings take durations from code, as a client's do, and refuse what is none by the setting's name."""

from datetime import timedelta
from typing import Any

import pendulum
import pytest

from statewright import ConfigurationError
from statewright_worker.settings import WorkerSettings
from tests.client.test_durations import NO_DURATIONS, TWO_MINUTES


def settings(**given: Any) -> WorkerSettings:
    return WorkerSettings.load(database_url="postgresql://", **given)


@pytest.mark.parametrize("duration", [1.5, timedelta(seconds=1.5), pendulum.duration(seconds=1.5)], ids=repr)
@pytest.mark.parametrize("setting", ["startup_timeout", "rule_timeout"])
def test_a_timeout_may_be_a_duration(setting: str, duration: Any) -> None:
    assert getattr(settings(**{setting: duration}), setting) == 1.5


@pytest.mark.parametrize("duration", TWO_MINUTES, ids=repr)
@pytest.mark.parametrize("setting", ["concurrency_slot_wait_seconds", "reply_seconds", "dead_letter_seconds"])
def test_whole_seconds_may_be_a_duration(setting: str, duration: Any) -> None:
    assert getattr(settings(**{setting: duration}), setting) == 120


@pytest.mark.parametrize("wrong", [*NO_DURATIONS, timedelta(days=1, seconds=0.5)], ids=repr)
@pytest.mark.parametrize(
    "setting",
    ["startup_timeout", "rule_timeout", "concurrency_slot_wait_seconds", "reply_seconds", "dead_letter_seconds"],
)
def test_what_is_no_duration_is_refused_by_the_name_of_its_setting(setting: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^STATEWRIGHT_{setting.upper()}: "):
        settings(**{setting: wrong})
