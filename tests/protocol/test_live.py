"""What a worker answers and tells is what the documents say."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from redis.asyncio import Redis

from protocol.generator.examples import EXAMPLES, FLOW_RUN
from protocol.generator.files import FOLDER
from protocol.generator.messages import CONVERSATIONS
from statewright.protocol.requests import request_from
from statewright_worker.requests.kinds import kind_of
from tests.deployment import Deployment, until

PARTITIONS = 8
CLIENT = "stranger"
SENT = [example.message for name, examples in EXAMPLES.items() if name.startswith("request.") for example in examples]
UNKNOWN = "019a0c2e-6c00-7f3b-8a51-2f9d4e6b0007"
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("invalid_message", {"type": "propose", "run_id": FLOW_RUN, "state": {}}),
    ("run_not_found", {"type": "propose", "run_id": UNKNOWN, "state": {"type": "RUNNING"}}),
    ("run_conflict", {"type": "create_flow_run", "run_id": FLOW_RUN, "name": "another"}),
]


class Stranger:
    """Pushes requests as they stand, and reads the answers."""

    def __init__(self, deployment: Deployment, redis: Redis) -> None:
        self._channels = deployment.channels
        self._redis = redis

    async def push(self, message: dict[str, Any], request_id: str) -> None:
        body = json.dumps(message).encode()
        try:
            request = request_from(body)
            _, partition = kind_of(request).place(request, PARTITIONS)
        except ValueError:
            partition = int(message["run_id"][-4:], 16) % PARTITIONS
        entry = {"id": request_id, "reply_to": CLIENT, "message": body}
        await self._redis.xadd(self._channels.proposals(partition), entry)  # type: ignore[arg-type]

    async def answers(self, *request_ids: str) -> dict[str, list[Any]]:
        """Return the replies to requests, once each has one."""
        replies: dict[str, list[Any]] = {}

        async def are_there() -> bool:
            replies.clear()
            for _, answers in await self._redis.xrange(self._channels.replies(CLIENT)):
                for request_id, body in answers.items():
                    replies.setdefault(request_id.decode(), []).append(json.loads(body))
            return replies.keys() >= {*request_ids}

        await until(are_there)
        return replies


@pytest.fixture
async def stranger(deployment: Deployment) -> AsyncIterator[Stranger]:
    async with deployment.worker(), deployment.redis() as redis:
        await deployment.answering()
        yield Stranger(deployment, redis)


def fits(name: str, message: Any) -> None:
    Draft202012Validator(json.loads((FOLDER / "schemas" / f"{name}.json").read_text())).validate(message)


async def test_every_answer_and_every_event_is_as_the_documents_say(deployment: Deployment, stranger: Stranger) -> None:
    sent = {str(uuid4()): message for message in SENT}
    for request_id, message in sent.items():
        await stranger.push(message, request_id)
    replies = await stranger.answers(*sent)
    for request_id, message in sent.items():
        for reply in replies[request_id]:
            assert reply["type"] in CONVERSATIONS[message["type"]].replies, (message, reply)
            fits(f"reply.{reply['type']}", reply)
    async with deployment.redis() as redis:
        events = [
            json.loads(fields[b"event"])
            for partition in range(PARTITIONS)
            for _, fields in await redis.xrange(deployment.channels.events(partition))
        ]
    assert events
    for event in events:
        fits("event.change", event)


async def test_every_refusal_and_every_dead_letter_is_as_the_documents_say(
    deployment: Deployment, stranger: Stranger
) -> None:
    created = {"type": "create_flow_run", "run_id": FLOW_RUN, "name": "nightly"}
    proposed = {"type": "propose", "run_id": FLOW_RUN, "state": {"type": "RUNNING"}}
    first = str(uuid4())
    refused = {str(uuid4()): (code, message) for code, message in REFUSED}
    await stranger.push(created, str(uuid4()))
    await stranger.push(proposed, first)
    [verdict] = (await stranger.answers(first))[first]
    await stranger.push({**proposed, "force": False}, first)
    for request_id, (_, message) in refused.items():
        await stranger.push(message, request_id)
    replies = await stranger.answers(first, *refused)
    for request_id, (code, message) in refused.items():
        [reply] = replies[request_id]
        assert reply["code"] == code
        assert code in CONVERSATIONS[message["type"]].errors
        fits("reply.error", reply)
    _, conflict = replies[first]
    assert (verdict["type"], conflict["code"]) == ("verdict", "proposal_conflict")
    letter = json.loads((FOLDER / "asyncapi.json").read_text())["components"]["messages"]["dead_letter"]
    async with deployment.redis() as redis:
        kept = await redis.xrange(deployment.channels.dead_letters(7))
    letters = [fields for _, fields in kept if fields[b"reply_to"] == CLIENT.encode()]
    assert len(letters) == len(REFUSED) + 1
    for fields in letters:
        told = {name.decode(): value.decode() for name, value in fields.items()}
        Draft7Validator(letter["headers"]).validate(told)
        assert told.keys() <= {*letter["headers"]["properties"], "message"}
