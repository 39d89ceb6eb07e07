"""The README's snippets run, and print what the README says."""

import asyncio
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from statewright import State
from tests.deployment import Deployment

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(
    r"### ([^\n]+)\n(?:(?!\n### ).)*?<!-- runs -->\n```python\n(.*?)```\n(.*?)```text\n(.*?)```", README, re.S
)
FIRST = re.findall(r"## A tour\n.*?<!-- runs -->\n```python\n(.*?)```\n.*?```text\n(.*?)```", README, re.S)
RUNNABLE = {"A tour": FIRST[0]} | {title: (code, printed) for title, code, _, printed in SNIPPETS}


def test_every_snippet_is_found() -> None:
    assert len(RUNNABLE) == README.count("<!-- runs -->")


@pytest.mark.parametrize(("code", "printed"), RUNNABLE.values(), ids=RUNNABLE.keys())
async def test_a_snippet_prints_what_the_readme_says(deployment: Deployment, code: str, printed: str) -> None:
    deployment.spawn_worker()
    await deployment.announced()
    variables = {"STATEWRIGHT_REDIS_URL": deployment.redis_url, "STATEWRIGHT_NAMESPACE": deployment.namespace}
    run = partial(subprocess.run, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    done = await asyncio.to_thread(run, [sys.executable, "-c", code])
    assert (done.stdout, done.stderr) == (printed, "")


async def test_commands_show_what_the_readme_shows(deployment: Deployment) -> None:
    section = README[README.index("### Looking inside") :]
    [transcript] = re.findall(r"```console\n(\$ statewright status\n.*?)```", section, re.S)
    deployment.spawn_worker()
    await deployment.is_held()
    settings = {**os.environ, **deployment.variables, "COLUMNS": "80"}
    run = partial(subprocess.run, env=settings, capture_output=True, text=True, check=False)
    await asyncio.to_thread(run, [sys.executable, "-c", RUNNABLE["Looking inside"][0]])
    for command, shown in re.findall(r"^\$ statewright (.*)\n((?:(?!\$).*\n)*)", transcript, re.M):
        done = await asyncio.to_thread(run, [sys.executable, "-m", "statewright_worker", *command.split()])
        printed = done.stderr + done.stdout
        # How wide a column is depends on what is in it.
        lines = [
            r"\s+".join(re.escape(word).replace("…", ".+?") for word in line.split()) for line in shown.splitlines()
        ]
        assert re.fullmatch(r"\s*".join(lines) + r"\s*", printed), f"{command}\n{printed}"


@pytest.mark.parametrize(("hours", "status"), [("0, 0", "REJECT"), ("0, 24", "ACCEPT")])
async def test_the_house_rule_governs(deployment: Deployment, hours: str, status: str) -> None:
    [(name, code)] = re.findall(r"<!-- file (\S+) -->\n```python\n(.*?)```", README, re.S)
    assert "OPENS, CLOSES = 8, 18" in code
    (deployment.folder / name).write_text(code.replace("OPENS, CLOSES = 8, 18", f"OPENS, CLOSES = {hours}"))
    # The installed command, as the README has it, which does not look for modules where it is started by itself.
    command = str(Path(sys.executable).with_name("statewright"))
    deployment.starts_in = deployment.folder
    deployment.spawn_worker(command, "worker", STATEWRIGHT_FLOW_POLICY="house_rules:HouseFlowPolicy")
    async with deployment.client() as client:
        office = await client.create_flow_run("report", tags=["office"])
        verdict = await client.propose(office, State.running())
        assert verdict.status == status
        assert verdict.rule_signature[0] == "RunDuringBusinessHours"
        elsewhere = await client.create_flow_run("report")
        assert (await client.propose(elsewhere, State.running())).accepted


def test_every_setting_is_in_the_table() -> None:
    from statewright_worker.settings import WorkerSettings

    for name in WorkerSettings.model_fields:
        assert f"`STATEWRIGHT_{name.upper()}`" in README
