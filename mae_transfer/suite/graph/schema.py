"""Schema of a suite's config (configs/suites): pretrainings, transfers and seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mae_transfer.ablations import Overrides
from mae_transfer.bounds import Count, NonNegative, Positive, Seed
from mae_transfer.config import Schema, nearest
from mae_transfer.suite.expect import Expectation
from mae_transfer.suite.published import PUBLISHED
from mae_transfer.suite.store.records import About
from mae_transfer.suite.tables.layouts import LAYOUTS

OTHER_IMAGES = {"name", "split", "seed", "root", "annotations", "images", "maps"}
"""Options of data.val that select other images. "first", for example, selects a subset of the same images."""


class Resources(Schema):
    """What one run needs. The shape that is asked for on the command line is the upper bound."""

    gpus: Count | None = None
    """Most GPUs per node; None: as many as are asked for, one for a run that does not train."""
    nodes: Count | None = None
    """Most nodes; None: as many as are asked for, one for a run that does not train."""
    cpus: Count | None = None
    """CPU cores per GPU; None: one per loader worker and two more."""
    memory: Positive | None = None
    """Main memory per GPU in GiB; None: 8, and 2 more per loader worker."""
    device: str | None = None
    """The device that `hours` are of; None: that of the suite."""


class SuiteStep(Resources):
    """One run, or one run per seed."""

    set: Overrides = Field(default={})
    """Overrides of the config. "@name" stands for the output of the tokenizer, basis or pretraining of that name."""
    data: str | None = None
    """Name of its image folder in `roots`; None: the config names the images, or none are needed."""
    hours: NonNegative | None = None
    """Estimated device hours of one run, shown by --dry-run."""
    gib: NonNegative | None = None
    """Estimated disk space of one run in GiB, shown by --dry-run."""


class SuiteRow(SuiteStep):
    """A row of the tables: a backbone that is pretrained here, released or randomly initialised."""

    config: str | None = None
    """A pretraining config, relative to the suite's file; None: nothing is pretrained for this row."""
    backbone: str | None = None
    """Released weights (PREFIX:PATH). Without `config` and `backbone`, transfers start from random weights."""
    row: str | None = None
    """Row of the tables, if several sizes share one ("MAE"); None: its own name."""
    fresh: Overrides = Field(default={})
    """Overrides of every transfer of this row.

    Example: {"backbone.encoder": {...}} for random weights; mean and std for weights with other statistics.
    """
    fresh_in: dict[str, Overrides] = Field(default={})
    """Overrides of single transfers of this row, by name of the transfer."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.config is not None and self.backbone is not None:
            raise ValueError(
                f"config = {self.config!r} and backbone = {self.backbone!r}: a row has only one of them; remove one"
            )
        return self


class Preparation(SuiteStep):
    """A tokenizer or basis that a target needs before pretraining."""

    config: str
    """A tokenizer or pretraining config, relative to the suite's file."""
    kind: Literal["dvae", "pca"]
    """dvae: a tokenizer, from a tokenizer config; pca: a basis of principal components, from a pretraining config."""


class Search(Schema):
    """A search over a grid of values, for each row.

    Every combination is run with the first seed and judged on images held out of the training set. All seeds use the
    best one.
    """

    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    """Values to try, by dotted key; every combination is one run."""
    set: Overrides = Field(default={})
    """Overrides of the runs of the search only: the held-out images and, for example, fewer epochs.

    Hold out images with data.holdout_fraction, or with data.train.part and other images as data.val.
    """
    hours: NonNegative | None = None
    """Estimated device hours of one run of the search; None: those of the transfer."""
    metric: str = "top1"
    """The metric that is compared; higher is better."""
    split: str = "holdout"
    """The split on which the metric is measured, never the reported images.

    "val" is allowed only if `set` replaces data.val by other images, as detection and segmentation need.
    """

    @model_validator(mode="after")
    def _honest(self) -> Self:
        changed = {key.removeprefix("data.val.") for key in self.set if key.startswith("data.val.")} | set(
            self.set.get("data.val", {})
        )
        if self.split == "val" and not changed & OTHER_IMAGES:
            raise ValueError(
                "sweep.split = 'val' selects on the reported images, which biases the result: hold out part of the "
                "training images, or replace data.val by other images in sweep.set"
            )
        return self


