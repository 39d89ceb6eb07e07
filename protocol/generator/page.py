"""The tables of PROTOCOL.md: each message field by field, its answers, and every error."""

import json
import re
from collections.abc import Callable, Container, Iterable
from typing import Final

from protocol.generator.examples import EXAMPLES
from protocol.generator.messages import ADVICE, CONVERSATIONS, MESSAGES
from protocol.generator.schemas import SENT, Json, schema_of

_SECTION: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.S)
_TEXTS: Final = {"uuid": "UUID", "date-time": "time", "duration": "duration"}
_SEQUENCE: Final = "^[0-9]{19}$"
_ALIKE: Final = {"Event": "change", "Era": "era"}
"""Values of replies that are messages as well."""


def with_tables(page: str) -> str:
    """Return the page with its tables made anew."""
    return _SECTION.sub(lambda found: f"{found[1]}\n{_SECTIONS[found[2]]()}\n{found[3]}", page)


def _messages(kind: str) -> str:
    return "\n".join(_message(name) for name in MESSAGES if name.startswith(kind))


def _message(name: str) -> str:
    _, _, own = name.partition(".")
    schema = schema_of(name, MESSAGES[name])
    answers = f"\n{_answers(own)}\n" if name.startswith(SENT) else ""
    example = json.dumps(EXAMPLES[name][-1].message, ensure_ascii=False, separators=(",", ":"))
    described = f"#### {own}\n\n{schema['description']}\n{answers}"
    return f"{described}\n{_fields(schema, is_sent=name.startswith(SENT))}\n\n```json\n{example}\n```\n"


def _answers(name: str) -> str:
    answers = CONVERSATIONS[name]
    replies = " or ".join(f"`{reply}`" for reply in answers.replies)
    return f"Answered by {replies}, or by `error` with {_listed(answers.errors)}."


def _listed(codes: Iterable[str]) -> str:
    return ", ".join(f"`{code}`" for code in codes)


def _values(kinds: Iterable[str], but: Container[str] = ()) -> str:
    """Return what the messages of some kinds are made of, each once."""
    parts = _parts(kinds)
    return "\n".join(_value(name, parts[name]) for name in sorted(parts.keys() - {"JsonValue"}) if name not in but)


def _parts(kinds: Iterable[str]) -> Json:
    parts: Json = {}
    for name, model in MESSAGES.items():
        if name.partition(".")[0] in kinds:
            parts |= schema_of(name, model).get("$defs", {})
    return parts


def _value(name: str, part: Json) -> str:
    is_sent = part.get("additionalProperties") is False
    described = _fields(part, is_sent=is_sent) if "properties" in part else f"One of {_is(part)}."
    return f"#### {name}\n\n{part['description']}\n\n{described}\n"


def _fields(schema: Json, *, is_sent: bool) -> str:
    required = schema.get("required", ())
    rows = ["| field | is | |", "| --- | --- | --- |"]
    for name, field in schema["properties"].items():
        may = "" if name in required else _left_out(field, is_sent=is_sent)
        rows.append(f"| `{name}` | {_is(field)}{may} | {field.get('description', '')} |")
    return "\n".join(rows)


def _left_out(field: Json, *, is_sent: bool) -> str:
    default = field.get("default")
    if not is_sent or default in (None, {}, []):
        return "; may be left out" if is_sent else "; may be missing"
    return f"; left out: `{json.dumps(default)}`"


def _is(field: Json) -> str:
    """Return in words what a value may be."""
    if "$ref" in field:
        return _named(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_is(one) for one in field["anyOf"]))
    if "oneOf" in field:
        return " or ".join(_is(one) for one in field["oneOf"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(one)}`" for one in field["enum"])
    return _OF_TYPE[field["type"]](field)


def _named(name: str) -> str:
    return "any JSON" if name == "JsonValue" else f"[{name}](#{_ALIKE.get(name, name).lower()})"


def _text(field: Json) -> str:
    if "format" in field:
        return _TEXTS[field["format"]]
    if field.get("pattern") == _SEQUENCE:
        return "text of 19 digits"
    most, least = field.get("maxLength"), field.get("minLength", 0)
    if most is not None:
        return f"text of {least} to {most:,} characters"
    return f"text like `{field['pattern']}`" if "pattern" in field else "text"


def _number(field: Json, word: str) -> str:
    least, most = (
        field.get("minimum", field.get("exclusiveMinimum")),
        field.get("maximum", field.get("exclusiveMaximum")),
    )
    if least is None or most is None:
        return word if least is None else f"{word}, at least {least}"
    most = most - 1 if "exclusiveMaximum" in field else most
    above = "above " if "exclusiveMinimum" in field else ""
    return f"{word}, {above}{least:,} to {most:,}"


def _list(field: Json) -> str:
    most = f", {field['maxItems']:,} at most" if "maxItems" in field else ""
    return f"list of {_is(field['items'])}{most}" if "items" in field else f"list{most}"


def _object(field: Json) -> str:
    most = f", {field['maxProperties']:,} at most" if "maxProperties" in field else ""
    keys = field.get("propertyNames")
    named = f" under names ({_is({'type': 'string', **keys})})" if keys else ""
    [values] = [*field.get("patternProperties", {}).values()] or [field["additionalProperties"]]
    return f"object: {_is(values)}{named}{most}"


def _errors() -> str:
    rows = ["| code | means | what to do |", "| --- | --- | --- |"]
    rows += [f"| `{code}` | {advice.means} | {advice.do} |" for code, advice in ADVICE.items()]
    return "\n".join(rows) + "\n"


_OF_TYPE: Final[dict[str, Callable[[Json], str]]] = {
    "string": _text,
    "integer": lambda field: _number(field, "whole number"),
    "number": lambda field: _number(field, "number"),
    "boolean": lambda _: "true or false",
    "null": lambda _: "null",
    "array": _list,
    "object": _object,
}
_SECTIONS: Final[dict[str, Callable[[], str]]] = {
    "requests": lambda: _messages("request."),
    "queries": lambda: _messages("query."),
    "sent": lambda: _values(["request", "query"]),
    "replies": lambda: _messages("reply."),
    "events": lambda: _messages("event."),
    "told": lambda: _values(["reply", "event"], but={*_parts(["request", "query"]), *_ALIKE}),
    "errors": _errors,
}
