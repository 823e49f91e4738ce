"""What detection and segmentation have in common: their sets, classes, selection of a state, and reports."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from pydantic import model_validator
from torch import nn

from mae_transfer.bounds import Whole
from mae_transfer.data.config import check_same_classes
from mae_transfer.engine.dist import on_main
from mae_transfer.engine.state import RunConfig
from mae_transfer.results import Result
from mae_transfer.tasks.best import Select, Selection
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.transfer import Transfer, TransferConfig, classes_digest
from mae_transfer.tasks.workdir import WorkDir

if TYPE_CHECKING:
    from mae_transfer.data.maps import MapDataConfig
    from mae_transfer.data.objects import ObjectDataConfig

SET_NAMES = {"train": "training", "val": "validation", "holdout": "holdout"}  # parts of a data set in messages


class PicturesRun(RunConfig):
    """Execution options of a run that ends with pictures."""

    pictures: Whole = 8
    """Validation images to draw with ground truth and predictions (--visualize)."""


class DenseConfig(TransferConfig):
    """Options of detection and segmentation."""

    if TYPE_CHECKING:
        data: MapDataConfig | ObjectDataConfig

    select: Select = "last"
    """The state to report: the last one, or the best one on data.holdout. The best state is saved as
    checkpoints/best.pt; evaluate_epochs sets how often states are compared."""
    run: PicturesRun = PicturesRun()
    """Execution options. They change numbers by rounding, or by other random draws of the same kind."""

    @model_validator(mode="after")
    def _can_select(self) -> Self:
        if self.select == "best" and self.data.holdout is None:
            raise ValueError(
                "select='best', but data.holdout names no images to select on: hold out a part of the training images, "
                "e.g. data.train.part=(0.0, 0.95) and data.holdout=dict(the same set, part=(0.95, 1.0)), never the "
                "reported images"
            )
        if self.select == "last" and self.data.holdout is not None:
            raise ValueError(
                "data.holdout is given, but select='last' does not use it: set select='best', or leave data.holdout out"
            )
        return self


C = TypeVar("C", bound=DenseConfig)


class Dense(Transfer[C]):
    """A detection or segmentation run."""

    select_on: ClassVar[str]
    """The figure by which select="best" compares states."""
    train_set: Any
    val_set: Any

    @abstractmethod
    def open_set(self, part: str) -> Any:
        """Open the data set of a part of the config: "train", "val", "holdout"."""

    @abstractmethod
    def open_weights(self) -> None:
        """Open the backbone for the classes of `val_set`; ValueError if it does not fit the config."""

    @abstractmethod
    def check_files(self, sets: dict[str, Any], *, skip: int) -> None:
        """Look at every file of the named sets; ValueError if an evaluation could not use more than `skip` of them."""

    @abstractmethod
    def figures(self, model: nn.Module, part: str, folder: WorkDir | None = None) -> dict[str, float]:
        """Return the figures of a part in [0, 1], those of single classes as "AP[dog]", and "unreadable".

        folder: where predictions are saved.
        """

    @abstractmethod
    def per_class(self, figures: Mapping[str, float]) -> str:
        """Return a line per class."""

    @abstractmethod
    def draw(self, model: nn.Module, folder: WorkDir) -> Iterator[Path]:
        """Draw the validation images with ground truth and prediction, and yield the path of each picture."""

    def open(self) -> None:
        self.open_sets("train", "val", *(["holdout"] if self.cfg.data.holdout is not None else []))
        self.open_weights()
        self.examine()

    def open_for_evaluation(self) -> None:
        self.open_sets("val")
        self.open_weights()

    def open_sets(self, *parts: str) -> None:
        """Open these parts of the data; ValueError if their classes differ."""
        self.sources = {part: self.open_set(part) for part in parts}
        self.train_set, self.val_set = self.sources.get("train"), self.sources["val"]
        for part in parts[1:]:
            check_same_classes(self.sources[parts[0]].classes, self.sources[part].classes)

    def examine(self) -> None:
        sets = {SET_NAMES[part]: source for part, source in self.sources.items()}
        on_main(self.dist, partial(self.check_files, sets, skip=self.cfg.data.unreadable().limit))

    def digest(self) -> str:
        return classes_digest(self.train_set.classes)

    def extra(self) -> dict[str, Any]:
        return {"names": list(self.train_set.classes)}

    def check_classes(self, extra: Mapping[str, Any], where: str) -> None:
        # the tensors of as many other classes fit, but every figure would be wrong
        names, classes = extra.get("names"), list(self.val_set.classes)
        if names is not None and names != classes:
            k, (was, now) = next((k, pair) for k, pair in enumerate(zip_longest(names, classes)) if pair[0] != pair[1])
            raise ValueError(
                f"{where} learned {len(names)} classes, the data have {len(classes)}; class {k} was {was!r} and is "
                f"{now!r}: use the classes that it learned"
            )

    def selection(self) -> Selection | None:
        return Selection(HOLDOUT + self.select_on, self.evaluate_validation) if "holdout" in self.sources else None

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the figures of the validation set, or of held-out images ("holdout/mIoU") to keep the best state."""
        if "holdout" not in self.sources:
            return self.evaluate_validation(model, step)
        return {HOLDOUT + name: value for name, value in main_figures(self.figures(model, "holdout")).items()}

    def evaluate_validation(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the figures of the validation set."""
        return main_figures(self.figures(model, "val", self.folder))

    def measure(self, model: nn.Module, folder: WorkDir | None) -> dict[str, float]:
        return self.figures(model, "val", folder)

    def pictures(self, model: nn.Module, folder: WorkDir) -> None:
        if count := self.cfg.run.pictures:
            with torch.no_grad():
                list(islice(self.draw(model, folder), count))

    def title(self) -> str:
        backbone = self.backbone
        return (
            f"{self.method} on {backbone.name} (pretraining: {backbone.pretrain}; {self.cfg.scale} scale), "
            f"{len(self.val_set.classes)} classes, {len(self.train_set)} training and {len(self.val_set)} validation "
            f"images\nnormalised with {backbone.normalization}"
        )

    def report(self, figures: Mapping[str, float], written: list[Result]) -> str:
        return f"{super().report(figures, written)}\n{self.per_class(figures)}"


def main_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are defined and concern no single class."""
    return {name: value for name, value in figures.items() if "[" not in name and not math.isnan(value)}


def percent(share: float) -> str:
    """Return a share in percent, or "-" if it is not defined, six characters wide."""
    return "     -" if math.isnan(share) else f"{100 * share:6.2f}"
