"""The examples for code without an event loop: Flask's application in threads, Celery's tasks in forked processes."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from celery import Celery

from statewright import SetStateStatus, State
from statewright.ids import IdSource
from statewright.sync import Client
from tests.deployment import HANGS_SECONDS, Deployment
from tests.node import ROOT

ids = IdSource()


@contextmanager
def started(deployment: Deployment, folder: str, *arguments: str, **environment: str) -> Iterator[Path]:
    """Run a program in the folder of an example, and yield the file of what it says."""
    log = deployment.folder / f"{folder}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT / "examples" / folder,
            env={**os.environ, **deployment.variables, **environment},
            stdout=said,
            stderr=said,
        )
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(HANGS_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"{folder} does not end:\n{log.read_text()}")


def until_it_says(log: Path, wanted: str) -> str:
    """Return the line that has `wanted`, once the program has said it."""
    deadline = time.monotonic() + HANGS_SECONDS
    while True:
        for line in log.read_text().splitlines():
            if wanted in line:
                return line
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def asked(url: str, method: str = "POST", key: str = "") -> tuple[int, dict[str, Any]]:
    request = Request(url, method=method, headers={"Idempotency-Key": key} if key else {})
    try:
        with urlopen(request, timeout=HANGS_SECONDS) as answer:
            return answer.status, json.load(answer)
    except HTTPError as refused:
        return refused.code, json.load(refused)


async def test_flask(deployment: Deployment) -> None:
    def one(site: str, number: int) -> list[str]:
        status, run = asked(f"{site}/runs/nightly", key=str(number))
        assert (status, run["state"]) == (201, "Pending")
        assert asked(f"{site}/runs/nightly", key=str(number)) == (200, run)
        for state in ("running", "completed"):
            assert asked(f"{site}/runs/{run['id']}/{state}")[0] == 200
        status, refused = asked(f"{site}/runs/{run['id']}/running")
        assert (status, refused["status"]) == (409, "ABORT")
        states: list[str] = asked(f"{site}/runs/{run['id']}", "GET")[1]["states"]
        return states

    def use() -> None:
        with started(deployment, "flask", "flask", "run", "--port", "0", "--with-threads") as log:
            site = until_it_says(log, "Running on").split()[-1]
            with ThreadPoolExecutor(8) as pool:
                told = list(pool.map(lambda number: one(site, number), range(24)))
            assert told == [["Pending", "Running", "Completed"]] * 24
            status, error = asked(f"{site}/runs/{ids.new()}/running")
            assert (status, "there is no run" in error["error"]) == (404, True)
            assert asked(f"{site}/runs/{'x' * 201}")[0] == 400

    async with deployment.worker():
        await asyncio.to_thread(use)


async def test_celery(deployment: Deployment) -> None:
    # A socket's URL has another form there.
    broker = deployment.redis_url.replace("unix://", "redis+socket://")
    queue = {"CELERY_BROKER_URL": broker}
    forks = ("--pool", "prefork", "--concurrency", "2")
    arguments = ("celery", "-A", "tasks", "worker", *forks, "-Q", deployment.namespace, "--loglevel", "INFO")

    def ended(client: Client, run_id: Any) -> list[str]:
        """Return the names of a run's states, once it has come to its end."""
        deadline = time.monotonic() + HANGS_SECONDS
        while True:
            history = client.read_run(run_id).answer()
            if history.run.state is not None and history.run.state.is_final():
                return [state.name for state in history.states]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def use() -> None:
        words = deployment.folder / "words.txt"
        words.write_text("the quick brown fox\njumps over the lazy dog\n")
        with (
            started(deployment, "celery", *arguments, **queue) as log,
            deployment.sync_client() as client,
            Celery(broker=broker) as producer,
        ):
            client.set_limit("files", 1).answer()
            runs = [client.create_task_run(f"count {number}", tags=["files"]).answer() for number in range(6)]
            missing = client.create_task_run("count nothing").answer()
            # While somebody else has the slot, the first one must come again.
            holder = client.create_task_run("holder", tags=["files"])
            assert client.propose(holder, State.running()).answer().accepted
            for run, path in [*((run, words) for run in runs), (missing, deployment.folder / "nothing.txt")]:
                producer.send_task("tasks.count", (str(run.id), str(path)), queue=deployment.namespace)
            until_it_says(log, "Retry in 1s")
            assert client.propose(holder, State.completed()).answer().status is SetStateStatus.ACCEPT
            assert [ended(client, run) for run in runs] == [["Running", "Completed"]] * 6
            states = [client.read_run(run, history=False).answer().state for run in runs]
            assert [state.data for state in states if state] == [9] * 6
            assert ended(client, missing) == ["Running", "Failed"]

    async with deployment.worker(concurrency_slot_wait_seconds=1), deployment.redis() as redis:
        await asyncio.to_thread(use)
        # Each process of the two has read a stream of its own, and this test another one.
        assert len([key async for key in redis.scan_iter(match=f"{deployment.namespace}:replies:*")]) == 3
        await redis.delete("_kombu.binding." + deployment.namespace, deployment.namespace)
