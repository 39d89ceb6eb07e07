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


@pytest.mark.parametrize("said", ["129600", "129600.0", "129600s", "2160m", "36h", "1.5d", "P1DT12H", "PT36H"])
def test_a_duration_may_be_said_in_words(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEWRIGHT_KEEP_RUNS", said)
    monkeypatch.setenv("STATEWRIGHT_DEAD_LETTER_SECONDS", said)
    assert (settings().keep_runs, settings().dead_letter_seconds) == (129_600, 129_600)


@pytest.mark.parametrize("said", ["", "-1d", "1 fortnight", "P", "d", "0"])
def test_what_says_no_duration_is_refused(said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^STATEWRIGHT_KEEP_RUNS: "):
        settings(keep_runs=said)


@pytest.mark.parametrize("wrong", [*NO_DURATIONS, timedelta(days=1, seconds=0.5)], ids=repr)
@pytest.mark.parametrize(
    "setting",
    ["startup_timeout", "rule_timeout", "concurrency_slot_wait_seconds", "reply_seconds", "dead_letter_seconds"],
)
def test_what_is_no_duration_is_refused_by_the_name_of_its_setting(setting: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^STATEWRIGHT_{setting.upper()}: "):
        settings(**{setting: wrong})
