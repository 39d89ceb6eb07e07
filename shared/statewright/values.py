"""The field types that every message and value shares: text, times and JSON that PostgreSQL can store."""

import math
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

from statewright.errors import InvalidRequest

MAX_NAME_LENGTH = 200
MAX_MESSAGE_LENGTH = 250_000
MAX_CACHE_KEY_LENGTH = 2_000
MAX_TAGS = 100
MAX_LABELS = 50
MAX_LABEL_KEY_LENGTH = 100
MAX_LABEL_LENGTH = 255
MAX_IDEMPOTENCY_KEY_LENGTH = 2_000
MAX_ACTOR_LENGTH = 128
MAX_JSON_DEPTH = 100
MAX_INTEGER_BITS = 1_024
MAX_PARTITIONS = 1_024
MAX_POSITION = 2**63 - 1
"""The greatest number of an event within its partition, and more than a run can have states."""

ENGINE_ITSELF = "statewright"
"""The actor of what the engine does by itself: it ends leases and pauses, and lets runs follow their flow run."""

_ROOM_FOR_THE_NOTE = 40
_NO_NUL = r"^[^\x00]*$"


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

_make: Any = type.__call__


class Frozen(BaseModel):
    """A value: it cannot be changed. It accepts no field that it does not know, unless a client reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    _every_field: ClassVar[set[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        super().__pydantic_init_subclass__(**arguments)
        cls._every_field = set(cls.model_fields)

    @classmethod
    def trusted(cls, **fields: Any) -> Self:
        """Return a value made of all its fields, which are valid already: nothing is checked or filled in.

        This does what `model_construct` does, in half of the time: every transition makes several values out of others.
        """
        return cls._made_of(fields)

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced by values that are valid already."""
        return self._made_of({**self.__dict__, **changes})

    @classmethod
    def _made_of(cls, fields: dict[str, Any]) -> Self:
        value = object.__new__(cls)
        set_attribute = object.__setattr__
        set_attribute(value, "__dict__", fields)
        # All values share one set, because a frozen value never adds to it.
        set_attribute(value, "__pydantic_fields_set__", cls._every_field)
        set_attribute(value, "__pydantic_extra__", None)
        set_attribute(value, "__pydantic_private__", None)
        return value


class _MadeByHand(ModelMetaclass):
    """Changes what calling the class does, and not what decoding does: pydantic decodes without calling the class."""

    def __call__(cls, *arguments: Any, **fields: Any) -> Any:  # noqa: N805 (a metaclass: its instances are classes)
        try:
            return _make(cls, *arguments, **fields)
        except ValidationError as error:
            raise InvalidRequest(error) from None


class Offered(Frozen, metaclass=_MadeByHand):
    """A value that a producer or a rule makes out of its own arguments: wrong ones raise InvalidRequest.

    Where it is decoded, alone or within a message, they raise pydantic's ValidationError like those of every value.
    """


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years 1 to 9999 once it is converted to UTC") from None


def _storable(value: Any) -> Any:
    """Return `value` when PostgreSQL's jsonb can hold it; raise ValueError naming what it cannot hold.

    It goes level by level, and looks at all values of a kind together: one by one, a megabyte of small values would
    keep a worker from everything else for a second.
    """
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        _check_text("".join([item for item in level if type(item) is str]))
        _check_numbers([item for item in level if type(item) is int], [item for item in level if type(item) is float])
        objects = [item for item in level if type(item) is dict]
        _check_text("".join(chain.from_iterable(objects)))
        deeper = [item for item in level if type(item) is list] + [item.values() for item in objects]
        level = list(chain.from_iterable(deeper))
        if not level:
            return value
    raise ValueError(f"is nested deeper than {MAX_JSON_DEPTH} levels; store it as text instead")


def _check_numbers(integers: list[int], floats: list[float]) -> None:
    if not all(map(math.isfinite, floats)):
        raise ValueError("contains a number that JSON cannot express (NaN or infinity)")
    if integers and any(extreme.bit_length() > MAX_INTEGER_BITS for extreme in (min(integers), max(integers))):
        raise ValueError(f"contains a number of more than {MAX_INTEGER_BITS} bits; store it as text instead")


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise ValueError("contains a NUL character, which PostgreSQL cannot store; encode binary data as base64")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is no Unicode text") from None


