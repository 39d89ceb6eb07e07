"""JSON Schemas of the messages: requests and queries as they may be sent, replies and events as they are told.

What is sent is refused when it has a field that nobody knows. What is told may get more fields within a version, so its
schemas allow them: a reader passes over what it does not know.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from protocol.generator.messages import Model
from statewright.protocol.requests import PROTOCOL_VERSION, Heartbeat, ReadLimit, SetLimit
from statewright.runs import RunPolicy
from statewright.states import StateDetails
from statewright.values import MAX_INTEGER_BITS, MAX_JSON_DEPTH

Json = dict[str, Any]

SENT: Final = ("request.", "query.")
"""How the names of what is sent begin."""
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_ANY_JSON: Final = (
    f"Any JSON: nested {MAX_JSON_DEPTH} levels deep at most, integers of {MAX_INTEGER_BITS} bits at most, texts without"
    " NUL and lone surrogates."
)
_GIVEN: Final = {"not": {"type": "null"}}
_OF_ONE: Final = {
    "oneOf": [{"required": [name], "properties": {name: _GIVEN}} for name in ("tag", "name", "deployment_id")]
}
_BETWEEN_FIELDS: Final[dict[Model, list[Json]]] = {
    # What the models check with code of their own.
    ReadLimit: [_OF_ONE],
    SetLimit: [
        _OF_ONE,
        {
            "if": {"properties": {"concurrency_limit": {"type": "null"}}},
            "then": {"properties": {"period_seconds": {"type": "null"}, "lease_seconds": {"type": "null"}}},
        },
    ],
    Heartbeat: [
        {
            "anyOf": [
                {"required": ["executor"], "properties": {"executor": _GIVEN}},
                {"required": ["run_ids"], "properties": {"run_ids": {"minItems": 1}}},
            ]
        }
    ],
    StateDetails: [
        {
            "if": {"required": ["executor"], "properties": {"executor": _GIVEN}},
            "then": {"required": ["lease"], "properties": {"lease": _GIVEN}},
        }
    ],
    RunPolicy: [{"properties": {"limits": {"uniqueItems": True}}}],
}


def sent(model: Model) -> Json:
    """Return the schema of a request or a query."""
    return _schema(model, _Sent)


def told(model: Model) -> Json:
    """Return the schema of a reply or an event."""
    return _schema(model, _Told)


def schema_of(name: str, model: Model) -> Json:
    """Return the schema of a message by its name, which says whether it is sent or told."""
    return sent(model) if name.startswith(SENT) else told(model)


def as_file(name: str, schema: Json) -> Json:
    """Return the schema as it stands alone, under an id of its own."""
    return {"$schema": DRAFT, "$id": f"urn:statewright:protocol:{PROTOCOL_VERSION}:{name}", **schema}


def _schema(model: Model, generator: "type[_Messages]") -> Json:
    schema = model.model_json_schema(schema_generator=generator, mode=generator.MODE)
    if "JsonValue" in schema.get("$defs", {}):
        schema["$defs"]["JsonValue"] = {"description": _ANY_JSON}
    return {"title": schema.pop("title"), **schema}


class _Messages(GenerateJsonSchema):
    MODE: Any

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        # OpenAPI's keyword, which AsyncAPI has in another form. The constant `type` of each says as much.
        made.pop("discriminator", None)
        return made

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        return _in_words_of_json(super().enum_schema(schema))

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made, model = super().model_schema(schema), schema["cls"]
        described = field_docs(model)
        fields: Json = _type_first(made.get("properties", {}))
        made["properties"] = fields
        for name, field in fields.items():
            if name in described:
                field.setdefault("description", described[name])
            if isinstance(field.get("default"), dict):
                # All that is left out of it has a default of its own.
                field["default"] = {}
        required = {name for name in fields if self.is_always_there(model, name, fields[name])}
        if required:
            made["required"] = [name for name in fields if name in required]
        return _in_words_of_json(made)

    def is_always_there(self, model: Model, name: str, field: Json) -> bool:
        """Return whether a message has the field in any case."""
        # A type has a default in Python, and no message is read without it.
        return model.model_fields[name].is_required() or (name == "type" and "const" in field)


class _Sent(_Messages):
    MODE = "validation"

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        if rules := _BETWEEN_FIELDS.get(schema["cls"]):
            made["allOf"] = rules
        return made


class _Told(_Messages):
    MODE = "serialization"

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        made.pop("additionalProperties", None)
        for name in made.get("required", ()):
            made["properties"][name].pop("default", None)
        return made

    def is_always_there(self, model: Model, name: str, field: Json) -> bool:
        # Only what is null may be left out, and what the model says so of.
        told = model.model_fields[name]
        return told.exclude_if is None and (
            told.is_required() or told.get_default(call_default_factory=True) is not None
        )


def _type_first(fields: Json) -> Json:
    first: Json = {name: fields[name] for name in ("type", "v") if name in fields}
    return {**first, **fields}


def _in_words_of_json(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Let the descriptions, which are docstrings, say what is so outside Python as well."""
    if "description" in schema:
        schema["description"] = _plain(schema["description"])
    return schema


def _plain(docstring: str) -> str:
    paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n")]
    told = [paragraph for paragraph in paragraphs if not paragraph.startswith(("Raises ", "Make one with "))]
    return " ".join(told).replace("None", "null")


def field_docs(model: Model) -> dict[str, str]:
    """Return what stands under each field of a model, and of those that it is derived from."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.__module__.startswith("statewright."):
            docs |= _docs_in(base)
    return docs


def _docs_in(model: type) -> dict[str, str]:
    [defined] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    body = defined.body if isinstance(defined, ast.ClassDef) else []
    docs = {}
    for field, below in pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = _plain(doc)
    return docs


Visit = Callable[[str], str]


def with_references(schema: Any, renamed: Visit) -> Any:
    """Return the schema with each reference to a definition renamed."""
    if isinstance(schema, dict):
        return {
            key: renamed(value) if key == "$ref" and isinstance(value, str) else with_references(value, renamed)
            for key, value in schema.items()
        }
    return [with_references(item, renamed) for item in schema] if isinstance(schema, list) else schema
