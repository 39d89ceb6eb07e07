"""The conversation on the protocol's page takes place as it stands there."""

import json
import re
from collections.abc import Iterator
from typing import Any

from protocol.generator.examples import PARTITION, STATE
from tests.deployment import Deployment
from tests.node import ROOT

PAGE = (ROOT / "PROTOCOL.md").read_text()
MOMENTS = {"created", "time", "timestamp", "start_time", "state_timestamp"}
"""What the clock says; it is compared by its form alone."""


def steps() -> Iterator[tuple[list[str], str | None]]:
    """Yield each command on the page with the answer below it."""
    lines = [line for text in re.findall(r"<!-- runs -->\n```text\n(.*?)```", PAGE, re.S) for line in text.splitlines()]
    for line, below in zip(lines, [*lines[1:], "> "], strict=True):
        if line.startswith("> "):
            yield line[2:].split(" "), None if below.startswith("> ") else below


async def test_the_conversation_on_the_page(deployment: Deployment) -> None:
    last = ""
    heard = []
    async with deployment.worker(), deployment.redis() as redis:
        await deployment.answering()
        for command, answer in steps():
            own = [part.replace("statewright:", f"{deployment.namespace}:").replace("$LAST", last) for part in command]
            said = await redis.execute_command(*own)  # type: ignore[no-untyped-call]
            if command[0] != "XREAD":
                assert answer is None or said == answer.encode()
                continue
            last, body = only_entry(said)
            assert answer is not None
            heard.append((in_words_of_the_page(json.loads(body), deployment.namespace), json.loads(answer)))
    assert len(heard) == 3
    for got, told in heard:
        assert got == told


def only_entry(read: Any) -> tuple[str, bytes]:
    [[_, [(entry_id, fields)]]] = read
    [body] = fields.values()
    return entry_id.decode(), body


def in_words_of_the_page(got: Any, namespace: str) -> Any:
    """Return the answer with the page's moments, namespace and id of the state."""
    state_id = got["id"] if "specversion" in got else got.get("verdict", {}).get("state", {}).get("id", STATE)
    text = (
        json.dumps(got).replace(state_id, STATE).replace(f"urn:statewright:{namespace}", "urn:statewright:statewright")
    )
    return with_moments_of_the_page(json.loads(text))


def with_moments_of_the_page(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: with_moments_of_the_page(inner, name) for name, inner in value.items()}
    if key not in MOMENTS or not isinstance(value, str):
        return value
    second = "00.100000" if key == "created" else "00.125000"
    return re.sub(r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(?=Z|\+00:00)", f"2030-01-01T02:00:{second}", value)


def test_the_example_goes_to_the_partition_that_it_says() -> None:
    commands = [command for command, _ in steps() if command[0] == "XADD"]
    assert {command[1] for command in commands} == {f"{{statewright:{PARTITION}}}:proposals"}
