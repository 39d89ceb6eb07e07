"""`statewright bench`: what it measures on a deployment, and how it tells of options that contradict."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from statewright import ProposedState, SetStateStatus, StateType, Verdict
from statewright.ids import IdSource
from statewright_worker.cli.bench_mixes import Mixer, Task, states
from statewright_worker.cli.bench_options import Load, Mix
from statewright_worker.cli.bench_samples import Journal, Samples
from tests.deployment import HANGS_SECONDS, Deployment

PNG = b"\x89PNG"
IDS = IdSource()


def bench(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STATEWRIGHT_")}
    return subprocess.run(
        [sys.executable, "-m", "statewright_worker", "bench", *arguments],
        env=inherited | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * HANGS_SECONDS,
    )


def measured(deployment: Deployment, *arguments: str) -> dict[str, Any]:
    deployment.spawn_worker()
    done = bench("--seconds", "1", "--warm-up", "0.2", "--json", *arguments, **deployment.variables)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("mix", list(Mix))
async def test_a_closed_loop_is_answered_without_errors(deployment: Deployment, mix: Mix) -> None:
    told = measured(deployment, "--mix", mix, "--concurrency", "20")
    assert told["errors"] == {}
    assert told["loop"] == "closed"
    assert 0 < told["transitions_per_second"] < told["requests_per_second"]
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p95"] <= told["latency_ms"]["max"]
    assert 1 <= told["batch_size"]["p50"] <= told["batch_size"]["max"]
    assert [process["name"] for process in told["processes"]] == ["producer"]
    assert await deployment.fetch("SELECT * FROM concurrency_limit") == []


async def test_an_open_loop_sends_at_its_rate_from_every_producer(deployment: Deployment, tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    told = measured(deployment, "--rate", "200", "--producers", "2", "--plot", str(picture))
    assert told["errors"] == {}
    # However slow the machine is: what was scheduled within the second was sent, and answered in the end.
    assert abs(sum(told["verdicts"].values()) - 200) <= 4
    assert [process["name"] for process in told["processes"]] == ["producer 1", "producer 2"]
    assert picture.read_bytes().startswith(PNG)


async def test_the_table_says_what_json_says(deployment: Deployment) -> None:
    deployment.spawn_worker()
    done = bench("--seconds", "1", "--warm-up", "0", "--concurrency", "5", **deployment.variables)
    assert done.returncode == 0, done.stderr
    for told in ("mix plain, closed loop, 5 in flight, 1 s", "transitions/s", "p99", "verdicts in a batch", "producer"):
        assert told in done.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["--rate", "5", "--concurrency", "5"], {}, "give one of them"),
        (["--mix", "wild"], {}, "'wild' is not one of"),
        (["--concurrency", "0"], {}, "greater than or equal to 1"),
        (["--workers", "2"], {"STATEWRIGHT_REDIS_URL": "redis://127.0.0.1:1"}, "--workers is for the embedded"),
        ([], {"STATEWRIGHT_DATABASE_URL": "postgresql://x@127.0.0.1:1/db"}, "STATEWRIGHT_REDIS_URL is not"),
        ([], {"STATEWRIGHT_REDIS_URL": "redis://127.0.0.1:1"}, "cannot reach Redis (STATEWRIGHT_REDIS_URL)"),
        (["--plot", "/nowhere/at/all.png"], {}, "there is no such folder"),
        (["--plot", "bench.pdf"], {}, "must end in .png"),
    ],
)
def test_a_wrong_option_ends_in_a_sentence(arguments: list[str], settings: dict[str, str], told: str) -> None:
    done = bench(*arguments, **settings)
    assert done.returncode in (1, 2)
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def proposed_for(task: Task, *statuses: SetStateStatus) -> list[StateType]:
    """Return what is proposed when the verdicts are these, and ACCEPT from then on."""
    answers = list(statuses)
    proposed: list[StateType] = []
    step: ProposedState | None = next(task.states)
    while step is not None:
        proposed.append(step.type)
        status = answers.pop(0) if answers else SetStateStatus.ACCEPT
        verdict = Verdict(proposal_id=IDS.new(), run_id=IDS.new(), status=status)
        try:
            step = task.states.send(verdict)
        except StopIteration:
            step = None
    return proposed


def test_a_task_run_that_is_not_let_run_is_done_with() -> None:
    accepted, waits = SetStateStatus.ACCEPT, SetStateStatus.WAIT
    assert proposed_for(Task(states(None, fails=False, on_cached=print)), accepted, waits) == ["PENDING", "RUNNING"]


def test_a_failing_task_run_is_retried() -> None:
    keys: list[str] = []
    task = Task(states("key", fails=True, on_cached=keys.append))
    answers = [SetStateStatus.ACCEPT, SetStateStatus.ACCEPT, SetStateStatus.REJECT]
    assert proposed_for(task, *answers) == ["PENDING", "RUNNING", "FAILED", "RUNNING", "COMPLETED"]
    assert keys == ["key"]


def test_a_mix_has_what_its_name_says() -> None:
    plain, limits, full = (Mixer(mix) for mix in (Mix.PLAIN, Mix.LIMITS, Mix.FULL))
    assert {plain.task().tags for _ in range(20)} == {()}
    assert all(limits.task().tags for _ in range(20))
    drawn = [full.task() for _ in range(100)]
    assert all(task.tags for task in drawn)
    assert 0 < sum(task.policy.retries == 1 for task in drawn) < len(drawn)


def test_latency_counts_by_its_beginning_and_throughput_by_its_end() -> None:
    moment = 0.0
    journal = Journal(seconds=10, start=100, clock=lambda: moment)
    for asked, moment in ((99.0, 101.0), (105.0, 106.0), (109.0, 112.0)):  # noqa: B007  # the clock reads it
        journal.answered(asked, SetStateStatus.ACCEPT)
    assert journal.samples.transitions() == 2
    assert journal.samples.latencies() == [1_000, 3_000]
    assert journal.samples.statuses == {"ACCEPT": 2}
    assert journal.samples.throughput(5) == [0.2, 0.2]


def test_samples_of_several_producers_are_one() -> None:
    random = Random(1)
    parts = [Samples(10) for _ in range(3)]
    for part in parts:
        part.asked.append(random.random())
        part.answered.append(2)
        part.created = 1
    whole = Samples.together(10, parts)
    assert (whole.transitions(), whole.created) == (3, 3)


def test_a_load_is_shared_without_a_rest() -> None:
    load = Load(Mix.PLAIN, seconds=1, warm_up=0, concurrency=10)
    assert [share.concurrency for share in load.shared_by(3)] == [4, 3, 3]
    assert [share.prepared for share in Load(Mix.PLAIN, 1, 0, prepared=10).shared_by(3)] == [4, 4, 4]
    assert [share.rate for share in Load(Mix.PLAIN, 1, 0, rate=90).shared_by(3)] == [30, 30, 30]
