"""A request that takes too long, blocks its worker or ends it is refused by name, and its neighbours are answered."""

import asyncio
import os
import signal
from typing import Any

import pytest

from statewright import RuleFailed, State
from tests.deployment import Deployment

POLICY = "tests.end_to_end.house_policies"
WAITS_FOR_EVER = """
    CREATE FUNCTION wait_long() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.name = 'slow' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$;
    CREATE TRIGGER wait_long BEFORE INSERT ON flow_run FOR EACH ROW EXECUTE FUNCTION wait_long();
"""


async def outcome(pending: object) -> str:
    try:
        await pending  # type: ignore[misc]
    except Exception as error:
        return type(error).__name__
    return "fine"


async def test_a_statement_that_takes_too_long_costs_its_own_request_alone(deployment: Deployment) -> None:
    await deployment.execute(WAITS_FOR_EVER)
    async with deployment.worker(partitions=1), deployment.client(answer_timeout=120) as client:
        created = [client.create_flow_run("slow" if n == 3 else f"flow {n}") for n in range(8)]
        outcomes = await asyncio.gather(*(outcome(pending) for pending in created))
    assert outcomes == ["fine"] * 3 + ["NotWritable"] + ["fine"] * 4


async def test_a_rule_that_blocks_its_worker_is_refused_and_its_neighbours_are_not(deployment: Deployment) -> None:
    policy = f"{POLICY}:HarmfulFlowPolicy"
    async with deployment.worker(partitions=1, flow_policy=policy), deployment.client(answer_timeout=60) as client:
        runs = [await client.create_flow_run("blocks" if n == 2 else f"flow {n}") for n in range(5)]
        proposed = [client.propose(run, State.running()) for run in runs]
        outcomes = await asyncio.gather(*(outcome(pending) for pending in proposed))
        assert outcomes == ["fine", "fine", "RuleFailed", "fine", "fine"]
        # The same answer whenever it is asked for again, and not by trying again.
        with pytest.raises(RuleFailed):
            await client.propose(runs[2], State.running(), proposal_id=proposed[2].request_id)


async def test_a_request_that_ends_its_workers_is_refused_in_the_end(deployment: Deployment) -> None:
    """Each worker that takes it up is killed by it; its neighbours are answered all the same."""
    policy = {"STATEWRIGHT_FLOW_POLICY": f"{POLICY}:HarmfulFlowPolicy", "STATEWRIGHT_PARTITIONS": "1"}
    deployment.spawn_worker(**policy)
    async with deployment.client(answer_timeout=120) as client:
        runs = [await client.create_flow_run("kills" if n == 2 else f"flow {n}") for n in range(5)]
        proposed = [client.propose(run, State.running()) for run in runs]
        answered = asyncio.gather(*(outcome(pending) for pending in proposed))
        while not answered.done():
            worker = deployment.spawn_worker(**policy)
            ended = asyncio.create_task(asyncio.to_thread(worker.wait))
            waited: set[asyncio.Future[Any]] = {ended, answered}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                os.kill(worker.pid, signal.SIGTERM)
                await ended
        assert await answered == ["fine", "fine", "NotWritable", "fine", "fine"]
