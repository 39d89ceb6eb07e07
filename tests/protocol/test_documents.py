"""The documents of the protocol say what the models say, are valid, and let through what the engine reads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from pydantic import ValidationError

from protocol.generator.examples import EXAMPLES
from protocol.generator.files import FOLDER, made, there
from protocol.generator.messages import ADVICE, CONVERSATIONS, MESSAGES, QUERIES, REPLIES, REQUESTS
from protocol.generator.schemas import SENT
from statewright.events import event_from
from statewright.protocol.queries import query_from
from statewright.protocol.replies import ErrorCode, reply_from
from statewright.protocol.requests import PROTOCOL_VERSION, encode, request_from
from statewright_worker.requests.kinds import kind_of
from tests.client.test_messages import EXAMPLES as HOW_MANY
from tests.client.test_messages import REQUESTS as GENERATED
from tests.node import CHECKS

ASYNCAPI = FOLDER / "asyncapi.json"
READS = {"request": request_from, "query": query_from, "reply": reply_from, "event": event_from}
GOLDEN = [
    path
    for path in sorted((Path(__file__).parent / "golden" / f"v{PROTOCOL_VERSION}").glob("*.json"))
    # Golden replies leave out what an engine always says, to show that a reader does without.
    if not path.name.startswith("reply.")
]
WRITTEN = [(name, example.message) for name, examples in EXAMPLES.items() for example in examples]

ID = "01a200ef-06bf-7500-83c5-73e04725151e"
WRONG = [
    {"type": "propose", "run_id": ID},
    {"type": "propose", "run_id": ID, "state": {"type": "DONE"}},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING"}, "unknown": 1},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING", "unknown": 1}},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING"}, "v": 2},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING"}, "priority": "1"},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING", "name": "\x00"}},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING", "name": ""}},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING", "state_details": {"executor": "worker-7"}}},
    {"type": "propose", "run_id": ID, "state": {"type": "RUNNING", "state_details": {"lease": 0}}},
    {"type": "create_flow_run", "run_id": ID},
    {"type": "create_flow_run", "run_id": ID, "name": "x" * 201},
    {"type": "create_flow_run", "run_id": ID, "name": "x", "tags": ["t"] * 101},
    {"type": "create_flow_run", "run_id": ID, "name": "x", "policy": {"limits": ["gpu", "gpu"]}},
    {"type": "create_flow_run", "run_id": ID, "name": "x", "labels": {"": "y"}},
    {"type": "create_task_run", "run_id": ID, "name": "x", "flow_id": ID},
    {"type": "set_limit", "tag": "database"},
    {"type": "set_limit", "concurrency_limit": 1},
    {"type": "set_limit", "tag": "database", "name": "gpu", "concurrency_limit": 1},
    {"type": "set_limit", "tag": "database", "concurrency_limit": None, "period_seconds": 1},
    {"type": "read_limit"},
    {"type": "read_events", "partition": 1_024, "after": 0},
    {"type": "read_events", "partition": 0, "after": 2**63},
    {"type": "heartbeat", "partition": 0},
    {"type": "heartbeat", "partition": 0, "run_ids": []},
    {"type": "heartbeat", "partition": 0, "run_ids": [ID] * 1_001},
]


def schema_of(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((FOLDER / "schemas" / f"{name}.json").read_text()))


def test_the_documents_are_what_is_made_of_the_models() -> None:
    files = made()
    assert there() == files.keys()
    for path, text in files.items():
        assert path.read_text() == text, f"{path.name} is old: run `make protocol`"


@pytest.mark.parametrize("name", MESSAGES)
def test_a_schema_is_one_of_its_draft(name: str) -> None:
    Draft202012Validator.check_schema(schema_of(name).schema)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_says_what_it_means(name: str) -> None:
    schema = schema_of(name).schema
    for model in (schema, *schema.get("$defs", {}).values()):
        for field, about in model.get("properties", {}).items():
            assert "description" in about or "const" in about, f"{model['title']}.{field} has no docstring"


def test_every_message_has_an_example() -> None:
    assert EXAMPLES.keys() == MESSAGES.keys()


@pytest.mark.parametrize(("name", "message"), WRITTEN, ids=[name for name, _ in WRITTEN])
def test_an_example_is_read_and_fits_its_schema(name: str, message: dict[str, Any]) -> None:
    read: Any = READS[name.partition(".")[0]]
    assert isinstance(read(json.dumps(message).encode()), MESSAGES[name])
    schema_of(name).validate(message)
    document = json.loads(ASYNCAPI.read_text())
    # AsyncAPI's schemas are those of the older draft.
    Draft7Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]}).validate(message)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_message_fits_its_schema(path: Path) -> None:
    kind, name = path.name.split(".")[:2]
    schema_of(f"{kind}.{name}").validate(json.loads(path.read_text())["message"])


@pytest.mark.parametrize("strategy", GENERATED.values(), ids=[kind.__name__ for kind in GENERATED])
def test_what_a_client_sends_fits_its_schema(strategy: st.SearchStrategy[Any]) -> None:
    @HOW_MANY
    @given(strategy)
    def check(request: Any) -> None:
        schema_of(f"request.{request.type}").validate(json.loads(encode(request)))

    check()


@pytest.mark.parametrize("message", WRONG, ids=str)
def test_what_the_engine_refuses_fits_no_schema(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request_from(json.dumps(message).encode())
    assert not schema_of(f"request.{message['type']}").is_valid(message)


@pytest.mark.parametrize("name", [name for name in MESSAGES if not name.startswith(SENT)])
def test_what_is_told_may_have_fields_that_nobody_knows_yet(name: str) -> None:
    read: Any = READS[name.partition(".")[0]]
    later = {**EXAMPLES[name][0].message, "added_later": 1}
    schema_of(name).validate(later)
    read(json.dumps(later).encode())


def test_every_request_has_answers_and_every_error_advice() -> None:
    assert CONVERSATIONS.keys() == REQUESTS.keys() | QUERIES.keys()
    assert {reply for answers in CONVERSATIONS.values() for reply in answers.replies} | {"error"} == REPLIES.keys()
    assert ADVICE.keys() == set(ErrorCode) == {code for answers in CONVERSATIONS.values() for code in answers.errors}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_changes_something_cannot_share_its_id(name: str) -> None:
    request = request_from(json.dumps(EXAMPLES[f"request.{name}"][0].message).encode())
    assert kind_of(request).changes == (ErrorCode.PROPOSAL_CONFLICT in CONVERSATIONS[name].errors)


def test_the_document_fits_the_schema_of_asyncapi(node_with_checks: str) -> None:
    schema = CHECKS / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
    checked = ran(sys.executable, "-m", "check_jsonschema", "--schemafile", schema, ASYNCAPI)
    assert checked.returncode == 0, checked.stdout


def test_the_parser_of_asyncapi_reads_the_document(node_with_checks: str) -> None:
    parsed = ran(node_with_checks, CHECKS / "parse.mjs", ASYNCAPI)
    assert (parsed.returncode, parsed.stderr) == (0, "")
    assert parsed.stdout == f"AsyncAPI 3.0.0: {len(CONVERSATIONS) + 2} operations, {len(MESSAGES) + 1} messages\n"


def test_the_parser_finds_what_is_wrong(node_with_checks: str, tmp_path: Path) -> None:
    document = json.loads(ASYNCAPI.read_text())
    document["operations"]["propose"]["channel"]["$ref"] = "#/channels/events"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    assert ran(node_with_checks, CHECKS / "parse.mjs", tmp_path / "wrong.json").returncode == 1


def ran(*command: "str | Path") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
