"""A commit whose outcome gets lost: it takes effect, and the worker that sent it does not hear of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from statewright import State
from tests.deployment import Deployment, until

LOCK = 4_711
# Whoever commits rows of the table waits for a lock that the test holds.
HOLD_COMMITS = f"""
    CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock({LOCK}); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT ON {{table}} DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION hold_commit();
"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1"


@pytest.fixture
def committing(monkeypatch: pytest.MonkeyPatch) -> list[asyncpg.Connection]:
    """The connections on which workers of this process have sent COMMIT, the last one last."""
    connections: list[asyncpg.Connection] = []
    original: Callable[..., Any] = asyncpg.Connection.execute

    async def execute(connection: asyncpg.Connection, query: str, *arguments: Any, **named: Any) -> Any:
        if query == "COMMIT":
            connections.append(connection)
        return await original(connection, query, *arguments, **named)

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)
    return connections


@asynccontextmanager
async def commits_held(deployment: Deployment, table: str) -> AsyncIterator[None]:
    """Let whoever commits rows of the table wait, until the end of the block."""
    await deployment.execute(HOLD_COMMITS.format(table=table))
    holder = await asyncpg.connect(deployment.database_url)
    try:
        await holder.execute("SELECT pg_advisory_lock($1)", LOCK)
        yield
    finally:
        await holder.close()


async def lose_the_commit(deployment: Deployment, committing: list[asyncpg.Connection]) -> None:
    """Drop the connection whose commit is held; return once the worker waits for what that still holds."""

    async def somebody_waits_for(event: str) -> bool:
        [[waiting]] = await deployment.fetch(WAITING, event)
        return bool(waiting)

    await until(lambda: somebody_waits_for("advisory"))
    committing[-1].terminate()
    await until(lambda: somebody_waits_for("transactionid"))


async def test_a_proposal_whose_commit_got_lost_is_answered_with_what_was_committed(
    deployment: Deployment, committing: list[asyncpg.Connection]
) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        run = await client.create_flow_run("lost")
        async with commits_held(deployment, "verdict"):
            proposed = client.propose(run, State.pending())
            await lose_the_commit(deployment, committing)
        verdict = await proposed
        assert verdict.accepted
        assert (await client.read_run(run)).states == (verdict.state,)


async def test_a_run_whose_creation_was_committed_unheard_is_found(
    deployment: Deployment, committing: list[asyncpg.Connection]
) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        async with commits_held(deployment, "flow_run"):
            created = client.create_flow_run("lost")
            await lose_the_commit(deployment, committing)
        run = await created
    assert [row["id"] for row in await deployment.fetch("SELECT id FROM flow_run")] == [run.id]
