"""The log: one line per event in the configured format, from Statewright and from libraries alike."""

import json
import subprocess
import sys
from typing import Any

from tests.deployment import HANGS_SECONDS

SAYS = """
import asyncio, logging, sys, warnings
import structlog
from statewright_worker.logging import configure_logging
from statewright_worker.settings import WorkerSettings

def settings(**changes):
    return WorkerSettings.load(database_url="postgresql://host/db", **changes)

log = structlog.get_logger()
configure_logging(settings())
log.warning("in the console's format")
configure_logging(settings(log_level=sys.argv[2], log_format=sys.argv[1]))
log.info("ours", partition=3)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("ours failed")
    logging.getLogger("redis").exception("theirs %s", "failed")
logging.getLogger("arq.worker").info("arq's everyday line")
logging.getLogger("arq.worker").warning("job %s took %.1f s", "drain:3", 1.5)
logging.getLogger("house_rules").info("a rule's line")
logging.getLogger("asyncio").error("Task exception was never retrieved")
warnings.warn("old", DeprecationWarning, stacklevel=1)

async def main():
    async def fails():
        raise ValueError("nobody waited")
    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
asyncio.run(main())
"""


def said(form: str, level: str) -> list[str]:
    command = [sys.executable, "-W", "always", "-c", SAYS, form, level]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS_SECONDS)
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert "in the console's format" in first
    return rest


def objects(level: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said("json", level)]


def test_json_means_json_whoever_speaks() -> None:
    lines = objects("INFO")
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    assert events[:5] == ["ours", "ours failed", "theirs failed", "job drain:3 took 1.5 s", "a rule's line"]
    assert lines[0]["partition"] == 3
    assert [line["logger"] for line in lines if line["event"] == "theirs failed"] == ["redis"]
    assert any("DeprecationWarning: old" in event for event in events)
    failed = [line for line in lines if "exception" in line]
    assert [line["exception"].splitlines()[-1] for line in failed] == [
        "ZeroDivisionError: division by zero",
        "ZeroDivisionError: division by zero",
        "ValueError: nobody waited",
    ]


def test_the_level_holds_for_everybody() -> None:
    assert {line["level"] for line in objects("ERROR")} == {"error"}
    assert "arq's everyday line" in [line["event"] for line in objects("DEBUG")]


def test_the_console_has_the_same_lines() -> None:
    text = "\n".join(said("console", "INFO"))
    for part in ("ours", "partition=3", "job drain:3 took 1.5 s", "a rule's line", "ValueError: nobody waited"):
        assert part in text
    assert "everyday" not in text
