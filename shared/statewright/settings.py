"""The settings of a client: read once, from arguments or from `STATEWRIGHT_*`, and frozen."""

from typing import Annotated, Any, Self

from pydantic import Field, RedisDsn, SecretStr, StringConstraints, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from statewright.errors import ConfigurationError
from statewright.values import MAX_PARTITIONS

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"

_REDIS_URL = TypeAdapter(RedisDsn)


class ClientSettings(BaseSettings):
    """What a producer or a subscriber must know. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="STATEWRIGHT_", frozen=True, extra="ignore")

    redis_url: SecretStr = SecretStr(DEFAULT_REDIS_URL)
    namespace: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "statewright"
    partitions: Annotated[int, Field(ge=1, le=MAX_PARTITIONS)] | None = None
    """Only checked: the number is fixed when the first worker starts, and clients learn it from Redis."""
    max_message_bytes: Annotated[int, Field(ge=1_024, le=100_000_000)] = 1_048_576
    answer_timeout: Annotated[float, Field(gt=0)] = 30.0
    max_backlog: Annotated[int, Field(ge=1, le=100_000_000)] = 10_000
    """How many requests of one partition may be unanswered; beyond, they are refused before they are sent."""
    max_backlog_bytes: Annotated[int, Field(ge=1_024)] = 67_108_864
    """How much memory of Redis the unanswered requests of one partition may take, about."""
    wait_for_room: Annotated[float, Field(ge=0)] = 0.0
    """How long a request may wait for room in its partition before it is refused."""

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if not text.startswith("unix://"):
            try:
                _REDIS_URL.validate_python(text)
            except ValidationError:
                raise ValueError("must look like redis://host:6379/0, rediss://… or unix:///path/to/socket") from None
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


def _in_sentences(error: ValidationError) -> str:
    return "; ".join(
        f"STATEWRIGHT_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )
