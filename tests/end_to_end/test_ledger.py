"""One request id has one answer for ever, refusals included, and asks for one thing only."""

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest

from statewright import Client, ProposalConflict, RunConflict, State
from statewright.ids import IdSource, partition_of_tag
from statewright.protocol.channels import REQUEST_ID, REQUEST_MESSAGE, REQUEST_REPLY_TO
from tests.deployment import Deployment

ids = IdSource()


class Resender:
    """Pushes the same entry as often as it is asked to, as a crash between commit and trim does."""

    def __init__(self, redis: Any, deployment: Deployment) -> None:
        self._redis = redis
        self._channels = deployment.channels
        self._read = "0"

    async def push(self, partition: int, request_id: UUID, **message: Any) -> dict[str, Any]:
        fields = {
            REQUEST_ID: str(request_id),
            REQUEST_REPLY_TO: "resender",
            REQUEST_MESSAGE: json.dumps({"v": 1, **message}),
        }
        await self._redis.xadd(self._channels.proposals(partition), fields)
        [[_, [[self._read, answers]]]] = await self._redis.xread(
            {self._channels.replies("resender"): self._read}, block=20_000
        )
        [answer] = answers.values()
        told: dict[str, Any] = json.loads(answer)
        return told


async def test_a_limit_that_is_set_again_by_an_old_request_stays_as_it_is(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.redis() as redis, deployment.client() as client:
        resender = Resender(redis, deployment)
        old, message = ids.new(), {"type": "set_limit", "tag": "database", "concurrency_limit": 3}
        partition = partition_of_tag("database", client.partitions)
        first = await resender.push(partition, old, **message)
        await client.set_limit("database", 1)
        assert await resender.push(partition, old, **message) == first
        limit = await client.read_limit("database")
        assert limit is not None
        assert limit.concurrency_limit == 1


async def test_a_limit_that_is_removed_again_by_an_old_request_stays(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.redis() as redis, deployment.client() as client:
        resender = Resender(redis, deployment)
        old, message = ids.new(), {"type": "set_limit", "tag": "database", "concurrency_limit": None}
        partition = partition_of_tag("database", client.partitions)
        await client.set_limit("database", 1)
        await resender.push(partition, old, **message)
        await client.set_limit("database", 1)
        running = await client.create_task_run("one", tags=["database"])
        assert (await client.propose(running, State.running())).accepted
        await resender.push(partition, old, **message)
        waiting = await client.create_task_run("two", tags=["database"])
        assert (await client.propose(waiting, State.running())).status == "WAIT"


async def test_a_refusal_that_depended_on_the_moment_stays(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.redis() as redis, deployment.client() as client:
        resender = Resender(redis, deployment)
        run = ids.new()
        partition = run.int % 65_536 % client.partitions
        proposal = ids.new()
        message = {"type": "propose", "run_id": str(run), "state": {"type": "PENDING"}}
        first = await resender.push(partition, proposal, **message)
        assert first["code"] == "run_not_found"
        created = await resender.push(partition, ids.new(), type="create_flow_run", run_id=str(run), name="late")
        assert created["type"] == "run"
        assert await resender.push(partition, proposal, **message) == first
        assert (await client.read_run(run)).states == ()


async def test_a_run_that_was_refused_for_its_parent_is_not_made_when_the_parent_is(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.redis() as redis, deployment.client() as client:
        resender = Resender(redis, deployment)
        parent, child, request = ids.new(), None, ids.new()
        child = ids.new(tag=parent.int & 0xFFFF)
        partition = parent.int % 65_536 % client.partitions
        message = {"type": "create_task_run", "run_id": str(child), "name": "t", "flow_run_id": str(parent)}
        first = await resender.push(partition, request, **message)
        assert first["code"] == "run_conflict"
        await resender.push(partition, ids.new(), type="create_flow_run", run_id=str(parent), name="f")
        assert await resender.push(partition, request, **message) == first
    assert await deployment.fetch("SELECT id FROM task_run") == []


@pytest.mark.parametrize("kind", ["propose", "set_limit"])
async def test_the_same_id_with_other_content_is_refused(deployment: Deployment, kind: str) -> None:
    async with deployment.worker(), deployment.redis() as redis, deployment.client() as client:
        resender = Resender(redis, deployment)
        run = await client.create_flow_run("one")
        messages: dict[str, list[dict[str, Any]]] = {
            "propose": [{"run_id": str(run.id), "state": {"type": kind}} for kind in ("PENDING", "RUNNING")],
            "set_limit": [{"tag": "database", "concurrency_limit": n} for n in (1, 2)],
        }
        partition = (
            run.id.int % 65_536 % client.partitions
            if kind == "propose"
            else partition_of_tag("database", client.partitions)
        )
        request = ids.new()
        one, other = messages[kind]
        first = await resender.push(partition, request, type=kind, **one)
        refused = await resender.push(partition, request, type=kind, **other)
        assert refused["code"] == "proposal_conflict"
        # The order of the fields is no content.
        assert await resender.push(partition, request, **dict(reversed([*one.items(), ("type", kind)]))) == first


async def test_the_same_idempotency_key_with_other_content_is_refused(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        await client.create_flow_run("nightly", tags=["etl"], idempotency_key="nightly/1")
        with pytest.raises(RunConflict, match="tags") as refused:
            await client.create_flow_run("nightly", tags=["other"], idempotency_key="nightly/1")
        assert refused.value.field == "tags"
        again = await client.create_flow_run("nightly", tags=["etl"], idempotency_key="nightly/1")
        assert again.tags == ("etl",)


async def test_a_proposal_id_with_another_state_is_refused(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("one")
        proposal = ids.new()
        await client.propose(run, State.pending(), proposal_id=proposal)
        with pytest.raises(ProposalConflict, match="another content"):
            await client.propose(run, State.running(), proposal_id=proposal)
        assert (await client.read_run(run)).run.state_type == "PENDING"


async def test_what_is_pushed_to_another_partition_than_its_runs_is_not_carried_out(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.redis() as redis, deployment.client() as client:
        run = await client.create_flow_run("one")
        elsewhere = (run.id.int % 65_536 + 1) % client.partitions
        refused = await Resender(redis, deployment).push(
            elsewhere, ids.new(), type="propose", run_id=str(run.id), state={"type": "PENDING"}
        )
        assert (refused["code"], refused["field"]) == ("invalid_message", "run_id")
        assert (await client.read_run(run)).states == ()


async def test_answers_are_equal_however_often_two_clients_ask_at_once(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as one, deployment.client() as other:
        missing, proposal = ids.new(), ids.new()

        async def told(client: Client) -> str:
            try:
                await client.propose(missing, State.pending(), proposal_id=proposal)
            except Exception as error:
                return f"{type(error).__name__} {error}"
            return ""

        answers = await asyncio.gather(*(told(client) for client in (one, other, one)))
    assert len(set(answers)) == 1
    assert answers[0].startswith("RunNotFound")
