"""Settings: from arguments or the environment, checked once, and silent about secrets."""

from typing import Any

import pytest
from pydantic import ValidationError

from statewright import Client, ConfigurationError
from statewright.settings import ClientSettings

SECRET_URL = "redis://user:s3cret@redis.example:6380/2"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ClientSettings.model_fields:
        monkeypatch.delenv(f"STATEWRIGHT_{name.upper()}", raising=False)


def test_without_any_setting_a_local_redis_is_meant() -> None:
    settings = ClientSettings.load()
    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
    assert (settings.namespace, settings.partitions) == ("statewright", None)
    assert (settings.max_message_bytes, settings.answer_timeout) == (1_048_576, 30.0)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("STATEWRIGHT_REDIS_URL", SECRET_URL, SECRET_URL),
        ("STATEWRIGHT_NAMESPACE", "staging", "staging"),
        ("STATEWRIGHT_PARTITIONS", "16", 16),
        ("STATEWRIGHT_MAX_MESSAGE_BYTES", "2048", 2048),
        ("STATEWRIGHT_ANSWER_TIMEOUT", "2.5", 2.5),
        ("STATEWRIGHT_MAX_BACKLOG", "100", 100),
        ("STATEWRIGHT_MAX_BACKLOG_BYTES", "2048", 2048),
        ("STATEWRIGHT_WAIT_FOR_ROOM", "2.5", 2.5),
    ],
)
def test_every_setting_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: object
) -> None:
    monkeypatch.setenv(variable, value)
    read = getattr(ClientSettings.load(), variable.removeprefix("STATEWRIGHT_").lower())
    assert expected in (read, getattr(read, "get_secret_value", lambda: None)())


def test_an_argument_beats_the_environment_and_none_is_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEWRIGHT_NAMESPACE", "outside")
    assert ClientSettings.load(namespace="inside").namespace == "inside"
    assert ClientSettings.load(namespace=None).namespace == "outside"


WRONG = [
    ("STATEWRIGHT_REDIS_URL", "http://redis.example"),
    ("STATEWRIGHT_REDIS_URL", "redis.example:6379"),
    ("STATEWRIGHT_REDIS_URL", ""),
    ("STATEWRIGHT_NAMESPACE", "with space"),
    ("STATEWRIGHT_NAMESPACE", "{braces}"),
    ("STATEWRIGHT_NAMESPACE", ""),
    ("STATEWRIGHT_NAMESPACE", "x" * 65),
    ("STATEWRIGHT_MAX_BACKLOG", "0"),
    ("STATEWRIGHT_MAX_BACKLOG_BYTES", "1000"),
    ("STATEWRIGHT_WAIT_FOR_ROOM", "-1"),
    ("STATEWRIGHT_WAIT_FOR_ROOM", "nan"),
    ("STATEWRIGHT_PARTITIONS", "0"),
    ("STATEWRIGHT_PARTITIONS", "1025"),
    ("STATEWRIGHT_PARTITIONS", "eight"),
    ("STATEWRIGHT_MAX_MESSAGE_BYTES", "1023"),
    ("STATEWRIGHT_ANSWER_TIMEOUT", "0"),
    ("STATEWRIGHT_ANSWER_TIMEOUT", "nan"),
]


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_setting_is_one_sentence_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        ClientSettings.load()
    sentence = str(raised.value)
    assert sentence.startswith(f"{variable}: ")
    assert len(sentence) > len(variable) + 10
    assert "\n" not in sentence
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_the_same_wrong_argument_is_named_in_the_same_way(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable}: "):
        ClientSettings.load(**{variable.removeprefix("STATEWRIGHT_").lower(): value})


def test_several_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigurationError) as raised:
        ClientSettings.load(partitions=0, namespace="with space")
    sentences = str(raised.value).split("; ")
    assert {sentence.partition(":")[0] for sentence in sentences} == {"STATEWRIGHT_PARTITIONS", "STATEWRIGHT_NAMESPACE"}


@pytest.mark.parametrize(
    "url", [SECRET_URL, "rediss://redis.example", "unix:///run/redis.sock", "redis://127.0.0.1", "redis://[::1]:6379/1"]
)
def test_every_form_of_redis_url_is_accepted(url: str) -> None:
    assert ClientSettings.load(redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize("shown", [repr, str, lambda settings: settings.model_dump_json()])
def test_the_secret_in_the_url_is_masked_wherever_settings_are_shown(shown: Any) -> None:
    assert "s3cret" not in shown(ClientSettings.load(redis_url=SECRET_URL))


def test_the_secret_in_a_wrong_url_is_not_told_in_the_error() -> None:
    with pytest.raises(ConfigurationError) as raised:
        ClientSettings.load(redis_url="http://user:s3cret@redis.example")
    assert "s3cret" not in str(raised.value)
    assert "s3cret" not in repr(raised.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ClientSettings.load().namespace = "other"  # type: ignore[misc]


def test_a_client_refuses_wrong_settings_before_it_connects() -> None:
    with pytest.raises(ConfigurationError, match=r"^STATEWRIGHT_PARTITIONS: "):
        Client(partitions=0)


def test_a_client_does_not_tell_its_secret() -> None:
    assert "s3cret" not in repr(Client(SECRET_URL))
