"""What a suite's config says: which pretrainings, what is done with each, from which seeds (configs/suites; values only)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mae_transfer.bounds import NonNegative, Seed
from mae_transfer.config import Schema, nearest
from mae_transfer.suite.grid import Overrides
from mae_transfer.suite.layouts import LAYOUTS
from mae_transfer.suite.records import About

OTHER_IMAGES = {"name", "split", "seed", "root", "annotations", "images", "maps"}
"""Options of data.val that say which images; "first", say, takes some of the same."""


class Step(Schema):
    """One run, or one per seed."""

    config: str
    """A config of the tool, relative to the suite's own file."""
    set: Overrides = Field(default={})
    """Laid over it; a string "@name" is what the tokenizer, basis or pretraining of that name leaves."""
    data: str | None = None
    """Which of `roots` its images lie in; None: it needs none, or the config says."""
    hours: NonNegative | None = None
    """Device hours of one run, for --dry-run."""
    gib: NonNegative | None = None
    """Disk that one run takes, for --dry-run."""


class Source(Step):
    """A row of the tables: a backbone that is pretrained here, taken as released, or fresh."""

    config: str | None = None  # type: ignore[assignment]
    """A pretraining config, relative to the suite's file; None: nothing is pretrained."""
    backbone: str | None = None
    """Released weights instead, PREFIX:PATH; with neither the transfers start from `fresh`."""
    row: str | None = None
    """What the tables call it, where several sizes share a row ("MAE"); None: its own name."""
    fresh: Overrides = Field(default={})
    """Laid over every transfer of this row: for a fresh encoder {"backbone.encoder": {...}}, for weights of other statistics mean and std."""
    fresh_in: dict[str, Overrides] = Field(default={})
    """The same for single transfers, by their names."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.config is not None and self.backbone is not None:
            raise ValueError(
                f"config = {self.config!r} and backbone = {self.backbone!r}: a row is pretrained here or released, not both"
            )
        return self


class Preparation(Step):
    """What some targets need before anything is pretrained."""

    kind: Literal["dvae", "pca"]
    """A tokenizer from a tokenizer config, or a basis of principal components from a pretraining config."""


class Sweep(Schema):
    """A grid of values for each row, tried with the first seed and judged on images held out of the training set; the best serves every seed."""

    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    """Dotted key -> values; every combination is a run."""
    set: Overrides = Field(default={})
    """Laid over the points only: the part that is held out (data.holdout_fraction; or data.train.part and other images as data.val), fewer epochs."""
    hours: NonNegative | None = None
    """Device hours of one point; None: those of the transfer."""
    metric: str = "top1"
    """What is judged, the higher the better."""
    split: str = "holdout"
    """Where it is measured; never on what is reported: "val" only where `set` makes that other images, as detection and segmentation need."""

    @model_validator(mode="after")
    def _honest(self) -> Self:
        changed = {key.removeprefix("data.val.") for key in self.set if key.startswith("data.val.")} | set(
            self.set.get("data.val", {})
        )
        if self.split == "val" and not changed & OTHER_IMAGES:
            raise ValueError(
                "sweep.split = 'val': what is selected on the reported images would flatter them; hold a part of the training images out, "
                "or let sweep.set say which other images data.val is"
            )
        return self


class Transfer(Step):
    """What is done with every row."""

    tool: Literal["cls_train", "det_train", "seg_train"]
    """The script of tools/ that does it."""
    rows: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Only these rows; None: all."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Only these seeds; None: the suite's."""
    sweep: Sweep | None = None
    """Choose some values per row first."""


class Grid(Schema):
    """The rows of an ablation (configs/ablations) as sources."""

    file: str
    """The ablation, relative to the suite's file."""
    scale: Literal["paper", "mini"]
    """Which of its scales."""
    set: dict[str, Overrides] = Field(default={})
    """Laid over single rows: {"PCA": {"target.basis": "@basis"}}."""
    data: str | None = None
    """As in a source."""
    hours: NonNegative | dict[str, NonNegative] | None = None
    """As in a source; or by row."""
    gib: NonNegative | None = None
    """As in a source."""


class Expectation(Schema):
    """An ordering, or a least value, that the summary of a suite must show."""

    column: str
    """A column of the summary, "fine-tune" for instance."""
    row: str
    """The row that is expected to be better."""
    above: str | None = None
    """The row that it is compared with; None: `by` is the least value itself."""
    by: NonNegative = 0.0
    """The least difference, in points."""


class SuiteConfig(Schema):
    """A suite."""

    title: str
    """What the report is called."""
    tables: tuple[str, ...]
    """The tables and figures that it is for, by their names in tools/tables.py."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Every transfer is run with each."""
    pretrain_seeds: Literal["first", "each"] = "first"
    """One pretraining serves every seed of the transfers, or each seed has its own."""
    roots: dict[str, str] = Field(default={})
    """Where data sets lie, by name; --root name=path."""
    prepare: dict[str, Preparation] = Field(default={})
    """Tokenizers and bases by name."""
    rows: dict[str, Source] = Field(default={})
    """The rows of the tables by name."""
    grid: Grid | None = None
    """More rows: those of an ablation."""
    transfer: dict[str, Transfer] = Field(min_length=1)
    """What is done with each row, by name."""
    chance: dict[str, NonNegative] = Field(default={})
    """What guessing scores, by column of the summary."""
    expect: tuple[Expectation, ...] = ()
    """What the summary must show; tools/reproduce.py exits with 1 where it does not."""

    def about(self) -> About:
        """Return what the tables need to know of the suite."""
        rows = tuple(dict.fromkeys(source.row or name for name, source in self.rows.items()))
        return About(tables=self.tables, rows=rows, chance=self.chance)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        unknown = sorted(set(self.tables) - set(LAYOUTS))
        if unknown:
            raise ValueError(f"there are no tables {unknown}; there are {list(LAYOUTS)}")
        for row, source in self.rows.items():
            for title in source.fresh_in:
                if title not in self.transfer:
                    raise ValueError(
                        f"row {row!r} has fresh_in for {title!r}, which is none of the transfers; {nearest(title, self.transfer)}"
                    )
        for one in self.expect:
            for row in filter(None, (one.row, one.above)):
                if row not in self.rows and self.grid is None:
                    raise ValueError(f"expect names row {row!r}, which the suite has not; {nearest(row, self.rows)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: each once")
        return self
