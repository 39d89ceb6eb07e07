"""Servers as children of this process: each on a free port and in a folder of its own, run by a user without rights."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import asyncpg
from redis import Redis
from redis.exceptions import RedisError

from tests.matrix.packages import Missing

NOBODY: Final = "nobody"
"""Who runs the servers where root asks for them: PostgreSQL and PgBouncer refuse root."""
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05

POOLER_SETTINGS: Final = """\
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
; A client's next transaction goes to another session than its last one, as it may under load.
server_round_robin = 1
max_client_conn = 1000
auth_type = trust
auth_file = {users}
log_connections = 0
log_disconnections = 0
"""


@contextmanager
def postgresql(programs: Path, folder: Path) -> Iterator[str]:
    """Run the PostgreSQL whose programs lie in `programs`; yield the URL of its database `postgres`."""
    folder.mkdir()
    _give_to_nobody(folder)
    data, port = folder / "data", free_port()
    initialise = [programs / "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"]
    done = subprocess.run(
        _as_nobody([*initialise, "--no-sync", f"--pgdata={data}"]), cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"{initialise[0]} failed:\n{done.stdout}{done.stderr}")
    # No test stops the machine, so nothing needs to reach the disk.
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    command = [programs / "postgres", "-D", data, *(f"--{name}={value}" for name, value in settings.items())]
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    with _running(command, folder, lambda: _lets_in(url), stop=signal.SIGINT):
        yield url


@contextmanager
def pgbouncer(program: Path, server_url: str, folder: Path) -> Iterator[str]:
    """Run a PgBouncer that pools the transactions of the PostgreSQL at `server_url`; yield its URL."""
    folder.mkdir()
    port, users, settings = free_port(), folder / "users.txt", folder / "pgbouncer.ini"
    users.write_text('"postgres" ""\n')
    server = server_url.rpartition(":")[2].partition("/")[0]
    settings.write_text(POOLER_SETTINGS.format(server=server, port=port, users=users))
    _give_to_nobody(folder)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    # Now and then a request to cancel a statement ends PgBouncer 1.18 (pgbouncer#801): as under any service manager, it
    # is started again. It ends with the shell that does so.
    command = f"while ! setpriv --pdeathsig=TERM -- {program} {settings}; do sleep 0.2; done"
    with _running(["sh", "-c", command], folder, lambda: _lets_in(url), stop=signal.SIGTERM):
        yield url


@contextmanager
def redis(program: Path, folder: Path) -> Iterator[str]:
    """Run a Redis server, or a Valkey; yield its URL."""
    folder.mkdir()
    _give_to_nobody(folder)
    port = free_port()
    command = [program, "--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    with Redis(port=port) as client, _running(command, folder, lambda: _answers(client), stop=signal.SIGTERM):
        yield f"redis://127.0.0.1:{port}/0"


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _give_to_nobody(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, NOBODY)


def _as_nobody(command: list[object], end: signal.Signals = signal.SIGTERM) -> list[str]:
    # The signal comes when this process ends, however it ends.
    run_as = ["setpriv", f"--pdeathsig={end.name.removeprefix('SIG')}"]
    if os.geteuid() == 0:
        run_as += [f"--reuid={NOBODY}", "--regid=nogroup", "--clear-groups"]
    return [*run_as, "--", *map(str, command)]


@contextmanager
def _running(command: list[object], folder: Path, ready: Callable[[], bool], *, stop: signal.Signals) -> Iterator[None]:
    """Run a server until the end of the block. Raises Missing with what it said when it is not `ready` in time."""
    log = folder / "log"
    with log.open("wb") as said:
        # A session of its own: Ctrl-C in a terminal is for the tests, and servers are stopped behind them.
        process = subprocess.Popen(
            _as_nobody(command, stop),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Missing(f"{command[0]} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lets_in(url: str) -> bool:
    async def connect() -> None:
        connection = await asyncpg.connect(url, timeout=START_SECONDS, statement_cache_size=0)
        await connection.close()

    try:
        asyncio.run(connect())
    except (OSError, asyncpg.PostgresError):
        return False
    return True


def _answers(client: "Redis") -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
