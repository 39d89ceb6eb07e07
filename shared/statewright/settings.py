"""The settings of a client: read once, from arguments or from `STATEWRIGHT_*`, and frozen."""

from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import parse_qs

from pydantic import Field, RedisDsn, SecretStr, StringConstraints, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import ConnectionPool

from statewright.errors import ConfigurationError
from statewright.values import MAX_PARTITIONS, TAKES_DURATIONS, Actor

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"

_REDIS_URL = TypeAdapter(RedisDsn)
_FORM = "must look like redis://host:6379/0, rediss://… or unix:///path/to/socket"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class ClientSettings(BaseSettings):
    """What a producer or a subscriber must know. Durations are seconds, also where they are given as such; sizes are
    bytes."""

    model_config = SettingsConfigDict(env_prefix="STATEWRIGHT_", frozen=True, extra="ignore")

    redis_url: SecretStr = SecretStr(DEFAULT_REDIS_URL)
    namespace: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "statewright"
    actor: Actor | None = None
    """Who is told to have done what this client asks for; None says nobody."""
    partitions: Annotated[int, Field(ge=1, le=MAX_PARTITIONS)] | None = None
    """Only checked: the number is fixed when the first worker starts, and clients learn it from Redis."""
    max_message_bytes: Annotated[int, Field(ge=1_024, le=100_000_000)] = 1_048_576
    answer_timeout: Annotated[float, Field(gt=0), TAKES_DURATIONS] = 30.0
    max_backlog: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000
    """How many requests of one partition may be unanswered; beyond, they are refused before they are sent."""
    max_backlog_bytes: Annotated[int, Field(ge=1_024)] = 67_108_864
    """How much memory of Redis the unanswered requests of one partition may take, about."""
    wait_for_room: Annotated[float, Field(ge=0), TAKES_DURATIONS] = 0.0
    """How long a request may wait for room in its partition before it is refused."""

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr) -> SecretStr:
        _check_redis_url(url.get_secret_value())
        return url

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Return the settings from `given` (None means not given) and the environment.

        Raises ConfigurationError with one sentence per wrong setting, naming its environment variable.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise ConfigurationError(_in_sentences(error)) from None


def _check_redis_url(url: str) -> None:
    """Raise ValueError, without the URL's secrets, unless a connection can be made out of it."""
    scheme, _, rest = url.partition("://")
    if "sentinel" in scheme or "cluster" in scheme:
        raise ValueError(
            f"{scheme}:// is not served: name a single Redis, such as the primary that a Sentinel watches, or an"
            " address that always leads to it, as redis://host:6379/0"
        )
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    if scheme != "unix":
        if "@" in path or "#" in rest or ("@" in query and "@" not in authority and "=" not in query.partition("@")[0]):
            raise ValueError(
                "in a user's name or password, these characters must be written as percent codes: / as %2F, ? as %3F,"
                " # as %23, % as %25"
            )
        try:
            _REDIS_URL.validate_python(url)
        except ValidationError:
            raise ValueError(_FORM) from None
        if path and not path.isdecimal():
            raise ValueError("what follows the host must be the number of a database, as in redis://host:6379/0")
    _check_parameters(url)


def _check_parameters(url: str) -> None:
    said = parse_qs(url.partition("?")[2])
    for name in _FILES:
        for path in said.get(name, ()):
            if not Path(path).is_file():
                raise ValueError(f"{name} must name a file, and {path!r} is none")
    try:
        # This makes only the object, and connects to nothing.
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except TypeError as error:
        raise ValueError(f"a parameter behind the ? is not known: {str(error).rpartition(' ')[2]}") from None


def _in_sentences(error: ValidationError) -> str:
    return "; ".join(
        f"STATEWRIGHT_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )
