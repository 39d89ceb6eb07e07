"""The URL of the database: libpq's parameters work or are refused in one sentence, and no wait is endless."""

import asyncio
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from sqlalchemy import text

from statewright import ConfigurationError
from statewright_worker.starting import ServerAway
from statewright_worker.storage import database, statements
from statewright_worker.storage.database_url import parse_database_url
from tests.deployment import Deployment
from tests.relays import CERTIFICATE, Connect, pooler, relay, towards

PASSWORD = "p@:/?#% &=é"


def server_of(deployment: Deployment) -> Connect:
    [(host, port)] = parse_database_url(deployment.database_url).servers
    return towards(host or "127.0.0.1", port or 5432)


def at(deployment: Deployment, servers: str, **parameters: Any) -> str:
    """Return the URL of the test's database as it is reached at `servers`."""
    url = urlsplit(deployment.database_url)
    login = url.netloc.rpartition("@")[0] or "postgres"
    return f"postgresql://{login}@{servers}{url.path}?" + "&".join(
        f"{name}={quote(str(parameters[name]), safe='')}" for name in parameters
    )


async def ask(url: str, query: str = "SELECT 1", **options: Any) -> Any:
    """Return the one value that a query finds."""
    engine = database.create_engine(url, pool_size=1, **options)
    try:
        async with database.connected(engine) as connection:
            return (await connection.execute(text(query))).scalar_one()
    finally:
        await engine.dispose()


NAME = "SELECT current_setting('application_name')"
ENCRYPTED = {"with_tls": True, "postgresql": True}


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"])
async def test_every_way_of_writing_a_postgresql_url_serves(deployment: Deployment, scheme: str) -> None:
    assert await ask(scheme + "://" + deployment.database_url.partition("://")[2]) == 1


@pytest.mark.parametrize("url", ["", "mysql://host/db", "postgres", "http://host"])
def test_a_database_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="STATEWRIGHT_DATABASE_URL must look like"):
        database.create_engine(url, pool_size=1)


async def test_connections_say_whose_they_are(deployment: Deployment) -> None:
    async with relay(server_of(deployment)) as made:
        there = f"127.0.0.1:{made.port}"
        assert await ask(at(deployment, there), NAME) == "statewright"
        assert await ask(at(deployment, there), NAME, application="worker-7") == "statewright worker-7"
        assert await ask(at(deployment, there, application_name="mine"), NAME, application="worker-7") == "mine"


async def test_options_are_settings_of_the_session(deployment: Deployment) -> None:
    async with relay(server_of(deployment)) as made:
        url = at(deployment, f"127.0.0.1:{made.port}", options="-c work_mem=77kB", connect_timeout=30)
        assert await ask(url, "SELECT current_setting('work_mem')") == "77kB"


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_tls_as_libpq_does_it(deployment: Deployment, mode: str) -> None:
    trusted = {"sslrootcert": CERTIFICATE} if mode.startswith("verify") else {}
    async with relay(server_of(deployment), **ENCRYPTED) as made:
        assert await ask(at(deployment, f"127.0.0.1:{made.port}", sslmode=mode, **trusted)) == 1


@pytest.mark.parametrize(
    ("encrypted", "parameters"),
    [(False, {"sslmode": "require"}), (True, {"sslmode": "verify-full", "sslrootcert": CERTIFICATE})],
    ids=["without-tls", "another-name"],
)
async def test_a_server_with_other_tls_is_a_wrong_setting(
    deployment: Deployment, encrypted: bool, parameters: dict[str, Any]
) -> None:
    async with relay(server_of(deployment), **(ENCRYPTED if encrypted else {})) as made:
        host = "localhost" if encrypted else "127.0.0.1"
        with pytest.raises(ConfigurationError, match=r"\(STATEWRIGHT_DATABASE_URL\): .*(SSL|certificate)"):
            await ask(at(deployment, f"{host}:{made.port}", **parameters))


async def test_a_second_host_is_asked_when_the_first_is_away_or_says_nothing(deployment: Deployment) -> None:
    async with relay(server_of(deployment)) as there, relay(server_of(deployment)) as silent:
        silent.silent = True
        hosts = f"127.0.0.1:1,127.0.0.1:{silent.port},127.0.0.1:{there.port}"
        assert await ask(at(deployment, hosts, connect_timeout=1, target_session_attrs="read-write")) == 1
        assert silent.accepted == 1