class SuiteTransfer(SuiteStep):
    """A transfer that is run for every row."""

    config: str
    """A config of the tool, relative to the suite's file."""
    tool: Literal["cls_train", "det_train", "seg_train"]
    """The script in tools/ that runs it."""
    rows: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Rows that it is run for; None: all."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Seeds that it is run with; None: those of the suite."""
    sweep: Search | None = None
    """Search for some values first, for each row."""


class SuiteAblation(Resources):
    """Uses the rows of an ablation (configs/ablations) as rows of the suite."""

    file: str
    """The file of the ablation, relative to the suite's file."""
    scale: Literal["paper", "mini"]
    """The scale of the ablation that is run."""
    set: dict[str, Overrides] = Field(default={})
    """Overrides of single rows, for example {"PCA": {"target.basis": "@basis"}}."""
    data: str | None = None
    """Name of the image folder in `roots`; None: the config names the images."""
    hours: NonNegative | dict[str, NonNegative] | None = None
    """Estimated device hours of one pretraining, for all rows or by row."""
    gib: NonNegative | None = None
    """Estimated disk space of one pretraining in GiB."""


class SuiteConfig(Schema):
    """Config of a suite: rows (pretrainings or backbones), transfers and seeds."""

    title: str
    """Title of the report."""
    tables: tuple[str, ...]
    """The tables and figures that it fills, by their names in tools/tables.py."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Every transfer is run with each of these seeds."""
    pretrain_seeds: Literal["first", "each"] = "first"
    """first: one pretraining for all seeds of the transfers; each: one pretraining per seed."""
    device: str = "GPU at 100 TFLOP/s"
    """The device that the estimated hours are of. Hours of different devices are never added."""
    roots: dict[str, str] = Field(default={})
    """Folders of the data sets, by name; --root NAME=PATH replaces one."""
    prepare: dict[str, Preparation] = Field(default={})
    """Tokenizers and bases, by name."""
    rows: dict[str, SuiteRow] = Field(default={})
    """The rows of the tables, by name."""
    grid: SuiteAblation | None = None
    """An ablation whose rows are added to `rows`."""
    transfer: dict[str, SuiteTransfer] = Field(min_length=1)
    """The transfers that are run for each row, by name."""
    chance: dict[str, NonNegative] = Field(default={})
    """Score of guessing, by column of the summary."""
    expect: tuple[Expectation, ...] = ()
    """What the results must show: if they do not, tools/reproduce.py exits with 1. Claims are judged and reported."""
    order: Literal["stages", "rows"] = "stages"
    """stages: all pretrainings run before the first transfer. rows: each of `rows` runs to its end before the next."""

    def about(self) -> About:
        """Return what the tables need to know about the suite."""
        rows = tuple(dict.fromkeys(source.row or name for name, source in self.rows.items()))
        claims = tuple(one for one in self.expect if one.claim)
        return About(tables=self.tables, rows=rows, chance=self.chance, claims=claims, seeds=self.seeds)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        unknown = sorted(set(self.tables) - set(LAYOUTS))
        if unknown:
            raise ValueError(f"tables has unknown names {unknown}; the tables are {list(LAYOUTS)}")
        for row, source in self.rows.items():
            for title in source.fresh_in:
                if title not in self.transfer:
                    raise ValueError(
                        f"row {row!r}: fresh_in has unknown transfer {title!r}; {nearest(title, self.transfer)}"
                    )
        for one in self.expect:
            for row in filter(None, (one.row, one.above)):
                if row not in self.rows and self.grid is None:
                    raise ValueError(f"expect: the suite has no row {row!r}; {nearest(row, self.rows)}")
            if one.table not in LAYOUTS:
                raise ValueError(f"expect: no table {one.table!r}; {nearest(one.table, LAYOUTS)}")
            known = {(number.table, number.row, number.column) for number in PUBLISHED}
            if unpublished := [place for place in one.published if place not in known]:
                raise ValueError(f"expect: no published number has (table, row, column) = {unpublished[0]}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: name each seed once")
        return self
