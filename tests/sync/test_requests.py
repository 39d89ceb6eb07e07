"""Requests without an event loop: what is sent, what comes back, and who waits for it."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from statewright import (
    ConfigurationError,
    Delivery,
    InvalidRequest,
    MessageTooLarge,
    NoAnswer,
    NotOpen,
    Proposal,
    RedisUnavailable,
    RunNotFound,
    SetStateStatus,
    State,
    Verdict,
)
from statewright.ids import IdSource
from statewright.sync import AsAnswered, Client
from tests.deployment import HANGS_SECONDS, Deployment

Result = TypeVar("Result")
ids = IdSource()
ACCEPT = SetStateStatus.ACCEPT


async def used(deployment: Deployment, use: Callable[[Client], Result], partitions: int = 2, **changes: Any) -> Result:
    """Return what a thread returns that uses a client, while a worker answers."""

    def in_a_thread() -> Result:
        with deployment.sync_client(**changes) as client:
            return use(client)

    async with deployment.worker(partitions=partitions):
        return await asyncio.to_thread(in_a_thread)


async def test_every_call_returns_what_it_does_with_an_event_loop(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        assert client.partitions == 2
        creation = client.create_flow_run("nightly", state=State.pending(), idempotency_key="nightly/1")
        flow_run = creation.answer()
        assert (creation.created, creation.run_id, flow_run.state_name) == (True, flow_run.id, "Pending")
        task_run = client.create_task_run("load", flow_run=creation, tags=["database"]).answer()
        assert client.update_run(task_run, name="unload").answer().name == "unload"
        limit = client.set_limit("database", 2).answer()
        assert limit == client.read_limit("database").answer()
        verdict = client.propose(task_run, State.running(), lease=30).answer()
        assert verdict.accepted
        assert client.heartbeat(verdict) == []
        assert [limit.key for limit in client.list_limits()] == ["database"]
        history = client.read_run(task_run).answer()
        assert [state.name for state in history.states] == ["Running"]
        assert client.read_run(creation, history=False).answer() == flow_run
        assert [run.name for run in client.find_runs(parent=creation, leased=True).runs] == ["unload"]
        assert [count.count for count in client.count_runs(kind="flow-run")] == [1]
        assert [below.run.id for below in client.tree(flow_run).below] == [task_run.id]
        assert [worker.partitions for worker in client.list_workers()] == [(0, 1)]
        assert sum(partition.sequence for partition in client.list_partitions()) == 2

    await used(deployment, use)


async def test_requests_are_sent_at_once_and_answered_later_in_any_thread(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        run = client.create_flow_run("nightly")
        sent = [client.propose(run, state) for state in (State.pending(), State.running(), State.completed())]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(one.answer) for one in sent for _ in range(4)]
            assert {answer.result(HANGS_SECONDS).status for answer in answers} == {ACCEPT}
        assert sent[0].pushed() == sent[0].request_id == sent[0].answer().proposal_id
        assert [state.name for state in client.read_run(run).answer().states] == ["Pending", "Running", "Completed"]

    await used(deployment, use)


async def test_answers_are_told_as_they_come_and_more_may_be_asked_meanwhile(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        runs = [client.create_task_run(f"run {number}") for number in range(50)]
        under_way = AsAnswered(client.propose(run, State.pending()) for run in runs)
        assert len(under_way) == 50
        statuses: dict[Any, list[SetStateStatus]] = {}
        for sent in under_way:
            told = statuses.setdefault(sent.run_id, [])
            told.append(sent.answer(timeout=0).status)
            if len(told) == 1:
                under_way.add(client.propose(sent.run_id, State.running()))
        assert statuses == {run.run_id: [ACCEPT, ACCEPT] for run in runs}
        assert len(under_way) == 0

    await used(deployment, use)


async def test_a_long_history_is_read_to_its_end(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        run = client.create_flow_run("long")
        for number in range(150):
            client.propose(run, State.scheduled() if number % 2 else State.pending(), force=True)
        reading = client.read_run(run)
        assert len(reading.answer().states) == 150
        assert reading.answer(timeout=HANGS_SECONDS) == reading.answer()

    await used(deployment, use)


async def test_many_threads_share_a_client_that_the_first_of_them_opens(deployment: Deployment) -> None:
    def work(client: Client, number: int) -> list[SetStateStatus]:
        run = client.create_task_run(f"thread {number}")
        states = (State.pending(), State.running(), State.completed())
        return [client.propose(run, state).answer().status for state in states]

    def use() -> list[list[SetStateStatus]]:
        client = deployment.sync_client()
        with ThreadPoolExecutor(16) as pool:
            done = list(pool.map(lambda number: work(client, number), range(64)))
        client.close()
        return done

    async with deployment.worker(partitions=4), deployment.redis() as redis:
        assert await asyncio.to_thread(use) == [[ACCEPT] * 3] * 64
        assert len([key async for key in redis.scan_iter(match=f"{deployment.namespace}:replies:*")]) == 1


async def test_what_a_user_iterates_over_runs_in_the_users_thread(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        here = threading.get_ident()
        ran_in = set()

        def proposals() -> Iterator[Proposal]:
            for _ in range(3):
                ran_in.add(threading.get_ident())
                # It may wait for answers.
                yield Proposal(client.create_task_run("made on the way").answer(), State.running(), timeout=60)

        answers = client.propose_many(proposals())
        assert [answer.status for answer in answers if isinstance(answer, Verdict)] == [ACCEPT] * 3
        assert ran_in == {here}
        runs = (answer.run_id for answer in answers if isinstance(answer, Verdict))
        assert len(client.heartbeat(runs)) == 3

    await used(deployment, use)


async def test_errors_come_where_they_do_with_an_event_loop(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        with pytest.raises(InvalidRequest) as wrong:
            client.propose("seven", State.pending())
        assert wrong.value.field == "run"
        with pytest.raises(MessageTooLarge):
            client.propose(ids.new(), State.completed(data="x" * 2_000_000))
        missing = client.propose(ids.new(), State.pending())
        for _ in "12":
            with pytest.raises(RunNotFound):
                missing.answer()
        with pytest.raises(InvalidRequest, match="lease"):
            client.keep_alive(ids.new(), lease=-1)
        with pytest.raises(InvalidRequest):
            client.withdraw("nothing")
        with pytest.raises(asyncio.InvalidStateError, match=r"ask for its answer\(\)"):
            assert client.create_flow_run("unanswered").created
        with pytest.raises(InvalidRequest, match="timeout"):
            missing.answer(timeout=-1)

    await used(deployment, use)


async def test_who_waits_in_vain_is_told_how_far_the_request_got(deployment: Deployment) -> None:
    def use() -> None:
        with deployment.sync_client(answer_timeout=30) as client:
            sent = client.create_flow_run("nobody works")
            sent.pushed()
            with pytest.raises(NoAnswer, match=r"within 0.05 s") as told:
                sent.answer(timeout=0.05)
            assert (told.value.delivery, told.value.proposal_id) == (Delivery.UNANSWERED, sent.request_id)
            under_way = AsAnswered([sent], timeout=0.05)
            with pytest.raises(NoAnswer):
                next(under_way)
            assert list(under_way) == []
            with pytest.raises(NoAnswer, match=r"within 0.05 s"):
                client.read_run(sent).answer(timeout=0.05)
            with pytest.raises(NoAnswer, match="within 0 s"):
                client.propose(sent, State.running(), timeout=0).answer()

    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
    await asyncio.to_thread(use)


async def test_opening_says_why_it_fails_to_each_thread_that_asks_for_it(deployment: Deployment) -> None:
    def use() -> None:
        client = deployment.sync_client(answer_timeout=0.3)
        with pytest.raises(ConfigurationError, match="no worker has announced itself"):
            client.__enter__()
        began = time.monotonic()
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(client.create_flow_run, "early") for _ in range(6)]
            assert {type(one.exception(HANGS_SECONDS)) for one in asked} == {ConfigurationError}
        # They need not fail one after the other.
        assert time.monotonic() - began < 1.5
        with pytest.raises(RedisUnavailable, match="cannot reach Redis"):
            Client("redis://127.0.0.1:1").create_flow_run("nowhere")
        with pytest.raises(ConfigurationError):
            Client("nowhere")

    await asyncio.to_thread(use)
    assert "statewright" not in {thread.name for thread in threading.enumerate()}


async def test_a_client_is_closed_and_opened_again(deployment: Deployment) -> None:
    def use() -> None:
        client = deployment.sync_client()
        client.close()
        with pytest.raises(NotOpen, match="the client is closed"):
            client.create_flow_run("too late")
        for name in ("first", "again"):
            with client:
                with pytest.raises(NotOpen, match="open already"):
                    client.__enter__()
                sent = client.create_flow_run(name)
                assert sent.answer().name == name
            # What is answered stays answered.
            assert sent.answer().name == name
            with pytest.raises(NotOpen, match="the client is closed"):
                client.propose(sent, State.running())
            client.close()

    async with deployment.worker(partitions=1):
        await asyncio.to_thread(use)


async def test_closing_sends_what_is_left_and_wakes_who_waits(deployment: Deployment) -> None:
    def use() -> None:
        with deployment.sync_client() as client, ThreadPoolExecutor(4) as pool:
            sent = [client.create_flow_run(f"run {number}") for number in range(100)]
            waiting = [pool.submit(one.answer) for one in sent[:4]]
            # Each of the threads waits by then, or will be told at once.
            client.close()
            for one in waiting:
                error = one.exception(HANGS_SECONDS)
                assert isinstance(error, NoAnswer)
                assert error.delivery is Delivery.UNANSWERED
        with pytest.raises(NoAnswer, match="before the client was closed"):
            sent[-1].answer()

    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        await asyncio.to_thread(use)
        assert await redis.xlen(deployment.channels.proposals(0)) == 100


async def test_threads_that_use_a_client_while_it_is_closed_are_told(deployment: Deployment) -> None:
    def work(client: Client) -> type[BaseException]:
        try:
            while True:
                client.create_flow_run("again and again").answer(timeout=HANGS_SECONDS)
        except (NotOpen, NoAnswer) as error:
            return type(error)

    def use() -> None:
        for _ in range(5):
            client = deployment.sync_client()
            client.create_flow_run("first").answer()
            with ThreadPoolExecutor(6) as pool:
                working = [pool.submit(work, client) for _ in range(6)]
                client.create_flow_run("last").answer()
                client.close()
                assert {one.result(HANGS_SECONDS) for one in working} <= {NotOpen, NoAnswer}

    async with deployment.worker(partitions=2):
        await asyncio.to_thread(use)


async def test_a_client_that_nobody_has_any_more_leaves_no_thread(deployment: Deployment) -> None:
    def use() -> None:
        sent = deployment.sync_client().create_flow_run("its client lives as long as the request")
        gc.collect()
        assert sent.answer().name.startswith("its client lives")

    async with deployment.worker(partitions=1):
        await asyncio.to_thread(use)
        gc.collect()
        deadline = time.monotonic() + HANGS_SECONDS
        while any(thread.name == "statewright" for thread in threading.enumerate()):
            await asyncio.sleep(0.02)
            assert time.monotonic() < deadline


async def test_an_event_loop_that_runs_in_the_callers_thread_is_no_hindrance(deployment: Deployment) -> None:
    deployment.spawn_worker()
    await deployment.announced()
    # As in a notebook, whose cells run within an event loop.
    asyncio.get_running_loop()
    with deployment.sync_client() as client:
        run = client.create_flow_run("in a notebook").answer()
        assert client.propose(run, State.running()).answer().accepted


async def test_the_clients_own_thread_does_not_wait_for_itself(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        sent = client.create_flow_run("not answered yet")
        background = client._opened().background
        with pytest.raises(NotOpen, match="background thread"):
            background.call(client.list_limits)
        with pytest.raises(NotOpen, match="background thread"):
            background.call(lambda: client.create_flow_run("another").answer())
        assert sent.answer()

    await used(deployment, use)


async def test_a_parked_proposal_is_waited_for_and_withdrawn(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        client.set_limit("one", 1).answer()
        runs = [client.create_task_run(name, tags=["one"]) for name in ("first", "second", "third")]
        assert client.propose(runs[0], State.running()).answer().accepted
        second, third = (client.propose(run, State.running(), on_wait="park") for run in runs[1:])
        parked = second.until_parked()
        assert parked is not None
        assert second.parked == parked
        with pytest.raises(NoAnswer, match=r"within 0.05 s") as told:
            second.answer(timeout=0.05)
        assert told.value.delivery is Delivery.PARKED
        third.until_parked()
        assert client.withdraw(third) is True
        assert third.answer().status == "ABORT"
        assert client.withdraw(third.request_id) is False
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(second.answer)
            client.propose(runs[0], State.completed()).answer()
            assert waiting.result(HANGS_SECONDS).accepted
        assert second.until_parked() is None

    await used(deployment, use)
