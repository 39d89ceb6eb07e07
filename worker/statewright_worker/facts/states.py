"""States in rows: the columns of every history, and how a state becomes a row and back."""

from typing import Final

from asyncpg import Record
from pydantic_core import from_json, to_json

from statewright.states import State, StateDetails, StateType
from statewright_worker.orchestration.records import StateChange
from statewright_worker.storage.columns import Columns, selected
from statewright_worker.storage.writing import Row

STATE_COLUMNS: Final[Columns] = (
    ("id", "uuid"),
    ("run_id", "uuid"),
    ("ordinal", "integer"),
    ("type", "text"),
    ("name", "text"),
    ("timestamp", "timestamptz"),
    ("message", "text"),
    ("data", "jsonb"),
    ("state_details", "jsonb"),
    ("previous_state_id", "uuid"),
    ("run_count", "integer"),
    ("proposal_id", "uuid"),
    ("sequence", "bigint"),
)
STORED_STATE: Final[Columns] = tuple(column for column in STATE_COLUMNS if column[0] in State.model_fields)
"""The columns that make up a state itself."""
STATE: Final = selected("s", STORED_STATE, prefix="s_")
"""The part of a SELECT that reads the state which the query joins as `s`."""


def state_from(row: Record) -> State | None:
    """Return the state in a joined row, None where the left join found none."""
    return None if row["s_id"] is None else joined_state(row)


def joined_state(row: Record) -> State:
    """Return the state in a joined row, which must have one."""
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


def change_values(change: StateChange, sequence: int) -> Row:
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
        change.proposal_id,
        sequence,
    )