@pytest.mark.parametrize("target", ["primary", "read-write", "any", "prefer-standby"])
async def test_a_server_that_will_do_is_taken(deployment: Deployment, target: str) -> None:
    async with relay(server_of(deployment)) as made:
        assert await ask(at(deployment, f"127.0.0.1:{made.port}", target_session_attrs=target)) == 1


async def test_no_server_that_will_do_may_be_one_later(deployment: Deployment) -> None:
    async with relay(server_of(deployment)) as made:
        with pytest.raises(ServerAway, match="target attribute"):
            await ask(at(deployment, f"127.0.0.1:{made.port}", target_session_attrs="standby"))


def test_hosts_and_ports_are_read_as_libpq_does() -> None:
    servers = {
        "postgresql://me@one,two:7/db": ((("one", None)), ("two", 7)),
        "postgresql://me@[::1]:7,%2Frun%2Fpg/db": (("::1", 7), ("/run/pg", None)),
        "postgresql:///db?host=/run/pg": (("/run/pg", None),),
        "postgresql://me@/db?host=one,two&port=1,2": (("one", 1), ("two", 2)),
        "postgresql:///db?host=one,two&port=7": (("one", 7), ("two", 7)),
        "postgresql://": ((None, None),),
    }
    assert {url: parse_database_url(url).servers for url in servers} == servers


def test_a_password_may_hold_any_character_in_percent_codes() -> None:
    [host] = parse_database_url(f"postgresql://me:{quote(PASSWORD, safe='')}@one/db").servers
    assert host == ("one", None)
    url = parse_database_url("postgresql://me:a:b@one/db")
    assert (url.servers, url.dsn) == ((("one", None),), "postgresql://me:a:b@/db")


async def test_a_password_of_any_characters_lets_us_in(deployment: Deployment) -> None:
    url = urlsplit(deployment.database_url)
    if url.hostname is not None:
        pytest.skip("a password of the test's own needs a server that asks for one")
    password = quote(PASSWORD, safe="")
    login = f"postgresql://postgres:{password}@{url.path}?{url.query}"
    connection = await asyncpg.connect(login)
    await connection.close()
    assert await ask(login) == 1


REFUSED = [
    ("postgresql://me:s3@cret@one/db", "@ as %40"),
    ("postgresql://me:s3/cret@one/db", "/ as %2F"),
    ("postgresql://me:s3?cret@one/db", r"\? as %3F"),
    ("postgresql://me:s3#cret@one/db", "# as %23"),
    ("postgresql://me:s3cret@one:port/db", "a port must be a number from 1 to 65535"),
    ("postgresql://me:s3cret@one/db?ssl=require", "is sslmode meant"),
    ("postgresql://me:s3cret@one/db?ssl_mode=require", "is sslmode meant"),
    ("postgresql://me:s3cret@one/db?sslmode=on", "sslmode must be one of disable, allow"),
    ("postgresql://me:s3cret@one/db?target_session_attrs=master", "target_session_attrs must be one of any, primary"),
    ("postgresql://me:s3cret@one/db?connect_timeout=soon", "connect_timeout must be whole seconds"),
    ("postgresql://me:s3cret@one/db?sslmode=verify-ca&sslrootcert=/nowhere.crt", "sslrootcert must name a file"),
    ("postgresql://me:s3cret@one/db?sslcert=/nowhere.crt", "sslcert must name a file"),
    ("postgresql://me:s3cret@one/db?channel_binding=require", "'channel_binding' is not served; leave it out"),
    ("postgresql://me:s3cret@one/db?search_path=mine", "'search_path' is not served; .*options=-c%20"),
    ("postgresql://me:s3cret@one/db?sslmode", "must look like name=value"),
    ("postgresql://me:s3cret@one,two,three/db?port=1,2", "3 hosts and 2 ports"),
]


