"""Whoever awaits a client may be cancelled, or have a deadline: it ends at once, leaves nothing, and can go on."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from statewright import Client, NoAnswer, Proposal, State
from statewright.ids import IdSource
from tests.deployment import HANGS_SECONDS, Deployment, until
from tests.end_to_end.black_hole import BlackHole, black_hole
from tests.end_to_end.hand_worker import announce, requests
from tests.end_to_end.own_redis import own_redis
from tests.end_to_end.test_client_faults import answers_arrive

ids = IdSource()
RUN = ids.new()
AT_ONCE = 2.0
"""Seconds within which everything ends here, on a busy machine too; without an end it would take a minute."""


async def kept_alive(client: Client) -> None:
    async with client.keep_alive(RUN):
        raise AssertionError("nobody answers")


UNANSWERED: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "answer": lambda client: client.read_limit("tag").answer(),
    "sent": lambda client: awaited(client.read_limit("tag")),
    "creation": lambda client: client.create_flow_run("nightly").answer(),
    "proposal": lambda client: client.propose(RUN, State.running()).answer(),
    "parked proposal": lambda client: client.propose(RUN, State.running(), on_wait="park").answer(),
    "until parked": lambda client: client.propose(RUN, State.running(), on_wait="park").until_parked(),
    "verdict": lambda client: client.verdict(RUN).answer(),
    "history": lambda client: client.read_run(RUN).answer(),
    "many proposals": lambda client: client.propose_many([Proposal(RUN, State.running())] * 3),
    "withdraw": lambda client: client.withdraw(RUN),
    "heartbeat": lambda client: client.heartbeat(RUN),
    "keep alive": kept_alive,
    "limits": lambda client: client.list_limits(),
}


async def awaited(sent: Any) -> Any:
    return await sent


@asynccontextmanager
async def nothing_left(client: Client) -> AsyncIterator[None]:
    """Fail when the block leaves a task, a timer of a request, or the future of an answer."""
    tasks, timers, futures = asyncio.all_tasks(), timers_of_requests(), len(client._inbox._expected)
    yield
    # What was cancelled ends with the next turn of the loop.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    new = {task for task in asyncio.all_tasks() - tasks if task.get_coro().__qualname__ != "Heart._beat"}  # type: ignore[union-attr]
    assert not new
    assert timers_of_requests() == timers
    assert len(client._inbox._expected) == futures


def timers_of_requests() -> int:
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    own = [timer for timer in scheduled if not timer.cancelled() and "statewright.client" in repr(timer._callback)]
    return len([*own, *(timer for timer in scheduled if not timer.cancelled() and "wake" in repr(timer))])


@asynccontextmanager
async def unanswered(deployment: Deployment) -> AsyncIterator[tuple[Client, Any]]:
    """A client whose requests reach Redis, and that nobody answers."""
    async with deployment.redis() as redis:
        await announce(redis, deployment)
        async with deployment.client() as client:
            await answers_arrive(client, redis, deployment)
            yield client, redis


@pytest.mark.parametrize("call", UNANSWERED.values(), ids=UNANSWERED)
async def test_a_task_that_awaits_an_answer_can_be_cancelled(
    deployment: Deployment, call: Callable[[Client], Awaitable[Any]]
) -> None:
    async with unanswered(deployment) as (client, redis):
        async with nothing_left(client):
            task = asyncio.ensure_future(call(client))
            await until(lambda: requests(redis, deployment))
            task.cancel()
            async with asyncio.timeout(AT_ONCE):
                with pytest.raises(asyncio.CancelledError):
                    await task
            del task
        await answers_arrive(client, redis, deployment)


@pytest.mark.parametrize("call", UNANSWERED.values(), ids=UNANSWERED)
async def test_awaiting_an_answer_takes_part_in_the_callers_deadline(
    deployment: Deployment, call: Callable[[Client], Awaitable[Any]]
) -> None:
    async with unanswered(deployment) as (client, redis):
        async with nothing_left(client):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await call(client)
        await answers_arrive(client, redis, deployment)


async def test_who_awaits_the_same_answer_goes_on_when_one_is_cancelled(deployment: Deployment) -> None:
    async with unanswered(deployment) as (client, redis):
        sent = client.read_limit("tag")
        tasks = [asyncio.ensure_future(sent.answer()) for _ in range(2)]
        pushed = asyncio.ensure_future(sent.pushed())
        await until(lambda: requests(redis, deployment))
        tasks[0].cancel()
        await asyncio.wait({tasks[0], pushed})
        await answers_arrive(client, redis, deployment)
        assert await tasks[1] is None


@asynccontextmanager
async def unheard(deployment: Deployment, **settings: Any) -> AsyncIterator[tuple[Client, BlackHole]]:
    """A client that nobody hears any more; nobody but the test leaves its block."""
    async with black_hole(deployment.redis_url) as hole, deployment.redis() as redis:
        await announce(redis, deployment)
        client = Client(hole.url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS, **settings)
        await client.__aenter__()
        await answers_arrive(client, redis, deployment)
        hole.swallow()
        yield client, hole


@pytest.mark.parametrize("by_deadline", [True, False])
async def test_awaiting_that_redis_holds_a_request_can_be_cancelled(deployment: Deployment, by_deadline: bool) -> None:
    async with unheard(deployment) as (client, hole), deployment.redis() as redis:
        sent = client.read_limit("tag")
        async with nothing_left(client):
            if by_deadline:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await sent.pushed()
            else:
                task = asyncio.ensure_future(sent.pushed())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        hole.drop()
        hole.reopen()
        # It was not cancelled itself.
        await sent.pushed()
        await answers_arrive(client, redis, deployment)
        await client.__aexit__(None, None, None)


@pytest.mark.parametrize("name", [None, "billing-1"])
async def test_closing_ends_at_once_when_it_is_cancelled(deployment: Deployment, name: str | None) -> None:
    tasks = asyncio.all_tasks()
    async with unheard(deployment, name=name) as (client, _):
        sent = client.read_limit("tag")
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() < began + AT_ONCE
        with pytest.raises(NoAnswer, match="before the client was closed"):
            await sent.pushed()
    await until(lambda: none_but(tasks))


async def none_but(tasks: set[Any]) -> bool:
    return not {task for task in asyncio.all_tasks() - tasks if "statewright" in repr(task)}


@pytest.mark.parametrize("name", [None, "billing-1"])
async def test_leaving_a_block_that_was_cancelled_takes_a_short_time(deployment: Deployment, name: str | None) -> None:
    """The client would wait a minute for a Redis that does not answer."""
    tasks = asyncio.all_tasks()
    async with unheard(deployment, name=name) as (client, _):
        began = asyncio.Event()

        async def work() -> None:
            try:
                client.read_limit("tag")
                began.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError as cancelled:
                await client.__aexit__(type(cancelled), cancelled, None)
                raise

        task = asyncio.ensure_future(work())
        await began.wait()
        task.cancel()
        async with asyncio.timeout(3 * AT_ONCE):
            with pytest.raises(asyncio.CancelledError):
                await task
        del task
    await until(lambda: none_but(tasks))


async def test_what_was_sent_in_a_block_that_was_cancelled_still_reaches_redis(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await announce(redis, deployment)

        async def send() -> None:
            async with asyncio.timeout(1), deployment.client() as client:
                for _ in range(2):
                    sent = [client.read_limit("tag") for _ in range(1_000)]
                    await sent[0].pushed()
                await sent[0]

        with pytest.raises(TimeoutError):
            await send()
        assert len(await requests(redis, deployment)) == 2_000


async def test_a_client_whose_server_is_gone_leaves_a_cancelled_block_soon(deployment: Deployment) -> None:
    async with own_redis(deployment) as own, asyncio.timeout(5 * AT_ONCE):
        await announce(own.redis, deployment)

        async def send() -> None:
            async with asyncio.timeout(1), deployment.client() as client:
                await answers_arrive(client, own.redis, deployment)
                own.process.kill()
                own.process.wait()
                await client.read_limit("tag")

        with pytest.raises(TimeoutError):
            await send()


async def test_opening_takes_part_in_the_callers_deadline(deployment: Deployment) -> None:
    tasks = asyncio.all_tasks()
    async with black_hole(deployment.redis_url) as hole, deployment.redis() as redis:
        await announce(redis, deployment)
        for name in (None, "billing-1"):
            client = Client(hole.url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS, name=name)
            hole.swallow()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(AT_ONCE), asyncio.timeout(0.05):
                    await client.__aenter__()
            hole.reopen()
            async with client:
                await answers_arrive(client, redis, deployment)
    await until(lambda: none_but(tasks))


async def test_a_block_that_keeps_a_lease_alive_can_be_cancelled(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        run = await client.create_task_run("load")
        verdict = await client.propose(run, State.running(), lease=30)
        async with nothing_left(client):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), client.keep_alive(verdict):
                    await asyncio.Event().wait()
        assert await client.heartbeat(verdict) == []
