"""A client with a name finds the answers that came while it was away; one at a time has the name."""

import asyncio
import logging
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from statewright import (
    Client,
    ConfigurationError,
    Delivery,
    NoAnswer,
    NotOpen,
    RedisUnavailable,
    RunNotFound,
    State,
    Verdict,
)
from statewright.ids import IdSource
from statewright.protocol.channels import OPENED
from tests.deployment import Deployment, until
from tests.end_to_end.hand_worker import announce, answer
from tests.end_to_end.test_access import users
from tests.end_to_end.test_client_faults import answers_arrive
from tests.end_to_end.test_client_use import in_a_child

ids = IdSource()
NAME = "billing-1"


async def proposed_without_a_worker(client: Client, count: int) -> list[UUID]:
    """Propose for runs that are made in the same breath, and return the ids of the proposals once Redis holds them."""
    sent = [client.propose(client.create_flow_run("nightly"), State.running()) for _ in range(count)]
    return [await one.pushed() for one in sent]


async def everything_is_answered(deployment: Deployment, proposal_ids: list[UUID]) -> None:
    async def is_decided() -> bool:
        decided = "SELECT FROM verdict WHERE proposal_id = ANY ($1)"
        return len(await deployment.fetch(decided, proposal_ids)) == len(proposal_ids)

    await until(is_decided)
    # Its answer comes behind theirs where it shares a partition with them; one of them all does.
    await deployment.answering()


def proposals_of(answers: Any) -> list[UUID]:
    return [answer.proposal_id if isinstance(answer, Verdict) else answer.request_id for answer in answers]


async def test_a_process_that_died_finds_its_verdicts_under_its_name(deployment: Deployment) -> None:
    async with deployment.worker():
        pass

    async def dies() -> str:
        client = deployment.client(name=NAME)
        await client.__aenter__()
        refused = await client.propose(ids.new(), State.running()).pushed()
        return " ".join(map(str, [*await proposed_without_a_worker(client, 20), refused]))

    told = await asyncio.to_thread(in_a_child, lambda: asyncio.run(dies()))
    *proposed, refused = map(UUID, told.split())
    async with deployment.worker():
        await everything_is_answered(deployment, proposed)
    async with deployment.client(name=NAME) as client:
        # Those that somebody asks for again are theirs.
        answers = list(client.unclaimed())
        assert list(client.unclaimed()) == []
    assert sorted(proposals_of(answers)) == sorted([*proposed, refused])
    [error] = [answer for answer in answers if not isinstance(answer, Verdict)]
    assert isinstance(error, RunNotFound)
    assert error.request_id == refused
    async with deployment.client(name=NAME) as client:
        # What was taken was deleted.
        assert list(client.unclaimed()) == []


async def test_what_is_not_taken_stays_for_the_next_process(deployment: Deployment) -> None:
    async with deployment.worker(partitions=1):
        async with deployment.client(name=NAME) as client:
            proposal_ids = []
            for _ in range(3):
                proposal_ids.append(client.propose(client.create_flow_run("nightly"), State.pending()).request_id)
                # It is answered after that, and the next one in another entry.
                await client.read_limit("tag")
            taken = client.unclaimed()
            assert proposals_of([next(taken), next(taken)]) == proposal_ids[:2]
        async with deployment.client(name=NAME) as client:
            # The second one was not done with when the process ended.
            assert proposals_of(client.unclaimed()) == proposal_ids[1:]


async def test_those_that_are_asked_for_again_are_answered_and_told_no_more(deployment: Deployment) -> None:
    async with deployment.worker():
        pass
    async with deployment.client(name=NAME) as client:
        runs = [client.create_flow_run("nightly") for _ in range(3)]
        sent = [client.propose(run, State.running()) for run in runs]
        proposed = [await one.pushed() for one in sent]
    async with deployment.worker():
        await everything_is_answered(deployment, proposed)
        async with deployment.client(name=NAME) as client:
            again = await client.propose(runs[0].run_id, State.running(), proposal_id=proposed[0])
            told = await client.verdict(proposed[1])
            [other] = client.unclaimed()
    assert [again.proposal_id, told and told.proposal_id, *proposals_of([other])] == proposed


async def test_answers_that_redis_no_longer_has_are_found_by_their_ids(deployment: Deployment) -> None:
    async with deployment.worker():
        pass
    async with deployment.client(name=NAME) as client:
        proposed = await proposed_without_a_worker(client, 5)
    async with deployment.worker(reply_seconds=1), deployment.redis() as redis:
        await everything_is_answered(deployment, proposed)
        # The stream expires by itself.
        await until(lambda: is_gone(redis, deployment.channels.replies(NAME)))
        async with deployment.client(name=NAME) as client:
            assert list(client.unclaimed()) == []
            verdicts = [await client.verdict(proposal_id) for proposal_id in proposed]
    assert proposals_of(verdicts) == proposed


