"""The one statement that writes a batch: one part for each kind of row that the batch has, however many rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

from statewright_worker.storage.columns import Columns, names

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What a batch does to one table. Its rows come as one array per column; the text refers to them as `rows`."""

    text: str
    columns: Columns


def insert(table: str, columns: Columns, *, otherwise: str = "", **of_the_batch: str) -> Part:
    """Return the part that inserts rows; `of_the_batch` are columns that have one value for the whole batch.

    `otherwise` is the ON CONFLICT clause, if there is one.
    """
    into = ", ".join([*(f'"{name}"' for name in names(columns)), *of_the_batch])
    values = ", ".join(["rows.*", *(f"batch.{name}" for name in of_the_batch.values())])
    return Part(f"INSERT INTO {table} ({into}) SELECT {values} FROM {{rows}}, batch {otherwise}", columns)


def update(table: str, columns: Columns) -> Part:
    """Return the part that updates rows by id, which is the first column."""
    assignments = ", ".join(f"{name} = rows.{name}" for name in names(columns) if name != "id")
    return Part(f"UPDATE {table} SET {assignments} FROM {{rows}} WHERE {table}.id = rows.id", columns)


def delete(table: str, columns: Columns) -> Part:
    """Return the part that deletes the rows that have these values."""
    same = " AND ".join(f"{table}.{name} = rows.{name}" for name in names(columns))
    return Part(f"DELETE FROM {table} USING {{rows}} WHERE {same}", columns)


def columns_of(rows: Iterable[Row]) -> list[Row]:
    """Return the rows' columns: what `unnest` takes. A column of nothing but None is empty, and costs nothing:
    `unnest` fills it up."""
    return [
        () if column[0] is None and column.count(None) == len(column) else column for column in zip(*rows, strict=True)
    ]


@lru_cache(maxsize=1_024)
def write(parts: tuple[Part, ...]) -> str:
    """Return the one statement that writes a batch made of these parts.

    Its first parameters are the partition, its new sequence number and the batch's clock; behind them come the columns
    of the parts, in order.
    """
    numbers = count(4)
    steps = [f"part_{n} AS ({part.text.format(rows=_rows(part.columns, numbers))})" for n, part in enumerate(parts)]
    batch = "batch (partition, sequence, now) AS (VALUES ($1::smallint, $2::bigint, $3::timestamptz))"
    return f"""
        WITH {", ".join([batch, *steps])}
        UPDATE partition SET sequence = batch.sequence FROM batch WHERE partition.id = batch.partition
    """


def _rows(columns: Columns, numbers: Iterator[int]) -> str:
    arrays = ", ".join(f"${next(numbers)}::{kind}[]" for _, kind in columns)
    return f"unnest({arrays}) AS rows ({', '.join(names(columns))})"
