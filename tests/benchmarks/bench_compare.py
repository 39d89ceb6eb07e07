"""Side by side with a Prefect server: the same PostgreSQL, the same task runs, the same number of them in flight."""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import asyncpg

from statewright_worker.bench.target import Target, deployed_on
from statewright_worker.embedded import Servers, embedded_servers
from tests.benchmarks.harness import fetch_value, measured, show
from tests.benchmarks.http_load import closed_loop

PREFECT: Final = "3.8.8"
# The oldest FastAPI that this Prefect takes; with the newest its server does not start.
REQUIREMENTS: Final = (f"prefect=={PREFECT}", "fastapi==0.139.*")
ENVIRONMENT: Final = Path("build") / f"prefect-{PREFECT}"
INSTALLATIONS: Final = Path("/usr/lib/postgresql")
START_SECONDS: Final = 120.0
WARM_UP: Final = 2.0


Command = list[str | Path]


def install() -> Path:
    """Install Prefect in an environment of its own, unless it is there, and return its command."""
    command = ENVIRONMENT.absolute() / "bin" / "prefect"
    if not command.exists():
        print(f"installing Prefect {PREFECT} into {ENVIRONMENT} ...", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([command.with_name("pip"), "install", "--quiet", *REQUIREMENTS], check=True)
    return command


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Run the system's PostgreSQL, which unlike the embedded one has pg_trgm; yield the URL up to the database."""
    found = sorted(INSTALLATIONS.glob("*/bin"), key=lambda path: float(path.parent.name))
    if not found:
        sys.exit("there is no PostgreSQL with pg_trgm: install Debian's postgresql, or give --postgresql-url")
    port, data = free_port(), folder / "data"
    # PostgreSQL refuses to run as root; Debian's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        subprocess.run(["chown", user, folder], check=True)
    initialise: Command = [
        found[-1] / "initdb",
        "--auth=trust",
        "--username=postgres",
        "--encoding=UTF8",
        f"--pgdata={data}",
    ]
    subprocess.run(initialise, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=200"
    control: Command = [found[-1] / "pg_ctl", "--wait", f"--pgdata={data}"]
    start: Command = [*control, "start", f"--log={folder / 'log'}", f"--options={options}"]
    subprocess.run(start, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "stop"], check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)


@contextmanager
def prefect_server(command: Path, database_url: str, folder: Path) -> Iterator[int]:
    """Run a Prefect server on the database, and yield its port."""
    port = free_port()
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url.replace("postgresql:", "postgresql+asyncpg:"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    with (folder / "prefect.log").open("wb") as log:
        server = _start(
            [command, "server", "start", "--host", "127.0.0.1", "--port", str(port)], settings, log.fileno()
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/health", server, folder / "prefect.log")
        yield port
    finally:
        server.terminate()
        server.wait()


def _start(command: Command, settings: dict[str, str], log: int) -> "subprocess.Popen[bytes]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(command, env=inherited | settings, stdout=log, stderr=log)


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the Prefect server did not start:\n{log.read_text()[-2_000:]}")
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def create_database(server_url: str, name: str, *, with_trigrams: bool = False) -> str:
    """Create a database anew, and return its URL."""
    for database, statement in (
        ("postgres", f"DROP DATABASE IF EXISTS {name}"),
        ("postgres", f"CREATE DATABASE {name}"),
        (name, "CREATE EXTENSION pg_trgm" if with_trigrams else "SELECT"),
    ):
        connection = await asyncpg.connect(f"{server_url}/{database}")
        await connection.execute(statement)
        await connection.close()
    return f"{server_url}/{name}"


def compare(server_url: str, folder: Path, concurrency: int, seconds: int) -> None:
    theirs_url = asyncio.run(create_database(server_url, "bench_prefect", with_trigrams=True))
    with prefect_server(install(), theirs_url, folder) as port:
        theirs = asyncio.run(closed_loop(port, concurrency, seconds, WARM_UP))
    rows: list[list[object]] = [
        [f"Prefect {PREFECT}, one server process", theirs.rate, theirs.percentile(50), theirs.percentile(99)]
    ]
    ours_url = asyncio.run(create_database(server_url, "bench_statewright"))
    with embedded_servers(folder / "embedded") as embedded:
        with deployed_on(Servers(ours_url, embedded.redis_url), 1, folder) as target:
            rows.append(_ours(target, concurrency, seconds))
            rows.append(["ratio", f"{float(str(rows[1][1])) / theirs.rate:.1f}", "", ""])
            title = f"Side by side with Prefect, {concurrency} task runs in flight"
            show(title, ["", "transitions/s", "p50 ms", "p99 ms"], rows, target=target)
        fetch_value(Target("", f"{server_url}/postgres"), "DROP DATABASE bench_statewright WITH (FORCE)")


def _ours(target: Target, concurrency: int, seconds: int) -> list[object]:
    window = ("--seconds", str(seconds), "--warm-up", str(WARM_UP))
    told = measured(target, *window, "--concurrency", str(concurrency))
    latency = told["latency_ms"]
    return ["Statewright, one worker", told["transitions_per_second"], latency["p50"], latency["p99"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=100, help="task runs in flight")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--postgresql-url", help="postgresql://user@host:port of a server on which to make databases")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statewright-compare-")))
        server_url = given.postgresql_url
        if server_url is None:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statewright-postgresql-")))
            server_url = stack.enter_context(postgresql(own))
        compare(server_url, folder, given.concurrency, given.seconds)


if __name__ == "__main__":
    main()
