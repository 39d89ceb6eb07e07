"""The command line, as processes: embedded servers that come and go, and wrong settings, which are refused."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from statewright import Client, State
from statewright_worker.storage import database
from tests.deployment import HANGS_SECONDS, Deployment

INSTALLED = [sys.executable, str(Path(sys.executable).with_name("statewright"))]
COMMAND = [sys.executable, "-m", "statewright_worker"]
READY_LINES = 3


def environment(**changes: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STATEWRIGHT_")}
    return inherited | changes


def statewright(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_SECONDS,
    )


@contextmanager
def dev(folder: Path) -> Iterator[dict[str, str]]:
    """Run `statewright dev`, yield the settings that it prints, press Ctrl-C, and see that nothing remains."""
    process = subprocess.Popen(
        [*COMMAND, "dev", "--data", str(folder)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout
    try:
        printed = [process.stdout.readline().decode() for _ in range(READY_LINES)]
        exports = [line.removeprefix("export ").strip() for line in printed if line.startswith("export ")]
        yield {name: value.strip("'") for name, _, value in (export.partition("=") for export in exports)}
        process.send_signal(signal.SIGINT)
        assert process.wait(HANGS_SECONDS) == 0
        assert using(folder) == []
    finally:
        process.kill()
        process.wait(HANGS_SECONDS)
        process.stdout.close()


def using(folder: Path) -> list[str]:
    commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="statewright-") as made:
        yield Path(made) / "data"


def test_dev_keeps_its_data_over_a_restart_and_leaves_no_process(folder: Path) -> None:
    async def create(url: str) -> str:
        async with Client(url, answer_timeout=HANGS_SECONDS) as client:
            run = await client.create_flow_run("kept", idempotency_key="k")
            await client.propose(run, State.pending())
            return str((await client.read_run(run)).model_dump())

    async def read(url: str) -> str:
        async with Client(url, answer_timeout=HANGS_SECONDS) as client:
            return str((await client.read_run(await client.create_flow_run("kept", idempotency_key="k"))).model_dump())

    with dev(folder) as settings:
        created = asyncio.run(create(settings["STATEWRIGHT_REDIS_URL"]))
        replica = subprocess.Popen([*COMMAND, "worker"], env=environment(**settings), stderr=subprocess.DEVNULL)
        replica.send_signal(signal.SIGTERM)
        replica.wait(HANGS_SECONDS)
    with dev(folder) as settings:
        assert asyncio.run(read(settings["STATEWRIGHT_REDIS_URL"])) == created


def test_two_processes_do_not_share_a_folder(folder: Path) -> None:
    with dev(folder):
        second = statewright("dev", "--data", str(folder))
    assert second.returncode == 1
    assert "in use by another process" in second.stderr


def test_a_folder_whose_name_is_too_long_for_a_socket_serves_too(folder: Path) -> None:
    with dev(folder / ("a" * 120)) as settings:
        assert settings.keys() == {"STATEWRIGHT_DATABASE_URL", "STATEWRIGHT_REDIS_URL"}


def test_migrate_says_which_revision_the_schema_has(deployment: Deployment) -> None:
    done = statewright("migrate", **deployment.variables)
    assert (done.returncode, done.stdout) == (0, f"the schema is at revision {database.newest_revision()}\n")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "STATEWRIGHT_DATABASE_URL"),
        ({"STATEWRIGHT_DATABASE_URL": "mysql://host/db"}, "STATEWRIGHT_DATABASE_URL must look like postgresql://"),
        ({"STATEWRIGHT_REDIS_URL": "http://host"}, "STATEWRIGHT_REDIS_URL"),
        ({"STATEWRIGHT_BATCH_SIZE": "many"}, "STATEWRIGHT_BATCH_SIZE"),
        ({"STATEWRIGHT_FLOW_POLICY": "nowhere:Policy"}, "STATEWRIGHT_FLOW_POLICY: cannot load 'nowhere:Policy'"),
        ({"STATEWRIGHT_TASK_POLICY": "json:JSONDecoder"}, "is not a subclass of BaseOrchestrationPolicy"),
        ({"STATEWRIGHT_DATABASE_URL": "postgresql://x:secret@127.0.0.1:1/db"}, "cannot reach PostgreSQL"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_ends_in_one_sentence(settings: dict[str, str], told: str) -> None:
    known = {"STATEWRIGHT_DATABASE_URL": "postgresql://x@127.0.0.1:1/db"} if settings else {}
    known["STATEWRIGHT_STARTUP_TIMEOUT"] = "0.1"
    done = statewright("worker", **{**known, **settings})
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_a_worker_without_redis_says_so(deployment: Deployment) -> None:
    nowhere = {"STATEWRIGHT_REDIS_URL": "redis://127.0.0.1:1/0", "STATEWRIGHT_STARTUP_TIMEOUT": "0.1"}
    done = statewright("worker", **deployment.variables | nowhere)
    assert done.returncode == 1
    assert "cannot reach Redis (STATEWRIGHT_REDIS_URL)" in done.stderr


def test_the_help_names_every_command() -> None:
    text = statewright("--help").stdout
    assert all(command in text for command in ("worker", "migrate", "dev", "demo", "bench", "limits"))


async def test_an_idle_worker_stays_idle(deployment: Deployment) -> None:
    """CPU time is counted, not elapsed time: a busy machine does not fail this."""
    process = psutil.Process(deployment.spawn_worker().pid)
    await deployment.answering()
    began, before = time.monotonic(), sum(process.cpu_times()[:2])
    await asyncio.sleep(5)
    used = sum(process.cpu_times()[:2]) - before
    assert used / (time.monotonic() - began) < 0.05


MODULES = {
    "broken.py": "import json\nimport not_installed_anywhere\n",
    "misspelt.py": "from json import load_it\n",
    "failing.py": "limit = 1\nlimit / 0\n",
    "unreadable.py": "def rule(:\n",
    "empty.py": "",
}


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("nowhere:Policy", "No module named 'nowhere'; neither what is installed nor the current folder has it"),
        ("broken:Policy", r"No module named 'not_installed_anywhere' \(.*broken.py, line 2\)"),
        ("misspelt:Policy", r"cannot import name 'load_it' from 'json' .*\(.*misspelt.py, line 1\)"),
        ("failing:Policy", r"ZeroDivisionError: division by zero \(.*failing.py, line 2\)"),
        ("unreadable:Policy", r"SyntaxError: .*unreadable.py, line 1\)"),
        ("empty:Policy", r"empty.py has no Policy"),
    ],
)
def test_a_policy_that_cannot_be_loaded_says_where(tmp_path: Path, policy: str, told: str) -> None:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [*INSTALLED, "worker"],
        env=environment(STATEWRIGHT_DATABASE_URL="postgresql://x@127.0.0.1:1/db", STATEWRIGHT_FLOW_POLICY=policy),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_SECONDS,
    )
    assert done.returncode == 1
    assert re.fullmatch(rf"statewright: STATEWRIGHT_FLOW_POLICY: cannot load '{policy}': .*{told}\n", done.stderr)
