"""Columns: their names and types, and one statement that reads from several tables."""

from collections.abc import Sequence
from typing import NamedTuple

Columns = tuple[tuple[str, str], ...]
"""Column names with the PostgreSQL type of each."""


def names(columns: Columns) -> list[str]:
    """Return the names of the columns."""
    return [name for name, _ in columns]


def selected(alias: str, columns: Columns, prefix: str = "") -> str:
    """Return the part of a SELECT that reads the columns, each named by the prefix and its own name."""
    # JSON is read as text, so that it is decoded only once, straight into a value.
    return ", ".join(
        f'{alias}."{name}"{"::text" if kind == "jsonb" else ""} AS "{prefix}{name}"' for name, kind in columns
    )


class Source(NamedTuple):
    """Some of the rows that a statement reads: the name that tells them apart, their columns, their query."""

    name: str
    columns: Columns
    query: str


def read_together(sources: Sequence[Source]) -> str:
    """Return the one statement that reads all sources, in order; the column `source` names the source of each row."""
    every: Columns = tuple(dict.fromkeys(column for source in sources for column in source.columns))
    queries = ", ".join(f"{source.name} AS ({source.query})" for source in sources)
    return f"WITH {queries} {' UNION ALL '.join(_all_columns(source, every) for source in sources)}"


def _all_columns(source: Source, every: Columns) -> str:
    """Return the source's query with all columns of the statement; those that only other sources have are NULL."""
    columns = [
        f"{source.name}.{name}"
        if (name, kind) in source.columns
        else f"NULL::{'text' if kind == 'jsonb' else kind} AS {name}"
        for name, kind in every
    ]
    return f"SELECT '{source.name}' AS source, {', '.join(columns)} FROM {source.name}"
