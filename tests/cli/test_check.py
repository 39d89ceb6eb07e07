"""`statewright check`: what does not fit together is told, and the exit status says it."""

import json
from typing import Any

from statewright import State
from tests.cli.asking import asked
from tests.deployment import Deployment


async def test_the_check_says_what_does_not_fit_together(deployment: Deployment) -> None:
    async def check(*more: str) -> Any:
        return await asked(deployment, "check", *more, STATEWRIGHT_DATABASE_URL=deployment.database_url)

    async with deployment.worker(), deployment.client() as client:
        await client.set_limit("db", 1)
        run = await client.create_task_run("load", tags=["db"])
        await client.propose(run, State.running())
        done = await check()
        assert (done.returncode, done.stdout) == (0, "all fits together\n")
        await deployment.fetch("UPDATE task_run SET state_type = 'COMPLETED'")
        spoilt = await check()
        assert (spoilt.returncode, "COMPLETED" in spoilt.stdout) == (1, True)
        findings = [json.loads(line) for line in (await check("--json")).stdout.splitlines()]
        [slot] = [finding for finding in findings if finding["subject"]]
        assert (slot["subject"], slot["run_id"], slot["is_wrong"]) == ("tag db", str(run.id), True)
