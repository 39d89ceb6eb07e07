"""What the benchmark scripts share: the machine and the versions in a line, results as a table to paste, and runs."""

import asyncio
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil
from redis import Redis

from statewright_worker.bench.target import Target

GIGABYTE: Final = 1_000_000_000
CPU_INFO: Final = Path("/proc/cpuinfo")


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, target: Target | None = None) -> None:
    """Print a section in Markdown: a heading, what it was measured on, and a table."""
    print(f"\n## {title}\n\n{machine()}; {versions(target)}\n")
    print(f"| {' | '.join(header)} |")
    print(f"| --- |{' ---: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(_cell, row))} |")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> str:
    """Return the machine in a few words."""
    named = re.search(r"model name\s*: (.+)", CPU_INFO.read_text()) if CPU_INFO.exists() else None
    processor = named[1] if named else platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total / GIGABYTE
    return f"{os.cpu_count()} cores ({processor}), {memory:.0f} GB, {platform.system()} {platform.release()}"


def versions(target: Target | None = None) -> str:
    """Return the versions of what was measured, of the target's servers too."""
    parts = [f"Statewright {version('statewright')}", f"Python {platform.python_version()}"]
    if target is not None:
        with Redis.from_url(target.redis_url) as redis:
            told: dict[str, Any] = redis.info("server")
        parts += [f"PostgreSQL {fetch_value(target, 'SHOW server_version')}", f"Redis {told['redis_version']}"]
    return ", ".join(parts)


def fetch_value(target: Target, query: str) -> Any:
    """Return the one value that a query finds in the target's database; other statements are executed."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(target.database_url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def measured(target: Target | None, *arguments: str) -> dict[str, Any]:
    """Run `statewright bench` against the target, or an embedded deployment of its own, and return what it tells."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STATEWRIGHT_")}
    if target is not None:
        environment["STATEWRIGHT_REDIS_URL"] = target.redis_url
        environment["STATEWRIGHT_DATABASE_URL"] = target.database_url or ""
    command = [sys.executable, "-m", "statewright_worker", "bench", "--json", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told
