"""From rows to records and back."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from asyncpg import Record
from pydantic_core import from_json, to_json

from statewright.runs import RunPolicy
from statewright.states import State, StateDetails, StateType
from statewright.verdicts import SetStateStatus, Verdict
from statewright_worker.orchestration.records import (
    Answer,
    AnyRunRecord,
    FlowRunRecord,
    RunRecord,
    StateChange,
    TaskRunRecord,
)

SIGNATURE_SEPARATOR = ","
VALUES_REMEMBERED = 4_096
REMEMBERED_LENGTH = 1_024
TAGS_REMEMBERED = 5
"""Only texts up to this long are remembered, so that what is remembered stays below a few megabytes."""

_stored_policies: dict[int, tuple[RunPolicy, str]] = {}


def state_from(row: Record) -> State | None:
    """Return the state that a row is joined to, None where the left join found none."""
    return None if row["s_id"] is None else _state(row)


def flow_run_from(row: Record) -> FlowRunRecord:
    """Return the flow run of a row of LOAD."""
    return FlowRunRecord(
        **_shared(row),
        flow_id=row["flow_id"],
        deployment_id=row["deployment_id"],
        parent_task_run_id=row["parent_task_run_id"],
    )


def task_run_from(row: Record) -> TaskRunRecord:
    """Return the task run of a row of LOAD or LOCK_FAILED_TASK_RUNS."""
    return TaskRunRecord(
        **_shared(row),
        flow_run_id=row["flow_run_id"],
        task_key=row["task_key"],
        flow_run_run_count=row["flow_run_run_count"],
    )


def verdict_from(row: Record) -> Verdict:
    """Return the verdict of a row of the ledger."""
    return Verdict(
        proposal_id=row["proposal_id"],
        run_id=row["run_id"],
        status=SetStateStatus(row["status"]),
        reason=row["reason"],
        delay_seconds=row["delay_seconds"],
        state=state_from(row),
        rule_signature=_signature(row["rule_signature"]),
        finalization_signature=_signature(row["finalization_signature"]),
    )


def change_from(row: Record) -> StateChange:
    """Return the change that a row of READ_CHANGES tells of; its run has only what an event needs."""
    shared = {"id": row["id"], "name": row["name"], "created": row["created"], "tags": _tags(row["tags"])}
    run: AnyRunRecord
    if row["kind"] == FlowRunRecord.kind:
        run = FlowRunRecord(
            **shared,
            flow_id=row["flow_id"],
            deployment_id=row["deployment_id"],
            parent_task_run_id=row["parent_task_run_id"],
        )
    else:
        run = TaskRunRecord(**shared, flow_run_id=row["flow_run_id"])
    return StateChange(run, row["ordinal"], _state(row), previous=_previous(row), run_count=row["s_run_count"])


def run_values(run: RunRecord, columns: Sequence[str]) -> tuple[Any, ...]:
    """Return the run's values for the columns of an INSERT or UPDATE."""
    values = {
        **run.__dict__,
        "state_id": None if run.state is None else run.state.id,
        "policy": _stored_policy(run.policy),
        "tags": _stored_tags(run.tags),
    }
    return tuple([values[column] for column in columns])


def change_values(change: StateChange, sequence: int) -> tuple[Any, ...]:
    """Return the row of a run's history, in the order of STATE_COLUMNS."""
    state = change.state
    return (
        state.id,
        change.run.id,
        change.ordinal,
        state.type,
        state.name,
        state.timestamp,
        state.message,
        None if state.data is None else to_json(state.data).decode(),
        state.state_details.model_dump_json(exclude_defaults=True),
        None if change.previous is None else change.previous.id,
        change.run_count,
        sequence,
    )


