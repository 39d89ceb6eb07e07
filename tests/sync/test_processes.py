"""A client without an event loop where processes are forked, interrupted and ended."""

import asyncio
import os
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable

import pytest

from statewright import NotOpen, State, Verdict
from statewright.sync import Client, KeepAlive, Sent
from tests.deployment import HANGS_SECONDS, Deployment
from tests.end_to_end.black_hole import black_hole
from tests.end_to_end.test_client_use import in_a_child


async def script(
    deployment: Deployment, code: str, **environment: str
) -> "tuple[subprocess.CompletedProcess[str], float]":
    """Run a script that uses a client as the environment says; return what it did, and for how many seconds."""
    run = [sys.executable, "-W", "default", "-c", code]
    variables = {**os.environ, **deployment.variables, "STATEWRIGHT_ANSWER_TIMEOUT": "30", **environment}

    def ended() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(run, env=variables, capture_output=True, text=True, check=False, timeout=HANGS_SECONDS)

    began = time.monotonic()
    done = await asyncio.to_thread(ended)
    return done, time.monotonic() - began


async def test_a_process_that_was_forked_off_opens_its_own_by_itself(deployment: Deployment) -> None:
    def use() -> None:
        opened, unopened, closed = (deployment.sync_client() for _ in range(3))
        opened.set_limit("one", 1).answer()
        first, second = (opened.create_task_run(name, tags=["one"]) for name in ("first", "second"))
        opened.propose(first, State.running()).answer()
        unanswered = opened.propose(second, State.running(), on_wait="park")
        unanswered.until_parked()
        closed.close()
        with opened.subscribe() as events:
            for _ in "12":
                assert in_a_child(lambda: child_says(opened, unopened, closed, unanswered)) == "child's|child's|closed|"
            assert in_a_child(lambda: str(elsewhere(events.__next__))).endswith("begin it anew here")
            opened.propose(first, State.completed())
            assert unanswered.answer().accepted
            assert next(events).data.resource.name == "first"
        assert opened.create_flow_run("parent's again").answer().name == "parent's again"
        for client in (opened, unopened):
            client.close()

    def child_says(opened: Client, unopened: Client, closed: Client, parents: Sent[Verdict]) -> str:
        names = [client.create_flow_run("child's").answer().name for client in (opened, unopened)]
        with pytest.raises(NotOpen, match="is closed"):
            closed.create_flow_run("child's")
        with pytest.raises(NotOpen, match="in another process"):
            parents.answer()
        opened.close()
        return "|".join([*names, "closed", ""])

    def elsewhere(do: Callable[[], object]) -> BaseException | None:
        try:
            do()
        except NotOpen as error:
            return error
        return None

    async with deployment.worker(partitions=1):
        await asyncio.to_thread(use)


async def test_blocks_that_a_child_inherits_are_the_parents(deployment: Deployment) -> None:
    def use() -> None:
        with deployment.sync_client() as client:
            run = client.create_task_run("leased")
            verdict = client.propose(run, State.running(), lease=30).answer()
            kept = client.keep_alive(verdict)
            kept.__enter__()
            assert in_a_child(lambda: left(kept)) == "left"
            kept.__exit__(None, None, None)
            assert client.propose(run, State.completed()).answer().accepted

    def left(kept: KeepAlive) -> str:
        kept.__exit__(None, None, None)
        return "left"

    async with deployment.worker(partitions=1):
        await asyncio.to_thread(use)


NEVER_CLOSED = """
from statewright.sync import Client
client = Client()
for number in range(2_000):
    client.create_flow_run(f"run {number}")
"""
SUBSCRIBED = """
import threading
from statewright import State
from statewright.sync import Client
client = Client()
events = client.subscribe()
events.__enter__()
begun = threading.Event()
def listen():
    begun.set()
    for event in events:
        pass
threading.Thread(target=listen, daemon=True).start()
begun.wait()
verdict = client.propose(client.create_task_run("leased"), State.running(), lease=30).answer()
client.keep_alive(verdict).__enter__()
client.executor("left open").__enter__()
import gc
gc.collect()
print(verdict.status)
"""
WAITING = """
import threading
from statewright.sync import Client
client = Client()
sent = client.create_flow_run("nobody works")
sent.pushed()
threading.Thread(target=sent.answer, daemon=True).start()
other = Client()
other.partitions
"""
AWAY = """
from statewright.sync import Client
client = Client()
client.create_flow_run("first").pushed()
print("opened", flush=True)
input()
client.create_flow_run("nobody hears of it")
"""
FORKED = """
import os
from statewright.sync import Client
client = Client()
client.create_flow_run("parent's").answer()
child = os.fork()
print(client.create_flow_run("either's").answer().name, flush=True)
if child:
    os.waitpid(child, 0)
"""


async def test_what_was_sent_is_in_redis_when_the_interpreter_has_ended(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
        done, seconds = await script(deployment, NEVER_CLOSED)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert await redis.xlen(deployment.channels.proposals(0)) == 2_000
    assert seconds < 30


async def test_the_end_waits_for_nobody_who_waits(deployment: Deployment) -> None:
    async with deployment.redis() as redis:
        await redis.set(deployment.channels.partitions, 1)
    done, seconds = await script(deployment, WAITING)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert seconds < 20


async def test_blocks_that_are_open_at_the_end_do_no_harm(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2):
        done, seconds = await script(deployment, SUBSCRIBED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ACCEPT\n", "")
    assert seconds < 20


async def test_the_end_waits_some_seconds_for_a_redis_that_is_away(deployment: Deployment) -> None:
    async with deployment.redis() as redis, black_hole(deployment.redis_url) as hole:
        await redis.set(deployment.channels.partitions, 1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "default", "-c", AWAY),
            env={**os.environ, **deployment.variables, "STATEWRIGHT_REDIS_URL": hole.url},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"opened\n"
        hole.swallow()
        began = time.monotonic()
        async with asyncio.timeout(HANGS_SECONDS):
            said = await process.communicate(b"\n")
        assert (process.returncode, *said) == (0, b"", b"")
    assert 4 < time.monotonic() - began < 25


async def test_parent_and_child_end_in_silence(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2):
        done, _ = await script(deployment, FORKED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "either's\n" * 2, "")


INTERRUPTED = """
import signal, threading, time
from statewright import NoAnswer, State
from statewright.sync import AsAnswered, Client

def interrupted(wait):
    timer = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    try:
        wait()
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        timer.join()

with Client() as client:
    client.set_limit("one", 1).answer()
    first, second = (client.create_task_run(name, tags=["one"]) for name in ("first", "second"))
    client.propose(first, State.running()).answer()
    parked = client.propose(second, State.running(), on_wait="park")
    print(interrupted(parked.answer))
    print(interrupted(lambda: next(AsAnswered([parked]))))
    with client.subscribe() as events:
        print(interrupted(lambda: next(events)))
        client.propose(first, State.completed())
        print(next(events).data.resource.name, parked.answer().status)
    began = time.monotonic()
    while time.monotonic() < began + 2:
        # Wherever it comes: the client goes on.
        interrupted(lambda: [client.create_flow_run("again").answer() for _ in range(100_000)])
    print(client.create_flow_run("still").answer().name)
"""


async def test_whoever_is_interrupted_may_go_on(deployment: Deployment) -> None:
    async with deployment.worker(partitions=2):
        done, _ = await script(deployment, INTERRUPTED)
    assert done.stdout.split("\n") == [*["interrupted"] * 3, "first ACCEPT", "still", ""], done.stderr
    assert (done.returncode, done.stderr) == (0, "")
