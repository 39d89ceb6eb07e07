"""A malformed, oversized or poisonous message gets an answer, becomes a dead letter, and harms nobody else."""

import json
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from statewright import Client, FlowRun, State
from statewright.ids import partition_of
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from statewright_worker.streams.dead_letters import HEAD_BYTES
from tests.deployment import Deployment

MAX_BYTES = 5_000
RUN = str(uuid4())


def proposal(**changes: Any) -> bytes:
    return json.dumps({"v": 1, "type": "propose", "run_id": RUN, "state": {"type": "PENDING"}, **changes}).encode()


def state(**fields: Any) -> bytes:
    return proposal(state={"type": "PENDING", **fields})


BAD_MESSAGES = {
    "no JSON": (b"{not json", "message"),
    "no object": (b"[1, 2]", "message"),
    "no UTF-8": (b'{"v": 1, "type": "\xff"}', "message"),
    "unknown type": (proposal(type="destroy"), "type"),
    "no type": (b'{"v": 1}', "type"),
    "unknown version": (proposal(v=2), "v"),
    "unknown version of what this one does not know": (proposal(v=3, type="destroy", colour="red"), "v"),
    "version that is none": (proposal(v="1"), "v"),
    "unknown field": (proposal(colour="red"), "colour"),
    "unknown state type": (state(type="RUNING"), "state.type"),
    "missing state": (json.dumps({"v": 1, "type": "propose", "run_id": RUN}).encode(), "state"),
    "run id that is none": (proposal(run_id="seven"), "run_id"),
    "NUL in a text": (state(name="a\x00b"), "state.name"),
    "NUL in an unknown field's name": (proposal(**{"a\x00b": 1}), r"a\u0000b"),
    "NUL deep in the data": (state(data={"a": [{"b": "\x00"}]}), "state.data"),
    "NUL in a key of the data": (state(data={"a\x00": 1}), "state.data"),
    "number that JSON has not": (state().replace(b'"PENDING"', b'"PENDING", "data": NaN'), "state.data"),
    "number beyond all": (state().replace(b'"PENDING"', b'"PENDING", "data": 1e999'), "state.data"),
    "naive timestamp": (state(timestamp="2026-01-01T00:00:00"), "state.timestamp"),
    "timestamp outside of time": (state(timestamp="9999-12-31T23:59:59-12:00"), "state.timestamp"),
    "lone surrogate": (state(name="\ud800"), "message"),
    "lone surrogate beside one that is escaped": (state(message="\ud800", data="\udfff"), "message"),
    "too large": (state(message="x" * MAX_BYTES), "message"),
    "too deep": (state().replace(b'"PENDING"', b'"PENDING", "data": ' + b"[" * 900 + b"]" * 900), "message"),
    "text for a flag": (proposal(force="yes"), "force"),
    "run that does not exist": (proposal(), "run_id"),
    "run to be read that does not exist": (json.dumps({"v": 1, "type": "read_run", "run_id": RUN}).encode(), "run_id"),
    "negative limit": (b'{"v": 1, "type": "set_limit", "tag": "a", "concurrency_limit": -1}', "concurrency_limit"),
}


class RawProducer:
    """Pushes what no client would, and reads what comes back."""

    def __init__(self, redis: Redis, deployment: Deployment, partition: int = 0) -> None:
        self._redis = redis
        self._channels = deployment.channels
        self._partition = partition

    async def push(self, body: bytes, **fields: Any) -> bytes:
        entry: dict[Any, Any] = {
            REQUEST_ID: str(uuid4()).encode(),
            REQUEST_REPLY_TO: b"raw",
            REQUEST_MESSAGE: body,
            **{name.encode(): value for name, value in fields.items()},
        }
        present = {name: value for name, value in entry.items() if value is not None}
        entry_id: bytes = await self._redis.xadd(self._channels.proposals(self._partition), present)
        return entry_id

    async def reply(self) -> dict[str, Any]:
        [[_, entries]] = await self._redis.xread({self._channels.replies("raw"): "0"}, block=10_000)
        [[_, answers]] = entries
        [answer] = answers.values()
        found: dict[str, Any] = json.loads(answer)
        return found

    async def dead_letter(self) -> tuple[bytes, dict[bytes, bytes]]:
        [[_, entries]] = await self._redis.xread({self._channels.dead_letters(self._partition): "0"}, block=10_000)
        [letter] = entries
        return letter[0], letter[1]