@pytest.mark.parametrize(("url", "told"), REFUSED, ids=[url for url, _ in REFUSED])
def test_what_cannot_be_done_is_refused_in_one_sentence_with_the_cure(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        database.create_engine(url, pool_size=1)
    assert str(raised.value).startswith("STATEWRIGHT_DATABASE_URL: ")
    assert not any(secret in str(raised.value) for secret in ("s3", "cret"))


async def test_a_wrong_setting_is_told_from_a_server_that_is_not_there(deployment: Deployment) -> None:
    path = urlsplit(deployment.database_url).path
    with pytest.raises(ConfigurationError, match=r'PostgreSQL refuses us .* database "nowhere" does not exist'):
        await ask(deployment.database_url.replace(path, "/nowhere", 1))
    with pytest.raises(ConfigurationError, match=r"PostgreSQL refuses us .*nobody"):
        await ask(deployment.database_url.replace("postgres@", "nobody@", 1))
    with pytest.raises(ConfigurationError, match=r"PostgreSQL refuses us .*never_heard"):
        await ask(
            deployment.database_url + ("&" if "?" in deployment.database_url else "?") + "options=-cnever_heard=1"
        )
    for away in ("postgresql://me@127.0.0.1:1/db", "postgresql://me@nowhere.invalid/db", "postgresql:///db?host=/no"):
        with pytest.raises(ServerAway, match=r"cannot reach PostgreSQL \(STATEWRIGHT_DATABASE_URL\): ."):
            await ask(away)


async def test_a_full_server_may_have_room_later(deployment: Deployment) -> None:
    name = urlsplit(deployment.database_url).path.removeprefix("/")
    await deployment.execute(f"CREATE ROLE few_{name} LOGIN NOSUPERUSER CONNECTION LIMIT 0")
    try:
        with pytest.raises(ServerAway, match="too many connections"):
            await ask(deployment.database_url.replace("postgres@", f"few_{name}@", 1))
    finally:
        await deployment.execute(f"DROP ROLE few_{name}")


async def test_a_server_that_accepts_and_says_nothing_is_away(deployment: Deployment) -> None:
    async with relay(server_of(deployment)) as made:
        made.silent = True
        with pytest.raises(ServerAway, match="it does not answer"):
            await ask(at(deployment, f"127.0.0.1:{made.port}", connect_timeout=1))


@pytest.mark.parametrize("pooled", [False, True])
async def test_a_server_that_falls_silent_is_given_up(deployment: Deployment, pooled: bool) -> None:
    async with relay(server_of(deployment)) as made:
        url = at(deployment, f"127.0.0.1:{made.port}")
        engine = database.create_engine(
            url, 1, settings=statements.BATCH_SETTINGS, pooled_transactions=pooled, command_timeout=0.2
        )
        await database.check_schema(engine)
        made.silent = True
        async with asyncio.timeout(60):
            with pytest.raises(ServerAway, match="it does not answer"):
                await database.check_schema(engine)
            with pytest.raises(ServerAway):
                await database.migrate(engine)
            await engine.dispose()


@pytest.mark.parametrize("pooled", [False, True])
async def test_many_migrate_at_once_and_it_happens_once(deployment: Deployment, pooled: bool) -> None:
    await deployment.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    async with pooler(server_of(deployment)) as (port, made):
        url = at(deployment, f"127.0.0.1:{port}") if pooled else deployment.database_url
        engines = [database.create_engine(url, 2, pooled_transactions=pooled) for _ in range(3)]
        revisions = await asyncio.gather(*(database.migrate(engine) for engine in engines for _ in range(2)))
        assert set(revisions) == {database.newest_revision()}
        await database.check_schema(engines[0])
        assert await database.fix_partitions(engines[0], 4, default=8) == 4
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        async with database.connected(engines[0]) as connection:
            assert (await connection.execute(text(f"{locks} AND objid = {database.MIGRATION_LOCK}"))).scalar_one() == 0
        for engine in engines:
            await engine.dispose()
        assert bool(made.transactions) is pooled


async def test_an_older_version_on_a_newer_schema_says_so(deployment: Deployment) -> None:
    await deployment.execute("UPDATE alembic_version SET version_num = '9999'")
    engine = database.create_engine(deployment.database_url, pool_size=1)
    for refused in (database.check_schema, database.migrate):
        with pytest.raises(ConfigurationError, match=r"revision 9999, which this version does not know; upgrade this"):
            await refused(engine)
    await engine.dispose()
