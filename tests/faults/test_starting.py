"""Started before its servers, a command waits for them and says so once; a wrong setting is not waited for."""

import asyncio
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from statewright import ConfigurationError
from statewright_worker.embedded import embedded_servers
from statewright_worker.starting import ServerAway, when_there
from tests.cli.test_commands import environment


async def test_what_is_there_is_not_waited_for() -> None:
    said: list[str] = []

    async def there() -> str:
        return "there"

    assert await when_there(there, 0, said.append) == "there"
    assert said == []


async def test_it_is_said_once_that_something_is_waited_for() -> None:
    said: list[str] = []
    tries = 0

    async def third_time() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ServerAway(f"away {tries}")
        return tries

    assert await when_there(third_time, 60, said.append) == 3
    assert said == ["away 1; trying again for up to 60 s"]


async def test_a_wrong_setting_is_not_waited_for() -> None:
    async def wrong() -> None:
        raise ConfigurationError("wrong")

    with pytest.raises(ConfigurationError, match=r"^wrong$"):
        await when_there(wrong, 3_600, print)


@pytest.mark.parametrize("seconds", [0, 0.2])
async def test_the_wait_has_an_end_and_names_what_was_waited_for(seconds: float) -> None:
    async def away() -> None:
        raise ServerAway("cannot reach it")

    told = rf"^cannot reach it; given up after {seconds:g} s \(STATEWRIGHT_STARTUP_TIMEOUT\)$"
    with pytest.raises(ConfigurationError, match=told):
        await when_there(away, seconds, lambda _: None)


async def test_a_check_that_never_ends_ends_with_the_wait() -> None:
    with pytest.raises(ConfigurationError, match=r"does not answer; given up after 0\.1 s"):
        await when_there(asyncio.Event().wait, 0.1, print, check_seconds=0.1)


async def test_migrate_waits_for_postgresql_that_comes_later() -> None:
    with TemporaryDirectory(prefix="statewright-") as made:
        folder = Path(made)
        settings = {
            "STATEWRIGHT_DATABASE_URL": f"postgresql://postgres@/postgres?host={folder / 'postgresql'}",
            "STATEWRIGHT_LOG_FORMAT": "json",
        }
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "statewright_worker", "migrate"),
            env=environment(**settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert command.stdout
        assert command.stderr
        try:
            assert b"cannot reach PostgreSQL" in await command.stderr.readline()
            with embedded_servers(folder):
                said, told = await command.communicate()
            assert said.startswith(b"the schema is at revision")
            assert (told, command.returncode) == (b"", 0)
        finally:
            if command.returncode is None:
                command.send_signal(signal.SIGKILL)
                await command.wait()
