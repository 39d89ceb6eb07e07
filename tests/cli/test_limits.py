"""`statewright limits`: what is set is listed and shown."""

import asyncio
import json
import subprocess
from datetime import datetime
from typing import Any

import pendulum

from statewright import RunPolicy, State
from tests.cli.test_commands import statewright
from tests.deployment import Deployment


async def limits(deployment: Deployment, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(statewright, "limits", *map(str, arguments), **deployment.variables, **environment)


async def told(deployment: Deployment, *arguments: object) -> Any:
    [only] = await lines(deployment, *arguments)
    return only


async def lines(deployment: Deployment, *arguments: object) -> list[Any]:
    return [json.loads(line) for line in (await limits(deployment, *arguments, "--json")).stdout.splitlines()]


async def test_limits_are_set_shown_listed_and_removed(deployment: Deployment) -> None:
    async with deployment.worker(), deployment.client() as client:
        done = await limits(deployment, "set", 2, "--name", "gpu", "--lease", 30, "--yes")
        assert (done.returncode, "gpu" in done.stdout) == (0, True)
        await limits(deployment, "set", 5, "--tag", "mail", "--period", 60, "--yes")
        run = await client.create_task_run("infer", policy=RunPolicy(limits=("gpu",)))
        await client.propose(run, State.running())
        gpu, mail = await lines(deployment, "list")
        assert (gpu["key"], gpu["held"], gpu["free"], gpu["lease_seconds"]) == ("gpu", 1, 1, 30)
        assert (mail["scope"], mail["concurrency_limit"], mail["period_seconds"]) == ("tag", 5, 60)
        [holder] = (await told(deployment, "show", "--name", "gpu"))["holders"]
        assert (holder["run_id"], holder["name"]) == (str(run.id), "infer")
        assert str(run.id)[:8] in (await limits(deployment, "show", "--name", "gpu")).stdout
        since = pendulum.instance(datetime.fromisoformat(holder["since"])).in_timezone("Asia/Tokyo")
        shown = await limits(deployment, "show", "--name", "gpu", TZ="Asia/Tokyo", COLUMNS="200")
        assert f"{since:YYYY-MM-DD HH:mm:ss} +09:00" in shown.stdout
        refused = await limits(deployment, "remove", "--name", "gpu")
        assert (refused.returncode, "--yes" in refused.stderr, str(run.id) in refused.stdout) == (1, True, True)
        assert (await limits(deployment, "remove", "--name", "gpu", "--yes")).returncode == 0
        missing = await limits(deployment, "show", "--name", "gpu")
        assert (missing.returncode, missing.stderr) == (1, "there is no such limit\n")
        both = await limits(deployment, "show", "--name", "gpu", "--tag", "gpu")
        assert both.returncode == 1
        assert "exactly one of tag, name and deployment_id" in both.stderr
