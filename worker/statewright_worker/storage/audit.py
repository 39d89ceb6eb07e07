"""The audit: one consistent read that compares slots, waiters and leases with the states of their runs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from statewright_worker.storage.database import connected


class FindingKind(StrEnum):
    """What can be wrong, or worth knowing."""

    SLOT_WITHOUT_RUN = "slot without a run"
    SLOT_OF_A_RUN_THAT_IS_NOT_RUNNING = "slot of a run that is not RUNNING"
    OVER_THE_LIMIT = "over the limit"
    RUNNING_WITHOUT_A_SLOT = "RUNNING without a slot"
    WAITER_THAT_IS_NOT_PARKED = "waiter that is not parked"
    WAITER_THAT_IS_DECIDED = "waiter that is decided"
    LEASE_OF_A_RUN_THAT_IS_NOT_RUNNING = "lease of a run that is not RUNNING"
    RUNNING_WITHOUT_ITS_LEASE = "RUNNING without its lease"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the audit has found. `limit` is scope and key, as in `tag database`."""

    kind: FindingKind
    limit: str | None
    run_id: UUID | None
    detail: str

    @property
    def is_wrong(self) -> bool:
        """Whether it must not be. A run may be RUNNING without a slot: it ran before the limit was set, or its RUNNING
        was forced. And more may hold a limit than it allows now: it was lowered, and they may finish."""
        return self.kind not in (FindingKind.RUNNING_WITHOUT_A_SLOT, FindingKind.OVER_THE_LIMIT)


_RUNS: Final = """
    SELECT 'flow run' AS kind, id, state_type, state_id FROM flow_run {which}
    UNION ALL SELECT 'task run', id, state_type, state_id FROM task_run {which}
"""
_LIMIT: Final = "named.scope || ' ' || named.key"
_NOT_RUNNING: Final = "'the ' || run.kind || ' is ' || coalesce(run.state_type, 'in no state')"
_ANY_RUN: Final = _RUNS.format(which="WHERE id = {run}")
_RUNNING: Final = _RUNS.format(which="WHERE state_type = 'RUNNING'")

# Each finds rows of (limit, run_id, detail).
_QUERIES: Final[dict[FindingKind, str]] = {
    FindingKind.SLOT_WITHOUT_RUN: f"""
        SELECT {_LIMIT}, slot.run_id, 'taken ' || slot.taken
        FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id
        WHERE NOT EXISTS ({_ANY_RUN.format(run="slot.run_id")})
    """,
    FindingKind.SLOT_OF_A_RUN_THAT_IS_NOT_RUNNING: f"""
        SELECT {_LIMIT}, slot.run_id, {_NOT_RUNNING}
        FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id
        CROSS JOIN LATERAL ({_ANY_RUN.format(run="slot.run_id")}) AS run
        WHERE run.state_type IS DISTINCT FROM 'RUNNING'
    """,
    FindingKind.OVER_THE_LIMIT: f"""
        SELECT {_LIMIT}, NULL::uuid, count(*) || ' hold it, and it allows ' || named.concurrency_limit
        FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id
        WHERE named.period IS NULL
        GROUP BY named.id HAVING count(*) > named.concurrency_limit
    """,
    FindingKind.RUNNING_WITHOUT_A_SLOT: f"""
        SELECT {_LIMIT}, asking.id, 'the ' || asking.kind || ' asks for one'
        FROM (
            SELECT 'task run' AS kind, id, 'tag' AS scope, jsonb_array_elements_text(tags) AS key
                FROM task_run WHERE state_type = 'RUNNING'
            UNION SELECT 'flow run', id, 'deployment', deployment_id::text
                FROM flow_run WHERE state_type = 'RUNNING' AND deployment_id IS NOT NULL
            UNION SELECT 'task run', id, 'name', jsonb_array_elements_text(policy -> 'limits')
                FROM task_run WHERE state_type = 'RUNNING' AND policy ? 'limits'
            UNION SELECT 'flow run', id, 'name', jsonb_array_elements_text(policy -> 'limits')
                FROM flow_run WHERE state_type = 'RUNNING' AND policy ? 'limits'
        ) AS asking JOIN concurrency_limit AS named USING (scope, key)
        WHERE named.period IS NULL AND NOT EXISTS (
            SELECT FROM concurrency_slot WHERE limit_id = named.id AND run_id = asking.id
        )
    """,
    FindingKind.WAITER_THAT_IS_NOT_PARKED: f"""
        SELECT {_LIMIT}, waiter.run_id, 'the proposal ' || waiter.proposal_id || ' waits since ' || waiter.since
        FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
        WHERE NOT EXISTS (SELECT FROM parked WHERE proposal_id = waiter.proposal_id)
    """,
    FindingKind.WAITER_THAT_IS_DECIDED: f"""
        SELECT {_LIMIT}, waiter.run_id, 'the proposal ' || waiter.proposal_id || ' waits since ' || waiter.since
        FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
        WHERE EXISTS (SELECT FROM parked WHERE proposal_id = waiter.proposal_id AND decided)
            OR EXISTS (SELECT FROM verdict WHERE proposal_id = waiter.proposal_id)
    """,
    FindingKind.LEASE_OF_A_RUN_THAT_IS_NOT_RUNNING: f"""
        SELECT NULL, lease.run_id, coalesce({_NOT_RUNNING}, 'there is no such run')
        FROM lease LEFT JOIN LATERAL ({_ANY_RUN.format(run="lease.run_id")}) AS run ON true
        WHERE run.state_type IS DISTINCT FROM 'RUNNING'
    """,
    FindingKind.RUNNING_WITHOUT_ITS_LEASE: f"""
        SELECT NULL, run.id, 'the ' || run.kind || ' has a lease of ' || (state.state_details ->> 'lease') || ' s'
        FROM ({_RUNNING}) AS run CROSS JOIN LATERAL (
            SELECT state_details FROM flow_run_state WHERE id = run.state_id
            UNION ALL SELECT state_details FROM task_run_state WHERE id = run.state_id
        ) AS state
        WHERE state.state_details ->> 'lease' IS NOT NULL
            AND NOT EXISTS (SELECT FROM lease WHERE run_id = run.id)
    """,
}


async def audit(engine: AsyncEngine) -> list[Finding]:
    """Return all that does not fit together at one moment, whatever the workers do meanwhile. It takes no locks.

    Raises ServerAway and ConfigurationError, as `database.connected` does.
    """
    one_view = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    findings: list[Finding] = []
    async with connected(one_view) as connection, connection.begin():
        for kind, query in _QUERIES.items():
            found = await connection.execute(text(f"{query} ORDER BY 1, 2"))
            findings += [Finding(kind, *row) for row in found]
    return findings
