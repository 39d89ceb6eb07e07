"""What every check of the audit is, and what it finds."""

from typing import Final, NamedTuple
from uuid import UUID

RUN_TABLES: Final = ("flow_run", "task_run")
STATE_TABLES: Final = ("flow_run_state", "task_run_state")


class Check(NamedTuple):
    """Something that must never be, or is worth knowing."""

    name: str
    """What is found, in the words of whoever reads it."""
    query: str
    """Finds rows of a subject, which is no run, a run's id and a detail; the first two may be null."""
    is_wrong: bool = True
    """Whether it must not be."""


class Finding(NamedTuple):
    """One thing that a check has found. The subject is such as `tag database` or `partition 3`."""

    check: str
    subject: str | None
    run_id: UUID | None
    detail: str
    is_wrong: bool


def any_run(run_id: str) -> str:
    """Return the query of the run with this id, whichever kind it is of."""
    return of_both(f"WHERE id = {run_id}")


def of_both(which: str) -> str:
    """Return the query of the runs of both kinds that a condition lets through."""
    return f"""
        SELECT 'flow run' AS kind, id, state_type, state_id FROM flow_run {which}
        UNION ALL SELECT 'task run', id, state_type, state_id FROM task_run {which}
    """


def no_run(run_id: str) -> str:
    """Return the condition that there is no run with this id. Of many rows PostgreSQL makes two joins of it."""
    return " AND ".join(f"NOT EXISTS (SELECT FROM {table} WHERE {table}.id = {run_id})" for table in RUN_TABLES)