async def test_answers_that_were_trimmed_before_the_producer_came_back_are_found_by_their_ids(
    deployment: Deployment,
) -> None:
    async with deployment.worker(partitions=1):
        pass
    async with deployment.client(name=NAME) as client:
        proposed = await proposed_without_a_worker(client, 200)
    # Each answer is an entry of its own.
    async with deployment.worker(replies_kept=5, batch_size=1):
        await everything_is_answered(deployment, proposed)
        async with deployment.client(name=NAME) as client:
            left = proposals_of(client.unclaimed())
            verdicts = await asyncio.gather(*map(client.verdict, proposed))
    assert 0 < len(left) < len(proposed)
    assert left == proposed[-len(left) :]
    assert proposals_of(verdicts) == proposed


async def is_gone(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def test_an_answer_for_which_nobody_waited_long_enough_is_told(deployment: Deployment) -> None:
    async with deployment.worker():
        pass
    async with deployment.client(name=NAME) as client:
        run = client.create_flow_run("nightly")
        given_up = client.propose(run, State.pending(), timeout=0)
        await given_up.pushed()
        with pytest.raises(NoAnswer):
            await given_up
        proposal_id = given_up.request_id
        del given_up
        async with deployment.worker():
            running = await client.propose(run, State.running())
            assert proposals_of(client.unclaimed()) == [proposal_id]
            assert running.accepted


async def test_a_client_without_a_name_keeps_nothing_that_nobody_awaits(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = client.create_flow_run("nightly")
        client.propose(run, State.pending())
        await client.propose(run, State.running())
        assert list(client.unclaimed()) == []


async def test_what_nobody_has_claimed_stays_in_redis_and_what_was_received_does_not(deployment: Deployment) -> None:
    async with (
        deployment.worker(partitions=1),
        deployment.client(name=NAME) as client,
        deployment.redis() as redis,
    ):
        stream = deployment.channels.replies(NAME)
        proposed = client.propose(client.create_flow_run("nightly"), State.pending())
        key = str(proposed.request_id).encode()
        del proposed

        async def in_redis() -> bool:
            for _ in range(30):
                await asyncio.gather(*(client.read_limit("tag") for _ in range(20)))
            return any(key in fields for _, fields in await redis.xrange(stream))

        assert await in_redis()
        [_] = client.unclaimed()
        assert not await in_redis()
        assert await redis.xlen(stream) <= 300


async def test_who_is_opened_last_has_the_name(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "statewright")
    first, second = deployment.client(name=NAME), deployment.client(name=NAME)
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        await first.__aenter__()
        under_way = first.propose(ids.new(), State.running())
        await under_way.pushed()
        async with second:
            with pytest.raises(NoAnswer, match=f"opened under the name '{NAME}'") as raised:
                await under_way
            assert raised.value.delivery is Delivery.UNANSWERED
            for call in (first.read_limit, first.verdict):
                with pytest.raises(NotOpen, match=f"opened under the name '{NAME}', and gets its answers"):
                    call(str(ids.new()))
            [warning] = [record for record in caplog.records if record.name == "statewright"]
            assert warning.levelname == "WARNING"
            assert NAME in warning.getMessage()
            await answers_arrive(second, redis, deployment)
            pending = second.read_limit("tag")
            await pending.pushed()
            # Its leaving takes nothing from the other.
            await first.__aexit__(None, None, None)
            await answer(redis, deployment)
            assert await pending is None


async def test_an_earlier_client_that_comes_back_hears_that_the_name_is_taken(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        stream = deployment.channels.replies(NAME)
        async with deployment.client(name=NAME) as client:
            [[sign, _]] = await redis.xrange(stream)
            # The sign was trimmed, so that one which had been frozen could not read it, and signed again.
            await redis.xtrim(stream, maxlen=0)
            await redis.xadd(stream, {OPENED: b"1-0"})

            async def is_signed_again() -> bool:
                return [fields[OPENED] for _, fields in await redis.xrange(stream)] == [b"1-0", sign]

            await until(is_signed_again)
            await answers_arrive(client, redis, deployment)


async def test_a_producer_with_the_least_rights_may_have_a_name(deployment: Deployment) -> None:
    async with users(deployment) as urls, deployment.worker():
        for _ in range(2):
            async with Client(urls["producer"], namespace=deployment.namespace, name=NAME) as client:
                assert (await client.propose(client.create_flow_run("nightly"), State.running())).accepted
        with pytest.raises(
            RedisUnavailable, match=f"stream of client '{NAME}' cannot be taken over.* may not run XADD"
        ):
            async with Client(urls["subscriber"], namespace=deployment.namespace, name=NAME):
                pass


async def test_a_client_may_be_named_by_a_setting(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEWRIGHT_CLIENT_NAME", NAME)
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client():
            assert await redis.exists(deployment.channels.replies(NAME))
        monkeypatch.setenv("STATEWRIGHT_CLIENT_NAME", "no name")
        with pytest.raises(ConfigurationError, match="STATEWRIGHT_CLIENT_NAME"):
            deployment.client()