def verdict_values(verdict: Verdict, digest: int | None) -> tuple[Any, ...]:
    """Return the row of the ledger, in the order of VERDICT_COLUMNS."""
    return (
        verdict.proposal_id,
        verdict.run_id,
        verdict.status,
        verdict.reason,
        verdict.delay_seconds,
        None if verdict.state is None else verdict.state.id,
        SIGNATURE_SEPARATOR.join(verdict.rule_signature),
        SIGNATURE_SEPARATOR.join(verdict.finalization_signature),
        digest,
    )


def answer_values(answer: Answer) -> tuple[Any, ...]:
    """Return the row of the ledger, in the order of ANSWER_COLUMNS."""
    return (answer.request_id, answer.digest, answer.reply)


def answer_from(row: Record) -> Answer:
    """Return the answer of a row of READ_ANSWERS."""
    return Answer(row["request_id"], row["digest"], row["reply"])


def columns_of(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the rows' columns: what `unnest` takes."""
    return list(zip(*rows, strict=True))


def _state(row: Record) -> State:
    data = row["s_data"]
    return State.trusted(
        id=row["s_id"],
        type=StateType(row["s_type"]),
        name=row["s_name"],
        timestamp=row["s_timestamp"],
        message=row["s_message"],
        data=None if data is None else from_json(data),
        state_details=StateDetails.model_validate_json(row["s_state_details"]),
    )


def _shared(row: Record) -> dict[str, Any]:
    state_type = row["state_type"]
    return {
        "id": row["id"],
        "name": row["name"],
        "created": row["created"],
        "tags": _tags(row["tags"]),
        "policy": _policy(row["policy"]),
        "state": state_from(row),
        "state_count": row["state_count"],
        "state_type": None if state_type is None else StateType(state_type),
        "state_name": row["state_name"],
        "state_timestamp": row["state_timestamp"],
        "run_count": row["run_count"],
        "expected_start_time": row["expected_start_time"],
        "next_scheduled_start_time": row["next_scheduled_start_time"],
        "start_time": row["start_time"],
        "end_time": row["end_time"],
        "total_run_time": row["total_run_time"],
    }


def _previous(row: Record) -> State | None:
    if row["p_id"] is None:
        return None
    return State(
        id=row["p_id"],
        type=StateType(row["p_type"]),
        name=row["p_name"],
        timestamp=row["p_timestamp"],
        message=row["p_message"],
    )


def _tags(stored: str) -> tuple[str, ...]:
    return (_remembered_tags if len(stored) <= REMEMBERED_LENGTH else _decoded_tags)(stored)


def _decoded_tags(stored: str) -> tuple[str, ...]:
    return tuple(from_json(stored))


def _policy(stored: str) -> RunPolicy:
    return (_remembered_policy if len(stored) <= REMEMBERED_LENGTH else RunPolicy.model_validate_json)(stored)


_remembered_tags = lru_cache(maxsize=VALUES_REMEMBERED)(_decoded_tags)
_remembered_policy = lru_cache(maxsize=VALUES_REMEMBERED)(RunPolicy.model_validate_json)


def _stored_policy(policy: RunPolicy) -> str:
    # Found by identity: to hash and compare policies costs more than all else of their runs' rows.
    known = _stored_policies.get(id(policy))
    if known is not None and known[0] is policy:
        return known[1]
    stored = policy.model_dump_json(exclude_defaults=True)
    if len(stored) <= REMEMBERED_LENGTH:
        if len(_stored_policies) >= VALUES_REMEMBERED:
            _stored_policies.clear()
        _stored_policies[id(policy)] = policy, stored
    return stored


@lru_cache(maxsize=VALUES_REMEMBERED)
def _signature(stored: str) -> tuple[str, ...]:
    return tuple(stored.split(SIGNATURE_SEPARATOR)) if stored else ()


@lru_cache(maxsize=VALUES_REMEMBERED)
def _few_tags(tags: tuple[str, ...]) -> str:
    return to_json(tags).decode()


def _stored_tags(tags: tuple[str, ...]) -> str:
    return _few_tags(tags) if len(tags) <= TAGS_REMEMBERED else to_json(tags).decode()
