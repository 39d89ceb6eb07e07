"""Named subscriptions, named clients and missing rights without an event loop."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from statewright import Event, NotOpen, NotPermitted, RunNotFound, State, SubscriptionNotFound, Verdict
from statewright.ids import IdSource
from statewright.sync import Client
from tests.deployment import HANGS_SECONDS, Deployment
from tests.end_to_end.test_access import user_of, users
from tests.end_to_end.test_client_use import in_a_child
from tests.sync.test_requests import used

ids = IdSource()


async def test_members_in_threads_share_a_named_subscription(deployment: Deployment) -> None:
    def member(client: Client, handled: list[Event], enough: threading.Event) -> None:
        with client.subscribe("billing", since="beginning", kinds="flow-run") as events:
            assert events.name == "billing"
            while not enough.is_set():
                event = events.next(timeout=0.1)
                if event is not None:
                    assert events.acknowledge(event)
                    handled.append(event)
            assert all(partition in (0, 1) for partition, _ in events.shares)
            events.flush()

    def use(client: Client) -> None:
        runs = [client.create_flow_run(f"run {number}") for number in range(40)]
        states = (State.pending(), State.running(), State.completed())
        proposed = [client.propose(run, state) for run in runs for state in states]
        handled: list[Event] = []
        enough = threading.Event()
        with ThreadPoolExecutor(3) as pool:
            members = [pool.submit(member, client, handled, enough) for _ in range(3)]
            deadline = time.monotonic() + HANGS_SECONDS
            while len({event.id for event in handled}) < len(proposed):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            enough.set()
            for one in members:
                one.result(HANGS_SECONDS)
        for run in runs:
            names = [event.data.validated_state.name for event in handled if event.run_id == run.run_id]
            assert names == ["Pending", "Running", "Completed"]
        status = client.read_subscription("billing").answer()
        assert status is not None
        assert (status.lag, status.member_count) == (0, 0)
        assert [one.name for one in client.list_subscriptions()] == ["billing"]
        assert client.reset_subscription("billing", "beginning").lag == len(proposed)

    await used(deployment, use)


async def test_what_a_member_refuses_comes_again_and_goes_to_the_dead_letters(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        run = client.create_flow_run("refused")
        client.propose(run, State.pending()).answer()
        with client.subscribe("audit", since="beginning", max_tries=2) as events:
            for _ in "12":
                assert events.refuse(next(events), ValueError("not like this"))
            events.flush()
            status = client.read_subscription("audit").answer()
            assert status is not None
            assert [letter.error for letter in status.dead_letters] == ["ValueError: not like this"]
            assert client.retry_dead_letters("audit").answer() == 1
            assert events.acknowledge(next(events))
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(next, events)
                client.remove_subscription("audit").answer()
                assert isinstance(waiting.exception(HANGS_SECONDS), SubscriptionNotFound)
        with pytest.raises(NotOpen, match="not begun"):
            client.subscribe("audit").acknowledge()

    await used(deployment, use, partitions=1)


async def test_answers_that_nobody_has_are_told_to_the_next_client_of_the_name(deployment: Deployment) -> None:
    def proposed(client: Client, run_id: UUID) -> UUID:
        # Whoever drops the request drops its answer.
        return client.propose(run_id, State.running()).pushed()

    def use() -> None:
        with deployment.sync_client(name="billing-1") as client:
            run = client.create_flow_run("nightly").answer()
            proposal_ids = [proposed(client, run.id), proposed(client, ids.new())]
            verdict = client.verdict(proposal_ids[0], run=run).answer()
            assert isinstance(verdict, Verdict)
            assert client.verdict(ids.new()).answer() is None
            with pytest.raises(RunNotFound):
                client.verdict(proposal_ids[1]).answer()
            # Those were asked for. These two are told each time, until the one behind them is taken.
            more = [proposed(client, run.id), proposed(client, run.id)]
            client.read_run(run).answer()
        with deployment.sync_client(name="billing-1") as client:
            answers = client.unclaimed()
            assert [answer.proposal_id for answer in answers if isinstance(answer, Verdict)] == more
            assert list(client.unclaimed()) == []

    async with deployment.worker(partitions=1):
        await asyncio.to_thread(use)


async def test_a_name_is_not_taken_by_every_process_that_is_forked_off(deployment: Deployment) -> None:
    def child_says(client: Client) -> str:
        with pytest.raises(NotOpen, match="give each process its own"):
            client.create_flow_run("child's")
        return "refused"

    def use() -> None:
        with deployment.sync_client(name="billing-1") as client:
            client.create_flow_run("parent's").answer()
            assert in_a_child(lambda: child_says(client)) == "refused"
            assert client.create_flow_run("parent's still").answer().name == "parent's still"

    async with deployment.worker(partitions=1):
        await asyncio.to_thread(use)


async def test_a_thread_that_waits_for_what_may_not_be_read_is_told(deployment: Deployment) -> None:
    def use(url: str, set_rights: "list[str]") -> None:
        with Client(url, namespace=deployment.namespace, answer_timeout=HANGS_SECONDS) as client:
            pending = client.read_limit("tag")
            began = time.monotonic()
            with pytest.raises(NotPermitted) as refused:
                pending.answer()
            assert time.monotonic() - began < HANGS_SECONDS / 2
            assert refused.value.command == "XREAD"
            set_rights.append("back")

    async with users(deployment) as urls, deployment.worker(), deployment.redis() as redis:
        await deployment.answering()
        await redis.execute_command("ACL", "SETUSER", user_of(urls["producer"]), "-xread")  # type: ignore[no-untyped-call]
        done: list[str] = []
        await asyncio.to_thread(use, urls["producer"], done)
        assert done == ["back"]
