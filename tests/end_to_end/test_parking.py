"""Proposals that would be told WAIT are kept, and answered when they can be decided."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from statewright import NoAnswer, ProposalConflict, SetStateStatus, State, StateType
from statewright.errors import Delivery
from statewright.ids import IdSource, partition_of
from tests.deployment import HANGS_SECONDS, Deployment, until

ids = IdSource()


async def _is_parked(sent: Any) -> None:
    assert await sent.until_parked() is not None


async def test_a_parked_proposal_is_decided_at_its_scheduled_time(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("later")
        at = datetime.now(UTC) + timedelta(seconds=2.5)
        await client.propose(run, State.scheduled(at))
        verdict = await client.propose(run, State.running(), on_wait="park")
        rows = await deployment.fetch("SELECT decided FROM verdict WHERE proposal_id = $1", verdict.proposal_id)

    assert verdict.accepted
    assert at <= rows[0]["decided"]


async def test_a_parked_proposal_is_answered_wait_after_its_time_limit(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("later")
        await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(hours=1)))
        verdict = await client.propose(run, State.running(), on_wait="park", park_timeout=0.2)

    assert verdict.status is SetStateStatus.WAIT
    assert verdict.delay_seconds is not None
    assert verdict.delay_seconds > 3_500


async def test_a_parked_proposal_can_be_withdrawn(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("later")
        await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(hours=1)))
        sent = [client.propose(run, State.running(), on_wait="park") for _ in range(2)]
        waiting = [asyncio.ensure_future(one.answer()) for one in sent]
        await asyncio.gather(*map(_is_parked, sent))
        withdrawn = [await client.withdraw(sent[0]), await client.withdraw(sent[1].request_id)]
        again = await client.withdraw(sent[0])
        verdicts = await asyncio.gather(*waiting)
        asked_again = await client.propose(run, State.running(), on_wait="park", proposal_id=sent[0].request_id)

    assert withdrawn == [True, True]
    assert again is False
    assert [verdict.status for verdict in verdicts] == [SetStateStatus.ABORT] * 2
    assert asked_again == verdicts[0]


async def test_a_proposal_that_is_parked_and_withdrawn_in_one_batch_has_its_answer(deployment: Deployment) -> None:
    async with AsyncExitStack() as stack:
        async with deployment.worker():
            client = await stack.enter_async_context(deployment.client())
            run = await client.create_flow_run("later")
            await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(hours=1)))
        sent = client.propose(run, State.running(), on_wait="park", timeout=HANGS_SECONDS)
        withdrawing = asyncio.create_task(client.withdraw(sent))
        async with deployment.redis() as redis:
            proposals = deployment.channels.proposals(partition_of(run.id, client.partitions))

            async def both_wait() -> bool:
                return int(await redis.xlen(proposals)) == 2

            await until(both_wait)
        async with deployment.worker():
            withdrawn, verdict = await asyncio.gather(withdrawing, sent.answer())

    assert withdrawn is True
    assert verdict.status is SetStateStatus.ABORT
    # Of its two answers the last one counts, so nobody had to ask again.
    assert sent.parked is None


async def test_who_asks_again_is_told_since_when_it_is_parked_and_gets_the_answer(deployment: Deployment) -> None:
    async with (
        deployment.worker(),
        deployment.client() as first,
        deployment.client() as second,
        deployment.client() as other,
    ):
        run = await first.create_flow_run("later")
        await first.propose(run, State.scheduled(datetime.now(UTC) + timedelta(seconds=2)))
        proposal = ids.new()
        sent = first.propose(run, State.running(), on_wait="park", proposal_id=proposal)
        await _is_parked(sent)
        again = second.propose(run, State.running(), on_wait="park", proposal_id=proposal)
        await _is_parked(again)
        with pytest.raises(ProposalConflict):
            await other.propose(run, State.completed(), on_wait="park", proposal_id=proposal)
        verdict = await again

    assert sent.parked is not None
    assert again.parked is not None
    assert sent.parked.since == again.parked.since
    assert verdict.accepted


async def test_a_parked_proposal_that_is_awaited_no_longer_stays_parked(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("later")
        await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(seconds=2)))
        sent = client.propose(run, State.running(), on_wait="park", timeout=0.5)
        await _is_parked(sent)
        with pytest.raises(NoAnswer) as raised:
            await sent
        async with client.subscribe(since={}) as events:
            async for event in events:
                if event.data.resource.state_type is StateType.RUNNING:
                    break

    assert raised.value.delivery is Delivery.PARKED


async def test_a_parked_proposal_survives_its_worker_and_an_emptied_redis(deployment: Deployment) -> None:
    async with AsyncExitStack() as stack:
        async with deployment.worker():
            client = await stack.enter_async_context(deployment.client())
            run = await client.create_flow_run("later")
            await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(seconds=2)))
            sent = client.propose(run, State.running(), on_wait="park")
            await _is_parked(sent)
        await deployment.empty_redis()
        async with deployment.worker(), asyncio.timeout(HANGS_SECONDS):
            verdict = await sent

    assert verdict.accepted


async def test_an_answer_that_was_not_sent_is_sent_by_the_next_worker(deployment: Deployment) -> None:
    async with AsyncExitStack() as stack:
        async with deployment.worker():
            client = await stack.enter_async_context(deployment.client())
            run = await client.create_flow_run("later")
            await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(hours=1)))
            sent = client.propose(run, State.running(), on_wait="park")
            await _is_parked(sent)
        # What a worker leaves that dies between its commit and its answer.
        await deployment.execute(
            f"""
            INSERT INTO verdict (proposal_id, run_id, status, reason, rule_signature, finalization_signature, decided)
            VALUES ('{sent.request_id}', '{run.id}', 'ABORT', 'decided', '', '', now());
            UPDATE parked SET decided = true;
            UPDATE timer SET due = now() WHERE kind = 'parked'
            """
        )
        async with deployment.worker():
            verdict = await sent
            await until(lambda: _is_empty(deployment))

    assert verdict.reason == "decided"


async def _is_empty(deployment: Deployment) -> bool:
    return not await deployment.fetch("SELECT FROM parked UNION ALL SELECT FROM timer")


async def test_what_is_beyond_the_bound_is_told_to_wait(deployment: Deployment) -> None:
    async with deployment.worker(max_parked=1, partitions=1), deployment.client() as client:
        runs = [await client.create_flow_run("later") for _ in range(3)]
        for run in runs:
            await client.propose(run, State.scheduled(datetime.now(UTC) + timedelta(hours=1)))
        first, second = (client.propose(run, State.running(), on_wait="park") for run in runs[:2])
        await _is_parked(first)
        refused = await second
        await client.withdraw(first)

        async def has_room() -> bool:
            sent = client.propose(runs[2], State.running(), on_wait="park")
            return await sent.until_parked() is not None

        await until(has_room)

    assert refused.status is SetStateStatus.WAIT
