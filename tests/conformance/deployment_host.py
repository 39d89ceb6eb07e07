"""Cases on a deployment: a client proposes through Redis, and a worker decides on what PostgreSQL holds."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from statewright import Client
from statewright.runs import RunPolicy
from statewright.states import ProposedState, StateType
from statewright.verdicts import Verdict
from tests.conformance.subject import CachedState, Host, RunSnapshot, Subject
from tests.deployment import Deployment

PARTITIONS: Final = 2
"""Few, so that each batch holds requests of many cases."""
CASES_AT_A_TIME: Final = 100
"""More would save little and make each case last longer, while what it has scheduled must still lie ahead."""
CONNECTIONS: Final = 4

READ_STATE_COLUMNS: Final = """
    SELECT id, state_type, state_name, state_timestamp FROM flow_run WHERE id = ANY ($1)
    UNION ALL SELECT id, state_type, state_name, state_timestamp FROM task_run WHERE id = ANY ($1)
"""
READ_CACHE: Final = """
    SELECT entry.cache_key, entry.cache_expiration, state.id, state.run_id
    FROM task_run_state_cache AS entry JOIN task_run_state AS state ON state.id = entry.task_run_state_id
    WHERE entry.cache_key = ANY ($1) ORDER BY entry.id
"""


class DeploymentSubject:
    """One case on a deployment that it shares with others.

    What producers can read is read as they read it; the rest, which the engine keeps for itself, from the tables.
    """

    clock_is_injected: Final = False

    def __init__(self, client: Client, database: asyncpg.Pool) -> None:
        self._client = client
        self._database = database

    async def set_clock(self, moment: datetime) -> None:
        """The database's clock decides, and runs by itself."""

    async def set_limit(self, tag: str, concurrency_limit: int) -> None:
        await self._client.set_limit(tag, concurrency_limit)

    async def create_flow_run(
        self, name: str, *, deployment_id: UUID | None, parent_task_run_id: UUID | None, policy: RunPolicy
    ) -> UUID:
        created = self._client.create_flow_run(
            name, deployment_id=deployment_id, parent_task_run=parent_task_run_id, policy=policy
        )
        return (await created).id

    async def create_task_run(
        self, name: str, *, flow_run_id: UUID | None, tags: Sequence[str], policy: RunPolicy
    ) -> UUID:
        return (await self._client.create_task_run(name, flow_run=flow_run_id, tags=tags, policy=policy)).id

    async def propose(self, run_id: UUID, state: ProposedState, *, force: bool, api_version: str | None) -> Verdict:
        return await self._client.propose(run_id, state, force=force, api_version=api_version)

    async def snapshots(self, run_ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
        # Requests are on their way as soon as they are made; only their answers are awaited one by one.
        histories = {run_id: self._client.read_run(run_id) for run_id in run_ids}
        columns = {row["id"]: row for row in await self._database.fetch(READ_STATE_COLUMNS, list(run_ids))}
        return {
            run_id: RunSnapshot(await history, *_state_columns(columns[run_id]))
            for run_id, history in histories.items()
        }

    async def slots(self, tags: Collection[str]) -> dict[str, Collection[UUID]]:
        requests = {tag: self._client.read_limit(tag) for tag in tags}
        limits = {tag: await request for tag, request in requests.items()}
        return {tag: limit.active_slots if limit else () for tag, limit in limits.items()}

    async def cache_entries(self, cache_keys: Collection[str]) -> list[CachedState]:
        if not cache_keys:
            return []
        return [CachedState(*row) for row in await self._database.fetch(READ_CACHE, list(cache_keys))]


def _state_columns(row: asyncpg.Record) -> tuple[StateType | None, str | None, datetime | None]:
    state_type = row["state_type"]
    return None if state_type is None else StateType(state_type), row["state_name"], row["state_timestamp"]


@dataclass(frozen=True)
class DeploymentHost:
    """Gives each case a share of one deployment: tags and cache keys of its own keep them apart."""

    client: Client
    database: asyncpg.Pool
    name: str = "a deployment"
    takes_informative_cases: bool = False
    cases_at_a_time: int = CASES_AT_A_TIME

    def subject(self) -> Subject:
        return DeploymentSubject(self.client, self.database)


@asynccontextmanager
async def deployment_host(deployment: Deployment) -> AsyncIterator[Host]:
    """Run a worker and a client on the deployment for as long as cases are carried out."""
    async with (
        deployment.worker(partitions=PARTITIONS),
        deployment.client() as client,
        asyncpg.create_pool(deployment.database_url, min_size=1, max_size=CONNECTIONS, reset=_keep) as database,
    ):
        yield DeploymentHost(client, database)


async def _keep(_: asyncpg.Connection) -> None:
    """Leave a connection as it is: nothing but reads has been done on it."""
