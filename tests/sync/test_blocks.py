"""Blocks without an event loop: leases that are kept, executors, and subscriptions."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from statewright import LeaseLost, NotOpen, RunNotFound, State, StateType
from statewright.ids import IdSource
from statewright.sync import Client, KeepAlive
from tests.deployment import HANGS_SECONDS, Deployment
from tests.sync.test_requests import used

ids = IdSource()


def until_lost(lost: list[LeaseLost]) -> None:
    deadline = time.monotonic() + HANGS_SECONDS
    while not lost:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


async def test_a_lease_is_kept_while_its_block_runs(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        run = client.create_task_run("work")
        verdict = client.propose(run, State.running(), lease=0.5).answer()
        with client.subscribe() as events, client.keep_alive(verdict) as kept:
            assert kept.run_id == run.run_id
            # Three leases long, nothing happens.
            assert events.next(timeout=1.5) is None
            kept.check()
            assert kept.lost is None
        assert client.propose(run, State.completed()).answer().accepted
        # Its length is asked for where nobody says it.
        other = client.create_task_run("other")
        client.propose(other, State.running(), lease=20).answer()
        with client.keep_alive(other):
            pass

    await used(deployment, use)


async def test_a_block_whose_lease_is_lost_says_so_at_its_end(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        lease = 0.6
        runs = [client.create_task_run(f"work {number}").run_id for number in range(3)]
        reached: list[str] = []

        def work(run: UUID, then: Callable[[KeepAlive], object]) -> None:
            client.propose(run, State.running(), lease=lease).answer()
            with client.keep_alive(run, lease=lease) as kept:
                assert client.propose(run, State.cancelled()).answer().accepted
                while kept.lost is None:
                    threading.Event().wait(0.02)
                # Nothing ends the block but itself.
                then(kept)
                reached.append("the end")

        with pytest.raises(LeaseLost) as lost:
            work(runs[0], lambda kept: kept.lost)
        assert lost.value.run_id == runs[0]
        assert reached == ["the end"]
        with pytest.raises(LeaseLost):
            work(runs[1], lambda kept: kept.check())
        # What the block raises itself comes first.
        with pytest.raises(ZeroDivisionError):
            work(runs[2], lambda kept: 1 / 0)
        assert reached == ["the end"]
        with pytest.raises(LeaseLost), client.keep_alive(runs[0]):
            pytest.fail("the engine says that there is no such lease")

    await used(deployment, use)


async def test_what_a_block_raises_leaves_it_as_it_was_raised(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        run = client.create_task_run("work")
        verdict = client.propose(run, State.running(), lease=20).answer()
        for error in (ZeroDivisionError("mine"), KeyboardInterrupt(), SystemExit(3)):
            with pytest.raises(type(error)) as raised, client.keep_alive(verdict):
                raise error
            assert raised.value is error
            assert {entry.path.name for entry in raised.traceback} == {"test_blocks.py"}  # type: ignore[union-attr]
        # The client goes on.
        assert client.propose(run, State.completed()).answer().accepted

    await used(deployment, use)


async def test_a_block_ends_when_its_client_is_closed(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        run = client.create_task_run("work")
        verdict = client.propose(run, State.running(), lease=20).answer()
        kept, executor = client.keep_alive(verdict), client.executor("worker-1")
        with pytest.raises(LeaseLost, match="the client was closed"), kept, executor:
            client.close()

    await used(deployment, use)


async def test_an_executor_holds_runs_and_tells_in_a_thread_which_are_lost(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        lost: list[LeaseLost] = []
        states: list[StateType | None] = []

        def on_lost(why: LeaseLost) -> None:
            # It may wait for answers, and even fail.
            states.append(client.read_run(why.run_id, history=False).answer().state_type)
            lost.append(why)

        with client.executor("worker-1", lease=0.6, on_lost=on_lost) as executor:
            assert executor.name == "worker-1"
            runs = [client.create_task_run(f"work {number}") for number in range(3)]
            assert all(executor.propose(run, State.running()).answer().accepted for run in runs)
            assert executor.runs == {run.run_id for run in runs}
            assert client.propose(runs[0], State.cancelled()).answer().accepted
            until_lost(lost)
            assert executor.propose(runs[1], State.completed()).answer().accepted
            assert executor.runs == {runs[2].run_id}
            with pytest.raises(RunNotFound):
                executor.propose(ids.new(), State.running()).answer()
        assert [(why.run_id, state) for why, state in zip(lost, states, strict=True)] == [(runs[0].run_id, "CANCELLED")]
        with pytest.raises(NotOpen, match="executor"):
            executor.propose(runs[2], State.completed())

    await used(deployment, use)


async def test_a_subscription_is_gone_through_and_taken_up_again(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        subscription = client.subscribe()
        with pytest.raises(NotOpen, match="within its `with`"):
            next(subscription)
        with subscription as events:
            run = client.create_flow_run("watched")
            for state in (State.pending(), State.running(), State.completed()):
                client.propose(run, state)
            first = next(events)
            assert (first.run_id, first.data.validated_state.name) == (run.run_id, "Pending")
            kept = events.positions
            assert [next(events).data.validated_state.name for _ in "12"] == ["Running", "Completed"]
            assert events.next(timeout=0.05) is None
            # What comes after a timeout is told all the same.
            client.propose(client.create_flow_run("later"), State.pending())
            later = events.next(timeout=HANGS_SECONDS)
            assert later is not None
            assert later.data.resource.name == "later"
        with pytest.raises(NotOpen, match="closed"):
            events.next()
        assert list(events) == []
        with client.subscribe(since=kept) as again:
            assert next(again).data.validated_state.name == "Running"

    await used(deployment, use, partitions=1)


async def test_another_thread_ends_a_subscription(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        with ThreadPoolExecutor(4) as pool:
            for close_client in (False, True):
                with client.subscribe() as events:
                    waiting = [pool.submit(list, events) for _ in range(3)]
                    client.propose(client.create_flow_run("one"), State.pending()).answer()
                    (client if close_client else events).close()
                    told = [event for one in waiting for event in one.result(HANGS_SECONDS)]
                    assert [event.data.resource.name for event in told] in ([], ["one"])
                    events.close()

    await used(deployment, use)


async def test_a_subscription_to_nothing_is_refused(deployment: Deployment) -> None:
    def use(client: Client) -> None:
        with pytest.raises(Exception, match="names no partition"), client.subscribe(since={7: 1}):
            pytest.fail("there is no such partition")
        # Whoever is refused leaves nothing behind.
        with client.subscribe(since={}) as events:
            assert events.next(timeout=0) is None

    await used(deployment, use)