def truncated(message: str, keep: int) -> str:
    """Return `message`, or its first and last halves with a note between when it is longer than `keep` characters.

    A message that the note would hardly make shorter stays as it is, and so does one that was cut before.
    """
    omitted = len(message) - keep
    if omitted <= _ROOM_FOR_THE_NOTE:
        return message
    half = keep // 2
    return f"{message[:half]}...{omitted} characters left out...{message[-half:]}"


def _sayable(message: Any) -> Any:
    """Return the text with what PostgreSQL cannot store escaped as in JSON, and cut where it is too long."""
    if isinstance(message, bytes):
        message = message.decode(errors="backslashreplace")
    elif not isinstance(message, str):
        return message
    if "\x00" in message:
        message = message.replace("\x00", "\\u0000")
    if not message.isascii():
        # What UTF-8 cannot express is half of a surrogate pair.
        message = message.encode(errors="backslashreplace").decode()
    return truncated(message, MAX_MESSAGE_LENGTH)


def checked_actor(actor: str) -> str:
    """Return the name of an actor as it is. Raises ValueError when a producer may not have it."""
    if not (0 < len(actor) <= MAX_ACTOR_LENGTH and actor.isprintable()):
        raise ValueError(f"must be 1 to {MAX_ACTOR_LENGTH} printable characters")
    if actor == ENGINE_ITSELF:
        raise ValueError(f"{ENGINE_ITSELF!r} is the engine itself; take another name")
    return actor


Duration = float | timedelta
"""A number of seconds, or a duration of the standard library's or of pendulum's, whose class is derived from it."""


_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SHORT: Final = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw]?)\s*$")
_ISO_8601: Final = TypeAdapter(timedelta)


def _in_seconds(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return seconds_said(value)
    return tuple(map(_in_seconds, value)) if isinstance(value, list | tuple) else value


def seconds_said(text: str) -> float | str:
    """Return the seconds of a duration like `30d`, `P30D` (ISO 8601) or `2592000`; any other text as it is."""
    short = _SHORT.match(text)
    if short is not None:
        return float(short[1]) * _UNITS[short[2]]
    if text.lstrip("+-").startswith("P"):
        with suppress(ValidationError):
            return _ISO_8601.validate_python(text).total_seconds()
    return text


class _TakesDurations:
    """Lets a field of seconds take durations in Python and in settings; the wire has only numbers."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        # Only for Python values: JSON is decoded without this call.
        lenient = core_schema.no_info_before_validator_function(_in_seconds, schema)
        return core_schema.json_or_python_schema(json_schema=schema, python_schema=lenient)


TAKES_DURATIONS = _TakesDurations()
"""The annotation of a field that holds seconds."""

Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A point in time with its zone, kept in UTC. A naive datetime is refused: nobody can know what it means."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_LENGTH, pattern=_NO_NUL)]
Actor = Annotated[str, AfterValidator(checked_actor)]
"""Who asks for something: what a producer says of itself, which nobody checks."""
Message = Annotated[str, BeforeValidator(_sayable)]
"""A text for people. It is never refused: what cannot be stored is escaped, and what is too long is cut."""
CacheKey = Annotated[str, StringConstraints(max_length=MAX_CACHE_KEY_LENGTH, pattern=_NO_NUL)]
Tags = Annotated[tuple[Name, ...], Field(max_length=MAX_TAGS)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_KEY_LENGTH, pattern=_NO_NUL)]
Label = Annotated[str, StringConstraints(max_length=MAX_LABEL_LENGTH, pattern=_NO_NUL)]
Labels = Annotated[dict[LabelKey, Label], Field(max_length=MAX_LABELS)]
"""What a producer wants to remember of a run: small texts by name, which no rule reads."""
Json = Annotated[JsonValue, AfterValidator(_storable)]
