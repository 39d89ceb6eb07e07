"""A commit whose outcome gets lost: it takes effect, and the worker that sent it does not hear of it."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from statewright import State
from tests.deployment import Deployment


@pytest.fixture
def lose_next_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What lets a worker of this process lose its connection the next time that it has sent COMMIT, before it hears
    what became of it."""
    lost: list[bool] = []
    original: Callable[..., Any] = asyncpg.Connection.execute

    async def execute(connection: asyncpg.Connection, query: str, *arguments: Any, **named: Any) -> Any:
        told = await original(connection, query, *arguments, **named)
        if query == "COMMIT" and lost:
            lost.clear()
            connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return told

    monkeypatch.setattr(asyncpg.Connection, "execute", execute)
    return lambda: lost.append(True)


async def test_a_proposal_whose_commit_got_lost_is_answered_with_what_was_committed(
    deployment: Deployment, lose_next_commit: Callable[[], None]
) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client, client.subscribe() as events:
        run = await client.create_flow_run("lost")
        lose_next_commit()
        verdict = await client.propose(run, State.pending())
        assert verdict.accepted
        assert (await client.read_run(run)).states == (verdict.state,)
        assert (await client.propose(run, State.running())).accepted
        assert [(await anext(events)).type for _ in range(2)] == [
            "statewright.flow-run.Pending",
            "statewright.flow-run.Running",
        ]


async def test_a_run_whose_creation_was_committed_unheard_is_found(
    deployment: Deployment, lose_next_commit: Callable[[], None]
) -> None:
    async with deployment.worker(partitions=1), deployment.client() as client:
        await client.create_flow_run("first")
        lose_next_commit()
        run = await client.create_flow_run("lost")
    found = await deployment.fetch("SELECT id FROM flow_run WHERE name = 'lost'")
    assert [row["id"] for row in found] == [run.id]
