"""Commands run on uvloop's event loop where it is installed, and on asyncio's own where it is not."""

import asyncio
import signal
import sys

import pytest

from statewright import State
from statewright_worker.loop import run
from tests.deployment import HANGS_SECONDS, Deployment

WITHOUT_UVLOOP = """
import sys
sys.modules["uvloop"] = None
from statewright_worker.__main__ import main
main()
"""


async def loop_in_use() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def test_uvloop_is_used_where_it_is_installed() -> None:
    assert run(loop_in_use()) == "uvloop"


def test_asyncios_own_loop_is_used_where_uvloop_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run(loop_in_use()) == "asyncio"


async def test_a_worker_works_without_uvloop(deployment: Deployment) -> None:
    worker = deployment.spawn_worker("-c", WITHOUT_UVLOOP, "worker")
    async with deployment.client() as client:
        made = await client.create_flow_run("on asyncio's own loop")
        assert (await client.propose(made, State.pending())).accepted
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, HANGS_SECONDS) == 0
