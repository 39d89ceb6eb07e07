"""Filters: which runs a query means, as conditions on rows of a run table."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from pydantic_core import to_json

from statewright.protocol.queries import CountRuns, FindRuns
from statewright.runs import RunKind
from statewright.states import TERMINAL_STATES, StateType

_SPECIAL: Final = re.compile(r"[\\%_]")
"""What means something in a pattern of LIKE."""

OPEN: Final = "open"
FAILED: Final = "failed"
"""The phases of runs that have not come to an end, and of those that have ended otherwise than COMPLETED. Those that
are COMPLETED have none. The column `phase` is computed by the database."""

# Ids as the values of a recursive query: only trees have them, and nobody knows beforehand how many there are.
TREE: Final = """
    WITH RECURSIVE below AS (
        SELECT 'flow-run' AS kind, id FROM flow_run WHERE id = {root}
        UNION ALL SELECT 'task-run', id FROM task_run WHERE id = {root}
        UNION ALL
        SELECT next.kind, next.id FROM below CROSS JOIN LATERAL (
            SELECT 'task-run' AS kind, id FROM task_run WHERE below.kind = 'flow-run' AND flow_run_id = below.id
            UNION ALL
            SELECT 'flow-run', id FROM flow_run WHERE below.kind = 'task-run' AND parent_task_run_id = below.id
        ) AS next
    ) SELECT id FROM below
"""


class Arguments:
    """The arguments of a statement while it is made."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def take(self, value: object, kind: str) -> str:
        """Return what stands for the value in the statement."""
        self.values.append(value)
        return f"${len(self.values)}::{kind}"


class Filters(NamedTuple):
    """Conditions on the rows `run` of a run table."""

    ordered: list[str]
    """Those that an index serves which keeps the runs in the order of their creation."""
    others: list[str]

    def every(self) -> str:
        """Return all conditions as one."""
        return _all(self.ordered + self.others)

    def ordered_alone(self) -> str:
        """Return the conditions that leave the order to an index as one."""
        return _all(self.ordered)

    def others_alone(self) -> str:
        """Return the other conditions as one."""
        return _all(self.others)


def kinds_meant(query: FindRuns | CountRuns) -> list[RunKind]:
    """Return the kinds of runs that may match."""
    kinds = [RunKind.FLOW_RUN, RunKind.TASK_RUN]
    if query.flow_id is not None or query.deployment_id is not None:
        kinds.remove(RunKind.TASK_RUN)
    return [kind for kind in kinds if query.kind in (None, kind)]


def phases_meant(query: FindRuns | CountRuns) -> list[str | None]:
    """Return the phases of which an index finds all runs that are meant; None stands for runs of any phase."""
    if query.ended is False:
        return [OPEN]
    types = set(query.state_types)
    if not types or StateType.COMPLETED in types:
        return [None]
    phases = {FAILED: types & TERMINAL_STATES, OPEN: types - TERMINAL_STATES}
    return [phase for phase, of_phase in phases.items() if of_phase]


def filters_of(query: FindRuns | CountRuns, kind: RunKind, phase: str | None, arguments: Arguments) -> Filters:
    """Return the conditions for runs of a kind, and of a phase unless that is None."""
    ordered = list(_created(query, arguments))
    others = [*_states(query, arguments), *_described(query, arguments), *_moments(query, arguments)]
    others += [*_related(query, kind, arguments)]
    leading = [
        f"run.{column} = {arguments.take(value, sql_type)}"
        for column, value, sql_type in (
            ("deployment_id", query.deployment_id, "uuid"),
            ("flow_id", query.flow_id, "uuid"),
            ("phase", phase, "text"),
        )
        if value is not None
    ]
    # One index keeps the order, that of the first; the others are looked at in each row.
    return Filters(ordered + leading[:1], others + leading[1:])


def _created(query: FindRuns | CountRuns, arguments: Arguments) -> Iterator[str]:
    if query.created_after is not None:
        yield f"run.created >= {arguments.take(query.created_after, 'timestamptz')}"
    # What was started or ended before was created before.
    for before in (query.created_before, query.started_before, query.ended_before):
        if before is not None:
            yield f"run.created < {arguments.take(before, 'timestamptz')}"


def _states(query: FindRuns | CountRuns, arguments: Arguments) -> Iterator[str]:
    if query.state_types:
        yield f"run.state_type = ANY ({arguments.take(list(query.state_types), 'text[]')})"
    if query.state_names:
        yield f"run.state_name = ANY ({arguments.take(list(query.state_names), 'text[]')})"
    if query.ended is not None:
        yield f"run.phase {'IS DISTINCT FROM' if query.ended else '='} '{OPEN}'"
    if query.unchanged_for is not None:
        seconds = arguments.take(query.unchanged_for, "double precision")
        yield f"coalesce(run.state_timestamp, run.created) <= now() - {seconds} * interval '1 second'"


def _described(query: FindRuns | CountRuns, arguments: Arguments) -> Iterator[str]:
    if query.name_prefix is not None:
        pattern = _SPECIAL.sub(r"\\\g<0>", query.name_prefix) + "%"
        yield f"run.name LIKE {arguments.take(pattern, 'text')}"
    # That there are some is said for the index, which has no runs without any.
    if query.tags:
        tags = arguments.take(to_json(query.tags).decode(), "jsonb")
        yield f"run.tags @> {tags} AND run.tags <> '[]'"
    if query.labels:
        labels = arguments.take(to_json(query.labels).decode(), "jsonb")
        yield f"run.labels @> {labels} AND run.labels <> '{{}}'"


def _moments(query: FindRuns | CountRuns, arguments: Arguments) -> Iterator[str]:
    for column, after, before in (
        ("start_time", query.started_after, query.started_before),
        ("end_time", query.ended_after, query.ended_before),
    ):
        if after is not None:
            yield f"run.{column} >= {arguments.take(after, 'timestamptz')}"
        if before is not None:
            yield f"run.{column} < {arguments.take(before, 'timestamptz')}"


def _related(query: FindRuns | CountRuns, kind: RunKind, arguments: Arguments) -> Iterator[str]:
    if query.parent is not None:
        column = "parent_task_run_id" if kind is RunKind.FLOW_RUN else "flow_run_id"
        yield f"run.{column} = {arguments.take(query.parent, 'uuid')}"
    if query.tree is not None:
        yield f"run.id IN ({TREE.format(root=arguments.take(query.tree, 'uuid'))})"
    if query.leased is not None:
        yield f"{'' if query.leased else 'NOT '}EXISTS (SELECT FROM lease WHERE lease.run_id = run.id)"


def _all(conditions: Iterable[str]) -> str:
    return " AND ".join(conditions) or "true"
