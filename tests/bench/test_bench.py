"""`statewright bench`: what it measures on a deployment, and how it tells of options that contradict."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statewright_worker.bench.options import Mix
from tests.deployment import HANGS_SECONDS, Deployment

PNG = b"\x89PNG"


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


async def measured(deployment: Deployment, *arguments: str) -> str:
    """Measure a worker for a second, and return what is printed."""
    deployment.spawn_worker()
    # A worker that was still about to start when the window opens could miss it.
    await deployment.answering()
    done = bench("--seconds", "1", *arguments, **deployment.variables, STATEWRIGHT_ANSWER_TIMEOUT=str(HANGS_SECONDS))
    assert done.returncode == 0, done.stderr
    return done.stdout


async def measured_in_json(deployment: Deployment, *arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(await measured(deployment, "--warm-up", "0.2", "--json", *arguments))
    return told


@pytest.mark.parametrize("mix", list(Mix))
async def test_a_closed_loop_is_answered_without_errors(deployment: Deployment, mix: Mix) -> None:
    told = await measured_in_json(deployment, "--mix", mix, "--concurrency", "20")
    assert told["errors"] == {}
    assert told["loop"] == "closed"
    assert 0 < told["transitions_per_second"] < told["requests_per_second"]
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p95"] <= told["latency_ms"]["max"]
    assert 1 <= told["batch_size"]["p50"] <= told["batch_size"]["max"]
    assert [process["name"] for process in told["processes"]] == ["producer"]
    assert await deployment.fetch("SELECT * FROM concurrency_limit") == []


@pytest.mark.parametrize("mix", [Mix.FULL, Mix.PARK])
async def test_threads_share_a_closed_loop(deployment: Deployment, mix: Mix) -> None:
    arguments = ("--client", "sync", "--threads", "3", "--concurrency", "20", "--prepare", "30")
    told = await measured_in_json(deployment, "--mix", mix, *arguments)
    assert told["errors"] == {}
    assert (told["client"], told["threads"], told["loop"]) == ("sync", 3, "closed")
    assert 0 < told["transitions_per_second"] <= told["requests_per_second"]


async def test_an_open_loop_sends_at_its_rate_from_every_producer(deployment: Deployment, tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    told = await measured_in_json(deployment, "--rate", "200", "--producers", "2", "--plot", str(picture))
    assert told["errors"] == {}
    # However slow the machine is: what was scheduled within the second was sent, and answered in the end.
    assert abs(sum(told["verdicts"].values()) - 200) <= 4
    assert [process["name"] for process in told["processes"]] == ["producer 1", "producer 2"]
    assert picture.read_bytes().startswith(PNG)


async def test_the_table_says_what_json_says(deployment: Deployment) -> None:
    printed = await measured(deployment, "--warm-up", "0", "--concurrency", "5")
    for told in ("mix plain, closed loop, 5 in flight, 1 s", "transitions/s", "p99", "verdicts in a batch", "producer"):
        assert told in printed


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["--rate", "5", "--concurrency", "5"], {}, "give one of them"),
        (["--rate", "5", "--client", "sync"], {}, "which only the async client has"),
        (["--threads", "5"], {}, "give --client sync as well"),
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
