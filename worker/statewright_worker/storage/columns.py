"""Columns: how they are named, selected, and read together from several tables by one statement."""

from collections.abc import Sequence
from typing import NamedTuple

Columns = tuple[tuple[str, str], ...]
"""Column names with the PostgreSQL type of each."""


def names(columns: Columns) -> list[str]:
    """Return the names of the columns."""
    return [name for name, _ in columns]


def selected(alias: str, columns: Columns, prefix: str = "") -> str:
    """Return what selects the columns, each under its name behind the prefix."""
    # JSON comes as text: it is decoded once, straight into what it stands for.
    return ", ".join(
        f'{alias}."{name}"{"::text" if kind == "jsonb" else ""} AS "{prefix}{name}"' for name, kind in columns
    )


class Source(NamedTuple):
    """Some of the rows that a statement reads: the name that its rows bear, its columns, and the query for them."""

    name: str
    columns: Columns
    query: str


def read_together(sources: Sequence[Source]) -> str:
    """Return the one statement that reads all sources, in order; the column `source` says of a row whose it is."""
    every: Columns = tuple(dict.fromkeys(column for source in sources for column in source.columns))
    queries = ", ".join(f"{source.name} AS ({source.query})" for source in sources)
    return f"WITH {queries} {' UNION ALL '.join(_all_columns(source, every) for source in sources)}"


def _all_columns(source: Source, every: Columns) -> str:
    """Select the columns that the source has, and nothing in place of what only others have."""
    columns = [
        f"{source.name}.{name}"
        if (name, kind) in source.columns
        else f"NULL::{'text' if kind == 'jsonb' else kind} AS {name}"
        for name, kind in every
    ]
    return f"SELECT '{source.name}' AS source, {', '.join(columns)} FROM {source.name}"
