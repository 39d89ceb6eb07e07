"""`statewright prune`: it shows what it would delete, asks, and deletes it."""

import asyncio
import json
import subprocess
from typing import Any

from statewright import State
from tests.cli.test_commands import statewright
from tests.deployment import Deployment


async def prune(deployment: Deployment, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(statewright, "prune", *arguments, **deployment.variables, **environment)


async def told(deployment: Deployment, *arguments: str) -> Any:
    return json.loads((await prune(deployment, *arguments, "--json")).stdout)


async def test_it_shows_what_it_would_delete_asks_and_deletes(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        flow = await client.create_flow_run("flow", state=State.running())
        task = await client.create_task_run("task", flow_run=flow, state=State.running())
        await client.create_flow_run("running", state=State.running())
        for run in (task, flow):
            await client.propose(run, State.completed())
        for table in ("flow_run", "task_run"):
            earlier = ", ".join(f"{column} = {column} - interval '1 day'" for column in ("created", "state_timestamp"))
            await deployment.execute(f"UPDATE {table} SET {earlier}")

        assert (await prune(deployment, "--older-than", "2d", "--yes")).stdout.startswith("0 trees with 0 runs in all")
        shown = await prune(deployment, "--older-than", "PT12H", "--dry-run", TZ="Asia/Tokyo")
        assert shown.stdout.startswith("1 tree with 2 runs in all, over and unchanged since ")
        assert "+09:00" in shown.stdout
        assert (await told(deployment, "--older-than", "12h", "--dry-run"))["found"]["runs"] == 2
        # Nobody answers.
        refused = await prune(deployment, STATEWRIGHT_KEEP_RUNS="12h")
        assert (refused.returncode, "Delete them" in refused.stderr) == (1, True)
        assert len(await deployment.fetch("SELECT FROM flow_run UNION ALL SELECT FROM task_run")) == 3

        done = await told(deployment, "--older-than", "12h", "--yes")
        assert done["deleted"] == {"trees": 1, "runs": 2}
        [left] = await deployment.fetch("SELECT name FROM flow_run UNION ALL SELECT name FROM task_run")
        assert left["name"] == "running"


async def test_it_must_be_told_how_old(deployment: Deployment) -> None:
    async with deployment.worker():
        for arguments, said in (((), "STATEWRIGHT_KEEP_RUNS is not set"), (("--older-than", "old"), "like 30d, 12h")):
            refused = await prune(deployment, *arguments)
            assert refused.returncode == 1
            assert said in refused.stderr