async def works_still(client: Client, run: FlowRun) -> bool:
    return (await client.propose(run, State.pending())).accepted


@pytest.mark.parametrize(("body", "field"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
async def test_a_bad_message_is_answered_and_kept(deployment: Deployment, body: bytes, field: str) -> None:
    async with (
        deployment.worker(max_message_bytes=MAX_BYTES),
        deployment.client() as client,
        deployment.redis() as redis,
    ):
        producer = RawProducer(redis, deployment)
        run = await client.create_flow_run("neighbour")
        entry_id = await producer.push(body)
        reply = await producer.reply()
        letter_id, letter = await producer.dead_letter()
        assert await works_still(client, run)

    assert (reply["type"], reply["field"]) == ("error", field)
    assert letter_id == entry_id
    assert letter[REQUEST_MESSAGE] == body[:HEAD_BYTES]
    assert letter[b"reason"].decode() == reply["message"]


async def test_a_version_that_is_not_read_is_refused_by_name(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.redis() as redis:
        producer = RawProducer(redis, deployment)
        await producer.push(proposal(v=2))
        assert await producer.reply() == {
            "type": "error",
            "v": 1,
            "code": "invalid_message",
            "message": "v: this engine reads version 1 of the protocol, and not 2",
            "field": "v",
        }


@pytest.mark.parametrize(
    "fields",
    [{"id": b"seven"}, {"id": None}, {"reply_to": b"../../etc"}, {"reply_to": b"\xff"}, {"message": None}, {"x": b"1"}],
    ids=str,
)
async def test_a_bad_entry_is_kept_as_a_dead_letter(deployment: Deployment, fields: dict[str, Any]) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        producer = RawProducer(redis, deployment)
        run = await client.create_flow_run("neighbour")
        await producer.push(state(), **fields)
        _, letter = await producer.dead_letter()
        assert await works_still(client, run)
    [field] = fields
    assert letter[b"field"].decode() == field


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("a\x00b", r"a\u0000b"),
        ("half \ud83c of a pair", r"half \ud83c of a pair"),
        ("x" * 400_000, "x" * 125_000 + "...150000 characters left out..." + "x" * 125_000),
    ],
    ids=["NUL", "lone surrogate", "too long"],
)
async def test_a_failure_can_be_reported_whatever_its_message_is(
    deployment: Deployment, message: str, kept: str
) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        first, second = [await client.create_flow_run("nightly") for _ in range(2)]
        verdict = await client.propose(first, State.failed(message=message))
        producer = RawProducer(redis, deployment, partition_of(second.id, 8))
        await producer.push(proposal(run_id=str(second.id), state={"type": "FAILED", "message": message}))
        reply = await producer.reply()
    assert verdict.state is not None
    assert verdict.state.message == kept
    assert reply["verdict"]["state"]["message"] == kept


async def test_neighbours_in_the_same_batch_are_unaffected(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("neighbour")
    async with deployment.redis() as redis:
        # While no worker runs, all of these wait together and are taken up as one batch.
        producer = RawProducer(redis, deployment, partition_of(run.id, 8))
        good = [proposal(run_id=str(run.id), state={"type": kind}) for kind in ("PENDING", "RUNNING", "COMPLETED")]
        for body in (good[0], b"rubbish", good[1], state(data="\x00"), good[2]):
            await producer.push(body)
        async with deployment.worker(), deployment.client() as client:
            history = await client.read_run(run)
    assert [entered.type for entered in history.states] == ["PENDING", "RUNNING", "COMPLETED"]


async def test_what_only_postgresql_refuses_costs_its_own_request_alone(deployment: Deployment) -> None:
    await deployment.execute("ALTER TABLE flow_run ADD CONSTRAINT no_poison CHECK (name <> 'poison')")
    async with deployment.worker(), deployment.client() as client:
        names = ["one", "two", "poison", "three", "poison", "four"]
        parent = await client.create_flow_run("parent")
        # The same tree, so that all of them lie in one partition and may share a batch.
        tasks = [client.create_task_run(f"t{n}", flow_run=parent) for n in range(len(names))]
        runs = [
            client.create_flow_run(name, parent_task_run=await task) for name, task in zip(names, tasks, strict=True)
        ]
        outcomes = []
        for run in runs:
            try:
                outcomes.append((await run).name)
            except Exception as error:
                outcomes.append(type(error).__name__)
    assert outcomes == ["one", "two", "NotWritable", "three", "NotWritable", "four"]
