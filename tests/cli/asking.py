"""How tests run commands that ask a deployment: as processes that know where its Redis is, not its PostgreSQL."""

import asyncio
import json
import subprocess
from typing import Any

from tests.cli.test_commands import COMMAND, environment
from tests.deployment import HANGS_SECONDS, Deployment


def where(deployment: Deployment) -> dict[str, str]:
    return {"STATEWRIGHT_REDIS_URL": deployment.redis_url, "STATEWRIGHT_NAMESPACE": deployment.namespace}


async def asked(
    deployment: Deployment, *arguments: object, said: str = "", **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; `said` is what is typed."""
    return await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, *map(str, arguments)],
        env=environment(**{**where(deployment), **settings}),
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_SECONDS,
    )


async def lines(deployment: Deployment, *arguments: object) -> list[Any]:
    """Return the objects that a command prints with --json."""
    done = await asked(deployment, *arguments, "--json")
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
