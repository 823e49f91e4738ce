"""What one published number is, and how a block of a paper's table is written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mae_transfer.suite.published.measured import Elsewhere, How, Measured

MAE = "MAE paper, arXiv 2111.06377"
SIZES = ("ViT-B/16", "ViT-L/16", "ViT-H/14", "ViT-H/14 at 448")
BASE_LARGE = SIZES[:2]

Values = Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Published:
    """One number of a table, by the table's row and column (the names that tables.py gives to results)."""

    table: str
    row: str
    column: str
    value: float
    unit: str
    source: str
    """The document that states it."""
    measured: Measured | Elsewhere
    """What it was measured with."""
    confirmed: bool = True
    """False: quoted, but no document confirms it."""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError(
                f"table {self.table}, {self.row!r}, {self.column!r}: the published number {self.value} has no source; "
                "name the document that states it"
            )

    @property
    def text(self) -> str:
        """The number with the decimals that were printed, "?" behind it where it is not confirmed."""
        return (
            f"{self.value:.10g}"
            + ("" if self.value % 1 or self.unit == "epochs" else ".0")
            + ("" if self.confirmed else " ?")
        )


def block(
    table: str,
    source: str,
    columns: tuple[str, ...],
    rows: Values,
    measured: Measured | Elsewhere | How,
    *,
    unit: str = "%",
    confirmed: bool = True,
) -> Iterator[Published]:
    """Yield the numbers of a block of a table: rows of values under `columns`, None where the paper has none.

    Args:
        measured: what they were measured with, or a function of row and column that says it.
    Raises:
        ValueError: the source is missing.
    """
    for row, values in rows.items():
        for column, value in zip(columns, values, strict=True):
            if value is not None:
                how = measured(row, column) if callable(measured) else measured
                yield Published(table, row, column, value, unit, source, how, confirmed)


def each(table: str, source: str, columns: tuple[str, ...], sizes: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    """Return the first arguments of `block` for every column at every size: "box AP, ViT-B/16", ..."""
    return table, source, tuple(f"{column}, {size}" for column in columns for size in sizes)


def size_of(column: str) -> str:
    """Return the size that a column ends with: "ViT-L/16" of "box AP, ViT-L/16"."""
    return column.rpartition(", ")[2]
