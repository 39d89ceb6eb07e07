"""Checks of limits: who holds slots and who waits for them fits the states of their runs."""

from typing import Final

from statewright_worker.audit.base import Check, any_run

_LIMIT: Final = "named.scope || ' ' || named.key"
_NOT_RUNNING: Final = "'the ' || run.kind || ' is ' || coalesce(run.state_type, 'in no state')"

# A run may be RUNNING without a slot: it ran before the limit was set, or its RUNNING was forced. And more may hold a
# limit than it allows now: it was lowered, and they may finish.
LIMITS: Final = (
    Check(
        "slot without a run",
        f"""
        SELECT {_LIMIT}, slot.run_id, 'taken ' || slot.taken
        FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id
        WHERE NOT EXISTS ({any_run("slot.run_id")})
    """,
    ),
    Check(
        "slot of a run that is not RUNNING",
        f"""
        SELECT {_LIMIT}, slot.run_id, {_NOT_RUNNING}
        FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id
        CROSS JOIN LATERAL ({any_run("slot.run_id")}) AS run
        WHERE run.state_type IS DISTINCT FROM 'RUNNING'
    """,
    ),
    Check(
        "over the limit",
        f"""
        SELECT {_LIMIT}, NULL::uuid, count(*) || ' hold it, and it allows ' || named.concurrency_limit
        FROM concurrency_slot AS slot JOIN concurrency_limit AS named ON named.id = slot.limit_id
        WHERE named.period IS NULL
        GROUP BY named.id HAVING count(*) > named.concurrency_limit
    """,
        is_wrong=False,
    ),
    Check(
        "RUNNING without a slot",
        f"""
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
        is_wrong=False,
    ),
    Check(
        "waiter that is not parked",
        f"""
        SELECT {_LIMIT}, waiter.run_id, 'the proposal ' || waiter.proposal_id || ' waits since ' || waiter.since
        FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
        WHERE NOT EXISTS (SELECT FROM parked WHERE proposal_id = waiter.proposal_id)
    """,
    ),
    Check(
        "waiter that is decided",
        f"""
        SELECT {_LIMIT}, waiter.run_id, 'the proposal ' || waiter.proposal_id || ' waits since ' || waiter.since
        FROM waiter JOIN concurrency_limit AS named ON named.id = waiter.limit_id
        WHERE EXISTS (SELECT FROM parked WHERE proposal_id = waiter.proposal_id AND decided)
            OR EXISTS (SELECT FROM verdict WHERE proposal_id = waiter.proposal_id)
    """,
    ),
)
