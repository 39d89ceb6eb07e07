"""The suite against the oldest servers that the README promises, against Debian's, and through a real PgBouncer.

Against what the wheels bring, PostgreSQL 18 and Valkey 9, `make test` runs it. Whatever of Debian's is missing is
installed; the servers run in a temporary folder on free ports, by a user without rights, and end with this process.
"""

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from xml.etree import ElementTree

import asyncpg
from redis import Redis

from statewright_worker.embedded import _valkey_server
from tests.matrix import packages, servers

ROOT: Final = Path(__file__).parents[2]
LONGEST_SECONDS: Final = 1_800
"""A column that takes longer hangs."""
STOP_SECONDS: Final = 30
POSTGRESQL_15: Final = "/usr/lib/postgresql/15/bin/postgres"
SHORT: Final = (
    "tests/storage/test_schema.py",
    "tests/end_to_end/test_access.py",
    "tests/end_to_end/test_bad_input.py",
    "tests/end_to_end/test_exactly_once.py",
    "tests/end_to_end/test_ledger.py",
    "tests/end_to_end/test_redis_emptied.py",
    "tests/end_to_end/test_round_trip.py",
    "tests/end_to_end/test_subscriptions.py",
    "tests/end_to_end/test_user_rules.py",
    "tests/faults/test_dropped_connections.py",
    "tests/faults/test_servers_away.py",
)
"""What servers of another version, or a pooler, could most likely fail, and does not take long."""
ROW: Final = "{:<8} {:<54} {:>7} {:>7} {:>8} {:>8}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a column's servers are."""

    database_url: str
    redis_url: str
    pooler_url: str | None = None


@contextmanager
def oldest(folder: Path) -> Iterator[Addresses]:
    """Run PostgreSQL 14 out of npm, and Redis 6.2 out of PyPI."""
    programs, redis_server = packages.postgresql_14(folder), packages.redis_6_2(folder)
    with (
        servers.postgresql(programs, folder / "postgresql") as database,
        servers.redis(redis_server, folder / "redis") as redis,
    ):
        yield Addresses(database, redis)


@contextmanager
def debian(folder: Path) -> Iterator[Addresses]:
    """Run Debian's PostgreSQL 15 and Redis 7."""
    programs = packages.debian(POSTGRESQL_15, "postgresql-15").parent
    redis_server = packages.debian("redis-server", "redis-server")
    with (
        servers.postgresql(programs, folder / "postgresql") as database,
        servers.redis(redis_server, folder / "redis") as redis,
    ):
        yield Addresses(database, redis)


@contextmanager
def pooled(folder: Path) -> Iterator[Addresses]:
    """Run Debian's PostgreSQL 15 behind Debian's PgBouncer, and the Valkey of the wheels."""
    programs = packages.debian(POSTGRESQL_15, "postgresql-15").parent
    pooler = packages.debian("pgbouncer", "pgbouncer")
    # The wheel may be installed where another user may not look.
    valkey = Path(shutil.copy(_valkey_server(), folder))
    with (
        servers.postgresql(programs, folder / "postgresql") as database,
        servers.pgbouncer(pooler, database, folder / "pgbouncer") as pooler_url,
        servers.redis(valkey, folder / "redis") as redis,
    ):
        yield Addresses(database, redis, pooler_url)


Column = tuple[Callable[[Path], AbstractContextManager[Addresses]], tuple[str, ...]]
COLUMNS: Final[dict[str, Column]] = {
    "oldest": (oldest, ("PostgreSQL 14.", "Redis 6.2.")),
    "debian": (debian, ("PostgreSQL 15.", "Redis 7.")),
    "pooled": (pooled, ("PostgreSQL 15.", "Valkey 9.", "PgBouncer 1.")),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ran, how many of its tests did what, and how many seconds all took."""

    versions: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.passed > 0 and self.failed == 0


def run(name: str, arguments: Sequence[str]) -> Outcome:
    """Run the tests that `arguments` name on a column's servers. Raises Missing when these cannot be had."""
    column, promised = COLUMNS[name]
    with TemporaryDirectory(prefix="statewright-matrix-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        # The servers are run by another user.
        folder.chmod(0o755)
        addresses = stack.enter_context(column(folder))
        found = versions(addresses)
        for version, expected in zip(found, promised, strict=True):
            if not version.startswith(expected):
                raise packages.Missing(f"{expected}* is to be checked, and {version} is here")
        print(f"\n== {name}: {', '.join(found)}", flush=True)
        begun = time.monotonic()
        report = packages.KEPT / f"{name}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        # The newer kind of report refuses the properties that the conformance tests record.
        suite([*arguments, f"--junitxml={report}", "--override-ini=junit_family=xunit1"], addresses)
        return outcome(", ".join(found), report, time.monotonic() - begun)


def versions(addresses: Addresses) -> list[str]:
    """Return what the servers say that they are."""

    async def ask_postgresql() -> str:
        connection = await asyncpg.connect(addresses.database_url)
        try:
            return f"PostgreSQL {(await connection.fetchval('SHOW server_version')).split()[0]}"
        finally:
            await connection.close()

    found = [asyncio.run(ask_postgresql())]
    with Redis.from_url(addresses.redis_url) as redis:
        told: dict[str, Any] = redis.info("server")
    valkey = told.get("valkey_version")
    found.append(f"Valkey {valkey}" if valkey else f"Redis {told['redis_version']}")
    if addresses.pooler_url:
        program = packages.debian("pgbouncer", "pgbouncer")
        said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
        found.append(said.splitlines()[0])
    return found


def suite(arguments: Sequence[str], addresses: Addresses) -> None:
    """Run pytest until it ends, or LONGEST_SECONDS are over; what it started ends with it."""
    own = {
        "STATEWRIGHT_TEST_DATABASE_URL": addresses.database_url,
        "STATEWRIGHT_TEST_REDIS_URL": addresses.redis_url,
        "STATEWRIGHT_TEST_POOLER_URL": addresses.pooler_url or "",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=ROOT,
        env=os.environ | own,
        start_new_session=True,
    )
    try:
        process.wait(LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"stopped after {LONGEST_SECONDS} s", file=sys.stderr)
    finally:
        with suppress(subprocess.TimeoutExpired, ProcessLookupError):
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outcome(found: str, report: Path, seconds: float) -> Outcome:
    """Return what pytest reported; without a report, which it writes at its end, something has failed."""
    if not report.exists():
        return Outcome(found, passed=0, failed=1, skipped=0, seconds=seconds)
    counted = next(ElementTree.parse(report).iter("testsuite"))
    tests, failures, errors, skipped = (
        int(counted.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    )
    return Outcome(found, tests - failures - errors - skipped, failures + errors, skipped, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only some of the tests: a few minutes")
    parser.add_argument("--column", action="append", choices=list(COLUMNS), help="only these servers; may be repeated")
    given, arguments = parser.parse_known_args()
    # Whoever ends this process ends the servers and the tests as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{parser.prog}: ended by a signal"))
    arguments = [*(SHORT if given.short else ()), *arguments]
    try:
        outcomes = {name: run(name, arguments) for name in given.column or COLUMNS}
    except packages.Missing as missing:
        sys.exit(f"{parser.prog}: {missing}")
    print("\n" + ROW.format("", "", "passed", "failed", "skipped", "seconds"))
    for name, told in outcomes.items():
        print(ROW.format(name, told.versions, told.passed, told.failed, told.skipped, round(told.seconds)))
    sys.exit(not all(told.good for told in outcomes.values()))


if __name__ == "__main__":
    main()
