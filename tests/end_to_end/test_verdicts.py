"""`verdict(id)`: whoever has missed the answer to a proposal asks for it; asking changes nothing."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from statewright import NoAnswer, ParkedReply, RunNotFound, SetStateStatus, State, Verdict
from statewright.ids import IdSource, partition_of
from tests.deployment import Deployment, until
from tests.end_to_end.hand_worker import announce, requests

ids = IdSource()


async def test_a_verdict_is_told_by_the_proposals_id_to_whoever_asks(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.client() as other:
        run = await client.create_flow_run("nightly")
        verdicts = [await client.propose(run, state) for state in (State.running(), State.pending())]
        told = [await other.verdict(verdict.proposal_id) for verdict in verdicts]
        in_its_lane = [await other.verdict(str(verdict.proposal_id), run=run) for verdict in verdicts]
        # Every partition's ledger is the same.
        everywhere = await asyncio.gather(*(other.verdict(verdicts[0].proposal_id) for _ in range(30)))

    assert [verdict.status for verdict in verdicts] == [SetStateStatus.ACCEPT, SetStateStatus.ABORT]
    assert told == in_its_lane == verdicts
    assert everywhere == verdicts[:1] * 30


async def test_a_refusal_is_raised_as_the_proposal_itself_was_refused(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        missing = ids.new()
        proposed = client.propose(missing, State.running())
        with pytest.raises(RunNotFound) as refused:
            await proposed
        for run in (None, missing):
            with pytest.raises(RunNotFound) as told:
                await client.verdict(proposed.request_id, run=run)
            assert str(told.value) == str(refused.value)
            assert told.value.request_id == proposed.request_id


async def test_what_is_unknown_is_none_and_is_decided_when_it_comes(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_flow_run("nightly")
        proposal_id = ids.new()
        assert await client.verdict(proposal_id) is None
        assert await client.verdict(proposal_id, run=run) is None
        assert not await deployment.fetch("SELECT FROM verdict UNION ALL SELECT FROM answer")
        verdict = await client.propose(run, State.running(), proposal_id=proposal_id)
        assert verdict.accepted
        assert await client.verdict(proposal_id) == verdict


async def test_what_is_no_proposal_is_unknown(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        set_limit = client.set_limit("database", 1)
        created = client.create_flow_run("nightly")
        await asyncio.gather(set_limit, created)
        assert await client.verdict(set_limit.request_id) is None
        assert await client.verdict(created.request_id) is None


async def test_a_parked_proposal_says_since_when_and_why(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.client() as other:
        await client.set_limit("database", 1)
        first, second = [await client.create_task_run(name, tags=["database"]) for name in ("first", "second")]
        await client.propose(first, State.running())
        sent = client.propose(second, State.running(), on_wait="park")
        parked = await sent.until_parked()
        assert parked is not None
        everywhere = await asyncio.gather(*(other.verdict(sent.request_id) for _ in range(20)))
        in_its_lane = await other.verdict(sent.request_id, run=second)
        await client.propose(first, State.completed())
        verdict = await sent
        decided = await other.verdict(sent.request_id)

    assert parked.reason == "Concurrency limit for the database tag has been reached"
    assert everywhere == [parked] * 20
    assert in_its_lane == parked
    assert verdict.accepted
    assert decided == verdict


async def test_why_a_proposal_is_parked_follows_what_it_waits_for(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.client() as second:
        for tag in ("a", "b"):
            await client.set_limit(tag, 1)
        holders = {tag: await client.create_task_run(tag, tags=[tag]) for tag in ("a", "b")}
        for run in holders.values():
            await client.propose(run, State.running())
        waiting = await client.create_task_run("both", tags=["a", "b"])
        sent = client.propose(waiting, State.running(), on_wait="park")
        parked = await sent.until_parked()
        assert parked is not None
        reasons = {tag: f"Concurrency limit for the {tag} tag has been reached" for tag in holders}
        [full] = [tag for tag, reason in reasons.items() if reason == parked.reason]
        [other] = holders.keys() - {full}
        await client.propose(holders[full], State.completed())

        async def waits_for_the_other() -> bool:
            told = await client.verdict(sent.request_id)
            assert isinstance(told, ParkedReply)
            assert told.since == parked.since
            return told.reason == reasons[other]

        await until(waits_for_the_other)
        # Whoever asks again hears it as well.
        again = second.propose(waiting, State.running(), on_wait="park", proposal_id=sent.request_id)
        assert await again.until_parked() == await client.verdict(sent.request_id)
        await client.withdraw(sent)


async def test_with_its_run_the_question_is_answered_after_what_was_pushed_before(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = client.create_task_run("load")
        proposed = [client.propose(run, State.running()), client.propose(ids.new(), State.running())]
        at = datetime.now(UTC) + timedelta(hours=1)
        later = client.create_task_run("later", state=State.scheduled(at))
        parked = client.propose(later, State.running(), on_wait="park")
        # All of it is pushed together, and so is in one batch where it belongs to one partition.
        asked = [client.verdict(proposed[0].request_id, run=run), client.verdict(parked.request_id, run=later)]
        verdict, waiting = await asyncio.gather(*asked)
        with pytest.raises(RunNotFound):
            await client.verdict(proposed[1].request_id, run=proposed[1])
        assert isinstance(verdict, Verdict)
        assert verdict == await proposed[0]
        assert isinstance(waiting, ParkedReply)
        await client.withdraw(parked)


async def test_a_question_goes_to_the_lane_of_the_run_and_takes_a_timeout(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment, 4)
        async with deployment.client() as client:
            run = ids.new()
            asked = client.verdict(ids.new(), run=run, timeout=0)
            await asked.pushed()
            assert await requests(redis, deployment, partition_of(run, 4)) == [asked.request_id]
            with pytest.raises(NoAnswer):
                await asked


async def test_answers_that_redis_has_trimmed_are_told(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client, deployment.redis() as redis:
        run = await client.create_flow_run("nightly")
        proposed = client.propose(run, State.running())
        verdict = await proposed
        await redis.delete(*[key async for key in redis.scan_iter(match=deployment.channels.replies("*"))])
        assert await client.verdict(proposed.request_id) == verdict
    async with deployment.worker(), deployment.client() as client:
        # Everything in Redis may be gone.
        await deployment.empty_redis()
        await deployment.announced()
        assert await client.verdict(proposed.request_id) == verdict
