"""Checks of what comes due: leases, what is parked and timers fit the states of their runs."""

from typing import Final

from statewright_worker.audit.base import Check, any_run, no_run, of_both

_NOT_RUNNING: Final = "'the ' || run.kind || ' is ' || coalesce(run.state_type, 'in no state')"
_RUNNING: Final = of_both("WHERE state_type = 'RUNNING'")

DUE: Final = (
    Check(
        "lease of a run that is not RUNNING",
        f"""
        SELECT NULL, lease.run_id, coalesce({_NOT_RUNNING}, 'there is no such run')
        FROM lease LEFT JOIN LATERAL ({any_run("lease.run_id")}) AS run ON true
        WHERE run.state_type IS DISTINCT FROM 'RUNNING'
    """,
    ),
    Check(
        "RUNNING without its lease",
        f"""
        SELECT NULL, run.id, 'the ' || run.kind || ' has a lease of ' || (state.state_details ->> 'lease') || ' s'
        FROM ({_RUNNING}) AS run CROSS JOIN LATERAL (
            SELECT state_details FROM flow_run_state WHERE id = run.state_id
            UNION ALL SELECT state_details FROM task_run_state WHERE id = run.state_id
        ) AS state
        WHERE state.state_details ->> 'lease' IS NOT NULL
            AND NOT EXISTS (SELECT FROM lease WHERE run_id = run.id)
    """,
    ),
    Check(
        "lease that nothing ends",
        """
        SELECT NULL, lease.run_id, 'its lease ended or ends ' || lease.ends
            || coalesce(', and its executor ' || lease.executor || ' is not known', ', and no timer is set')
        FROM lease WHERE CASE WHEN executor IS NULL
            THEN NOT EXISTS (SELECT FROM timer WHERE kind = 'lease' AND id = lease.run_id)
            ELSE NOT EXISTS (
                SELECT FROM executor WHERE partition = lease.partition AND name = lease.executor
            ) END
        """,
    ),
    Check(
        "timer of no run",
        f"""
        SELECT 'partition ' || timer.partition, timer.id, 'a ' || timer.kind || ' is due ' || timer.due
        FROM timer WHERE kind IN ('cascade', 'lease', 'pause') AND {no_run("timer.id")}
        """,
    ),
    Check(
        "parked proposal of no run",
        f"""
        SELECT 'partition ' || parked.partition, parked.run_id, 'the proposal ' || parked.proposal_id
        FROM parked WHERE NOT decided AND {no_run("parked.run_id")}
        """,
    ),
    Check(
        "decided proposal that stays parked",
        """
        SELECT 'partition ' || parked.partition, parked.run_id, 'nothing lets the proposal ' || proposal_id || ' go'
        FROM parked WHERE decided
            AND NOT EXISTS (SELECT FROM timer WHERE kind = 'parked' AND id = parked.proposal_id)
        """,
    ),
)
