"""The records of a benchmark as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

Records = list[dict[str, Any]]


def table(records: Records, *, title: str) -> Table:
    """Return the records as a table with one column per key; lists become ranges."""
    columns = list(dict.fromkeys(key for record in records for key in record if not key.endswith("_rounds")))
    view = Table(*(column.replace("_", " ") for column in columns), title=title)
    for record in records:
        view.add_row(*(show(record.get(column)) for column in columns))
    return view


def show(value: Any) -> str:
    """Return a value as the text of a cell."""
    if isinstance(value, dict):
        return "  ".join(f"{key} {show(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "..".join(map(show, value))
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
