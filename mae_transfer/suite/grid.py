"""An ablation: rows of overrides on one base config, at the paper's scale and at one that a laptop can do (configs/ablations)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from mae_transfer.config import Schema, read, validate

Overrides = dict[str, Any]  # dotted key -> value


class Scale(Schema):
    """What the rows are laid over."""

    base: str
    """A pretraining config, relative to the grid's own file."""
    overrides: Overrides = Field(default_factory=dict)
    """Laid over the base for every row."""
    rows: dict[str, Overrides] = Field(default_factory=dict)
    """Laid over single rows, after the row's own (a decoder width that a smaller model takes instead)."""


class Grid(Schema):
    """One table or figure of the paper as a grid of pretraining runs."""

    title: str
    """Which one: "table 1a"."""
    rows: dict[str, Overrides]
    """The rows by the paper's names."""
    paper: Scale
    """The paper's scale."""
    mini: Scale
    """A laptop's scale, to see the whole way; its numbers do not compare with the paper's."""

    @model_validator(mode="after")
    def _rows_exist(self) -> Self:
        unknown = sorted({*self.paper.rows, *self.mini.rows} - set(self.rows))
        if unknown:
            raise ValueError(f"there are no rows {unknown}; the rows are {list(self.rows)}")
        return self


class Point(NamedTuple):
    """One run of a grid."""

    row: str
    config: Path  # the base
    changes: Overrides  # laid over it

    @property
    def folder(self) -> str:
        """The row's name as a folder's."""
        return slug(self.row)


def slug(name: str) -> str:
    """Return a name as a folder's; ValueError where nothing of it can be a folder's name."""
    words = re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_.")
    if not words:
        raise ValueError(f"{name!r} cannot name a folder: give it a letter from a to z or a digit")
    return words


def is_grid(path: Path) -> bool:
    """Return whether a config file is a grid: a suite has rows, too, and says what is done with them."""
    values = read(path)
    return "rows" in values and "transfer" not in values


def points(path: Path, scale: Literal["paper", "mini"], row: str = "all") -> list[Point]:
    """Return the runs of the grid at `path`: one row's, or all of them; ValueError for a row that it has not."""
    grid = validate(read(path), Grid, where=str(path))
    if row != "all" and row not in grid.rows:
        raise ValueError(f"{path} ({grid.title}) has no row {row!r}: name one of {list(grid.rows)}, or all")
    chosen: Scale = getattr(grid, scale)
    names = list(grid.rows) if row == "all" else [row]
    base = path.parent / chosen.base
    return [Point(name, base, {**chosen.overrides, **grid.rows[name], **chosen.rows.get(name, {})}) for name in names]
