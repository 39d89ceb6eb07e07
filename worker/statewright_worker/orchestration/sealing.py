"""States as the engine keeps them, frozen with all that is in them, and as a user's rule gets them, free to change."""

import math
from typing import Any, Final, NoReturn, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from statewright.runs import MAX_RETRY_DELAY_SECONDS
from statewright.states import ProposedState, State, StateDetails
from statewright.values import Message, Name

MAX_DELAY_SECONDS: Final = MAX_RETRY_DELAY_SECONDS
"""The longest wait in a verdict, ten years; a producer that must wait longer gets another WAIT after that time."""

_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)
_REASON: Final[TypeAdapter[str]] = TypeAdapter(Message)

AnyState = TypeVar("AnyState", bound=State | ProposedState)


class ThawedStateDetails(StateDetails):
    """The details of a thawed state."""

    model_config = ConfigDict(frozen=False)


class ThawedState(State):
    """A copy of a state that a rule may change as it likes; handed back, it is sealed again."""

    model_config = ConfigDict(frozen=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return _fields(self) == _fields(other)

    __hash__ = None  # type: ignore[assignment]  # what can change cannot be a key


def _refuse_change(*_: object, **__: object) -> NoReturn:
    raise TypeError("the data of a state that the engine keeps cannot be changed; change a copy of the state")


class FrozenList(list[Any]):
    """A JSON array that nobody changes."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse_change
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse_change

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def __deepcopy__(self, memo: object) -> list[Any]:
        return [thawed_json(item) for item in self]


class FrozenDict(dict[str, Any]):
    """A JSON object that nobody changes."""

    __setitem__ = __delitem__ = __ior__ = _refuse_change
    setdefault = update = pop = popitem = clear = _refuse_change

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __deepcopy__(self, memo: object) -> dict[str, Any]:
        return {key: thawed_json(item) for key, item in self.items()}


def frozen_json(value: Any) -> Any:
    """Return a copy of a JSON value that cannot be changed; what is frozen already is returned as it is."""
    match value:
        case FrozenDict() | FrozenList():
            return value
        case dict():
            return FrozenDict({key: frozen_json(item) for key, item in value.items()})
        case list():
            return FrozenList([frozen_json(item) for item in value])
        case _:
            return value


def thawed_json(value: Any) -> Any:
    """Return a copy of a JSON value that can be changed with no effect on the original."""
    match value:
        case dict():
            return {key: thawed_json(item) for key, item in value.items()}
        case list():
            return [thawed_json(item) for item in value]
        case _:
            return value


def thawed(state: State | None) -> State | None:
    """Return a copy of the state that can be changed with no effect on the original."""
    if state is None:
        return None
    details = ThawedStateDetails.trusted(**state.state_details.__dict__)
    return ThawedState.trusted(**{**state.__dict__, "data": thawed_json(state.data), "state_details": details})


def freeze_data(state: State | None) -> None:
    """Freeze the data of a state that the engine keeps, so that no rule changes what others see or what is written."""
    if state is not None:
        # The state stays the same object: the unit of work tells by identity whether a run has a new one.
        state.__dict__["data"] = frozen_json(state.data)


def sealed(state: AnyState) -> AnyState:
    """Return a copy of a state that a rule made or changed, in the frozen form.

    Raises ValueError, in one sentence, when it is not valid.
    """
    if not isinstance(state, State | ProposedState):
        raise ValueError(f"a {type(state).__name__} is no state; give a State, or make one with State.scheduled(...)")
    form: type[State | ProposedState] = State if isinstance(state, State) else ProposedState
    try:
        return cast("AnyState", form.model_validate(_fields(state)))
    except ValidationError as error:
        raise ValueError(f"the state that it made is not valid: {_in_a_sentence(error)}") from error


def checked_name(name: str) -> str:
    """Return the name of a state as it is. Raises ValueError when no state can have it."""
    return _checked(_NAME, "the name that it gave the state", name)


def checked_reason(reason: str) -> str:
    """Return the reason of a decision as it is. Raises ValueError when no verdict can have it."""
    return _checked(_REASON, "the reason that it gave", reason)


def checked_delay(delay_seconds: float) -> int:
    """Return the delay of a decision in whole seconds, rounded down. Raises ValueError when it is no delay."""
    is_number = isinstance(delay_seconds, int | float) and not isinstance(delay_seconds, bool)
    if not is_number or not 0 <= delay_seconds < math.inf:
        raise ValueError(f"the delay that it gave is {delay_seconds!r}; give seconds, 0 or more")
    return int(delay_seconds)


def _fields(state: State | ProposedState) -> dict[str, Any]:
    fields = dict(state)
    details = fields["state_details"]
    return {**fields, "state_details": dict(details) if isinstance(details, StateDetails) else details}


def _checked(adapter: TypeAdapter[str], what: str, value: str) -> str:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"{what} is not valid: {_in_a_sentence(error)}") from error


def _in_a_sentence(error: ValidationError) -> str:
    problems = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors(include_url=False)]
    return "; ".join(f"{place}: {problem}" if place else problem for place, problem in problems[:3])
