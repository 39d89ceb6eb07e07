"""Checks of the ledger: verdicts, states and cached states belong together, and what was deleted is gone."""

from typing import Final

from statewright_worker.audit.base import STATE_TABLES, Check, no_run

_NO_STATE: Final = " AND ".join(
    f"NOT EXISTS (SELECT FROM {table} WHERE {table}.id = verdict.state_id)" for table in STATE_TABLES
)
_CAUSED: Final = " UNION ALL ".join(
    f"SELECT run_id, ordinal, proposal_id FROM {table} WHERE proposal_id IS NOT NULL" for table in STATE_TABLES
)

LEDGER: Final = (
    Check(
        "verdict without its state",
        f"""
        SELECT NULL, verdict.run_id, 'the proposal ' || verdict.proposal_id || ' was told ' || verdict.status
            || ' with a state that is not there'
        FROM verdict WHERE verdict.state_id IS NOT NULL AND {_NO_STATE}
        """,
    ),
    Check(
        "verdict without a run",
        f"""
        SELECT NULL, verdict.run_id, 'the proposal ' || verdict.proposal_id || ' was told ' || verdict.status
        FROM verdict WHERE {no_run("verdict.run_id")}
        """,
    ),
    Check(
        "state without its verdict",
        f"""
        SELECT NULL, state.run_id, 'state number ' || state.ordinal || ' was caused by the proposal '
            || state.proposal_id || ', which has no verdict'
        FROM ({_CAUSED}) AS state
        WHERE NOT EXISTS (SELECT FROM verdict WHERE verdict.proposal_id = state.proposal_id)
        """,
    ),
    Check(
        "cached state that is gone",
        """
        SELECT NULL, NULL::uuid, 'the state ' || cached.task_run_state_id || ' is not there'
        FROM task_run_state_cache AS cached
        WHERE NOT EXISTS (SELECT FROM task_run_state WHERE id = cached.task_run_state_id)
        """,
    ),
    Check(
        "deleted run that is there",
        """
        SELECT NULL, pruned.run_id, 'it was deleted ' || pruned.pruned
        FROM pruned WHERE NOT is_left AND (
            EXISTS (SELECT FROM flow_run WHERE id = pruned.run_id)
            OR EXISTS (SELECT FROM task_run WHERE id = pruned.run_id)
        )
        """,
    ),
)
