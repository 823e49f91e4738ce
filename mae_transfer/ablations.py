"""Ablations (configs/ablations): rows of overrides on one base config, at the paper's scale and at a laptop's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from mae_transfer.config import Schema, read, validate

Overrides = dict[str, Any]  # dotted key -> value


class Scale(Schema):
    """The base config and overrides of one scale."""

    base: str
    """A pretraining config, relative to the grid's own file."""
    overrides: Overrides = Field(default_factory=dict)
    """Overrides of the base config, for every row."""
    rows: dict[str, Overrides] = Field(default_factory=dict)
    """Overrides of single rows, applied after the row's own. Example: a narrower decoder for a smaller model."""


class Ablation(Schema):
    """One table or figure of the paper as a grid of pretraining runs."""

    title: str
    """Its name in the paper, for example "table 1a"."""
    rows: dict[str, Overrides]
    """Overrides of each row. The keys are the paper's names of the rows."""
    paper: Scale
    """The paper's scale."""
    mini: Scale
    """A laptop's scale, which runs every step. Its numbers are not comparable with the paper's."""

    @model_validator(mode="after")
    def _rows_exist(self) -> Self:
        unknown = sorted({*self.paper.rows, *self.mini.rows} - set(self.rows))
        if unknown:
            raise ValueError(f"paper.rows or mini.rows has unknown rows {unknown}; the rows are {list(self.rows)}")
        return self


class AblationRun(NamedTuple):
    """One run of a grid."""

    row: str
    config: Path  # the base config
    changes: Overrides  # overrides of it

    @property
    def folder(self) -> str:
        """The folder name of the row."""
        return slug(self.row)


def slug(name: str) -> str:
    """Return the folder name for a name; ValueError if it has no letter or digit."""
    folder = re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_.")
    if not folder:
        raise ValueError(f"{name!r} cannot name a folder: give it a letter from a to z or a digit")
    return folder


def is_grid(path: Path) -> bool:
    """Return whether a config file is a grid. A suite also has rows, but has transfers as well."""
    values = read(path)
    return "rows" in values and "transfer" not in values


def points(path: Path, scale: Literal["paper", "mini"], row: str = "all") -> list[AblationRun]:
    """Return the runs of the grid at `path`, for one row or for all; ValueError if there is no such row."""
    grid = validate(read(path), Ablation, where=str(path))
    if row != "all" and row not in grid.rows:
        raise ValueError(f"{path} ({grid.title}) has no row {row!r}: name one of {list(grid.rows)}, or all")
    chosen: Scale = getattr(grid, scale)
    names = list(grid.rows) if row == "all" else [row]
    base = path.parent / chosen.base
    return [
        AblationRun(name, base, {**chosen.overrides, **grid.rows[name], **chosen.rows.get(name, {})}) for name in names
    ]
