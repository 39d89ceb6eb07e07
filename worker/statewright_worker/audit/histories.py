"""Checks of histories: each run's states are numbered without a gap, and the run is in the last of them."""

from collections.abc import Iterator
from typing import Final

from statewright_worker.audit.base import RUN_TABLES, STATE_TABLES, Check


def _of_runs(runs: str, states: str) -> Iterator[Check]:
    yield Check(
        "history with a gap",
        f"""
        SELECT NULL, run.id, 'the run counts ' || run.state_count || ' states; its history has '
            || coalesce(history.states, 0) || ', and the last is number ' || coalesce(history.last, 0)
        FROM {runs} AS run LEFT JOIN (
            SELECT run_id, count(*) AS states, max(ordinal) AS last FROM {states} GROUP BY run_id
        ) AS history ON history.run_id = run.id
        WHERE coalesce(history.states, 0) <> run.state_count OR coalesce(history.last, 0) <> run.state_count
        """,
    )
    yield Check(
        "run that is not in its last state",
        f"""
        SELECT NULL, run.id, 'it is ' || coalesce(run.state_name, 'in no state') || ', and its history ends with '
            || coalesce(state.name, 'nothing')
        FROM {runs} AS run LEFT JOIN {states} AS state ON state.run_id = run.id AND state.ordinal = run.state_count
        WHERE (run.state_id, run.state_type, run.state_name, run.state_timestamp)
            IS DISTINCT FROM (state.id, state.type, state.name, state.timestamp)
        """,
    )
    yield Check(
        "history out of order",
        f"""
        SELECT NULL, state.run_id, 'state number ' || state.ordinal || ' does not follow the one before it'
        FROM {states} AS state LEFT JOIN {states} AS before
            ON before.run_id = state.run_id AND before.ordinal = state.ordinal - 1
        WHERE state.previous_state_id IS DISTINCT FROM before.id
        """,
    )
    yield Check(
        "history without a run",
        f"""
        SELECT NULL, history.run_id, 'it has ' || history.states || ' states'
        FROM (SELECT run_id, count(*) AS states FROM {states} GROUP BY run_id) AS history
        WHERE NOT EXISTS (SELECT FROM {runs} WHERE id = history.run_id)
        """,
    )


HISTORIES: Final = tuple(
    check for runs, states in zip(RUN_TABLES, STATE_TABLES, strict=True) for check in _of_runs(runs, states)
)
