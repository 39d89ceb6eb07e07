"""The trace: what rules saw and decided, for whoever asks why. Rules note it only where they do not let things be."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from math import isfinite
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json, to_json

from statewright.explanations import RuleVerb
from statewright.states import ProposedState, State, StateType
from statewright_worker.orchestration.records import ParkedProposal

MAX_TRACE_BYTES: Final = 8_192
MAX_FACTS: Final = 20
MAX_ITEMS: Final = 10
MAX_TEXT: Final = 200
MAX_REASON: Final = 500
"""The verdict has the whole reason; a rule may have had others before."""
MAX_BITS: Final = 64
MAX_DEPTH: Final = 3

Json = dict[str, Any]


class Notes:
    """What the rules of a transition have noted: there are none until the first one does."""

    def __init__(self) -> None:
        self._saw: dict[type, Json] = {}
        self._decisions: dict[type, list[Json]] = {}
        self._last_types: dict[type, StateType | None] = {}

    def saw(self, rule: type, facts: Mapping[str, object]) -> None:
        """Note what a rule has seen."""
        seen = self._saw.setdefault(rule, {})
        for name, value in facts.items():
            if len(seen) < MAX_FACTS or name in seen:
                seen[said(name, MAX_TEXT)] = fact(value)

    def decided(
        self, rule: type, verb: RuleVerb, state: State | None, reason: str | None = None, delay: int | None = None
    ) -> None:
        """Note what a rule has decided, and what is proposed from then on."""
        decision: Json = {"verb": verb, "to": brief(state), "reason": reason and said(reason, MAX_REASON)}
        decision["delay_seconds"] = delay
        self._decisions.setdefault(rule, []).append(
            {name: value for name, value in decision.items() if value is not None}
        )
        if verb is not RuleVerb.RENAME:
            self._last_types[rule] = None if state is None else state.type

    def rules(
        self, rules: Sequence[type], entered: Iterable[str], left: Iterable[str], proposed: StateType | None
    ) -> list[Json]:
        """Return the rules' parts, given the names of those that were entered and left well, and the type that was
        proposed in the end."""
        entering, leaving = [*entered], Counter(left)
        return [self._part(rule, entering, leaving, proposed) for rule in rules]

    def _part(self, rule: type, entering: list[str], leaving: Counter[str], proposed: StateType | None) -> Json:
        name = rule.__name__
        part: Json = {"rule": name}
        if entering and entering[0] == name:
            del entering[0]
            if leaving[name]:
                leaving[name] -= 1
            elif self._last_types.get(rule, ...) is not proposed:
                # A rule whose own decision leads elsewhere is left without a word, and has not fizzled.
                part["fizzled"] = True
        else:
            part["entered"] = False
        if rule in self._decisions:
            part["decisions"] = self._decisions[rule]
        if rule in self._saw:
            part["saw"] = self._saw[rule]
        return part


def trace_as_json(**parts: Any) -> str:
    """Return a trace, made of the parts that it has, as JSON of bounded size."""
    told = {name: part for name, part in parts.items() if part is not None}
    encoded = to_json(told)
    if len(encoded) > MAX_TRACE_BYTES:
        # What the rules saw that have decided says most.
        told["is_cut"], told["rules"] = True, [_without_facts(rule) for rule in told["rules"]]
        encoded = to_json(told)
    if len(encoded) > MAX_TRACE_BYTES:
        told["rules"] = [rule for rule in told["rules"] if "decisions" in rule][:MAX_ITEMS]
        for rule in told["rules"]:
            rule.pop("saw", None)
            rule["decisions"] = rule["decisions"][-1:]
        encoded = to_json(told)
    return encoded.decode()


def _without_facts(rule: Json) -> Json:
    return rule if "decisions" in rule else {name: part for name, part in rule.items() if name != "saw"}


def brief(state: State | ProposedState | None) -> Json | None:
    """Return a state by its type and name, None for none."""
    return None if state is None else {"type": state.type, "name": state.name or state.type.capitalize()}


def said(text: str, most: int) -> str:
    """Return the beginning of a text, with what PostgreSQL cannot store escaped."""
    cut = text if len(text) <= most else f"{text[:most]}…"
    return cut.replace("\x00", "\\u0000").encode(errors="backslashreplace").decode()


def with_parking(trace: str | None, parked: ParkedProposal, withdrawn_by: str | None = None) -> str:
    """Return the trace of a decision, None for one without, with what is to be known of the time before it."""
    told: Json = {} if trace is None else from_json(trace)
    told |= {"parked_since": parked.since, "waited_for": parked.reason, "withdrawn_by": withdrawn_by}
    return to_json(told, exclude_none=True).decode()


def fact(value: object, depth: int = MAX_DEPTH) -> Any:
    """Return a fact as small JSON. Of a state it tells type and name, and of what it does not know the class alone, so
    that nothing gets into a trace that a state carries."""
    told: Any = f"<{type(value).__name__}>"
    match value:
        case Enum():
            told = fact(value.value)
        case None | bool() | datetime() | UUID():
            told = value
        case int() if value.bit_length() <= MAX_BITS:
            told = value
        case float():
            told = value if isfinite(value) else str(value)
        case str():
            told = said(value, MAX_TEXT)
        case timedelta():
            told = value.total_seconds()
        case State() | ProposedState():
            told = brief(value)
        case Mapping() if depth:
            told = {said(str(name), MAX_TEXT): fact(item, depth - 1) for name, item in [*value.items()][:MAX_ITEMS]}
        case list() | tuple() | set() | frozenset() if depth:
            told = [fact(item, depth - 1) for item in [*value][:MAX_ITEMS]]
    return told
