"""Evaluates a trained classifier on ImageNet-A, -R, -Sketch and -C (MAE, appendix B and table 13).

Legend: B images, C classes of the classifier, c classes of a variant (200 of the 1000 in A and R).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from mae_transfer.core.normalize import normalize
from mae_transfer.data import Crops, FolderConfig, Source, evaluation_views
from mae_transfer.engine.dist import read_mean
from mae_transfer.engine.state import autocast
from mae_transfer.metrics.corruption import ALEXNET_ERROR, SEVERITIES, corruption_errors, mean_corruption_error
from mae_transfer.results import Result
from mae_transfer.tasks.classify import ClassifierConfig, Classify, ClassifyConfig
from mae_transfer.tasks.sweep import EVALUATION_SEED, readable, unread
from mae_transfer.tasks.transfer import Trained
from mae_transfer.tasks.workdir import WorkDir

Variant = Literal["imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c"]


class RobustnessConfig(ClassifierConfig):
    """A classifier, and the variants to evaluate it on."""

    task: Literal["robustness"] = "robustness"
    """Which task the file configures."""
    variants: dict[Variant, str | None]
    """Folder of each variant. Variants without a folder are left out."""
    classes: str | None = None
    """A text file with the classifier's class folders (wnids), one per line, in the order of its scores.
    None: the class folders of data.root/train."""


class Part(NamedTuple):
    """One folder of images of a variant."""

    corruption: str  # "" if the variant is one folder
    severity: int
    source: Source
    columns: Tensor  # (c,) int64: the indices of its classes among the classifier's scores


class Robustness(Classify):
    """An evaluation of a trained classifier on the variants."""

    name = "robustness"
    trained_by = ClassifyConfig
    cfg: RobustnessConfig
    variant: Variant
    """The variant that is being evaluated."""

    @property
    def dataset(self) -> str:
        return self.variant

    def described(self) -> dict[str, Any]:
        return {**super().described(), "run": self.backbone.name}

    def open_data(self) -> None:
        """Open the variants' folders; the classes are those of the classifier."""
        cfg = self.cfg
        names = class_names(cfg)
        self.variants = {name: open_variant(name, Path(root), names) for name, root in cfg.variants.items() if root}
        if not self.variants:
            raise ValueError(
                "no variant has a folder: --set \"variants={'imagenet-a':'/data/imagenet-a'}\"; known are "
                + ", ".join(cfg.variants)
            )
        if len(self.protocol.row) > 1:
            raise ValueError(
                f"protocol {self.protocol.title!r} has {len(self.protocol.row)} classifiers, but robustness is "
                "measured for one: give a single rate and pool"
            )
        self.classes, self.splits = len(names), {}

    def measure_trained(self, trained: Trained, work_dir: Path | None, *, start: float) -> list[Result]:
        """Measure and print the numbers of each variant."""
        written: list[Result] = []
        for variant, parts in self.variants.items():
            self.variant = variant
            self.sources = {
                f"{part.corruption}_{part.severity}" if part.corruption else "val": part.source for part in parts
            }
            written += super().measure_trained(trained, work_dir, start=time.perf_counter())
        return written

    def measure(self, model: nn.Module, folder: WorkDir | None) -> dict[str, float]:
        """Return the figures of the variant: "val_top1", or for ImageNet-C the corruption errors and their mean."""
        hidden = not (self.cfg.run.progress and self.dist.is_main)
        shown = track(self.variants[self.variant], description=self.variant, disable=hidden)
        counted = {(part.corruption, part.severity): self.accuracy(model, part) for part in shown}
        missing = {"val_unreadable": sum(missing for _, missing in counted.values())}
        if self.variant != "imagenet-c":
            return {"val_top1": counted["", 0][0], **missing}
        errors = {name: {level: 1 - counted[name, level][0] for level in SEVERITIES} for name in ALEXNET_ERROR}
        each = {f"val_CE_{name}": value for name, value in corruption_errors(errors).items()}
        return {"val_mCE": mean_corruption_error(errors), **each, **missing}

    def reduce(self, measured: Mapping[str, float]) -> dict[str, float]:
        return dict(measured)

    def report(self, figures: Mapping[str, float], written: list[Result]) -> str:
        return "\n".join(f"{one.dataset}: {one.metric} {one.value:.2f}{one.unit}" for one in written)

    def accuracy(self, model: nn.Module, part: Part) -> tuple[float, int]:
        """Return the accuracy on a folder among the folder's own classes, and the number of unreadable images.

        The images of ImageNet-C are already cropped, so they are not resized before the centre crop.
        """
        cfg, dist, policy = self.cfg, self.dist, self.cfg.data.unreadable()
        view = evaluation_views(cfg.data, shorter_side=1.0 if part.corruption else cfg.data.shorter_side)
        columns, right = part.columns.to(dist.device), torch.zeros((), dtype=torch.int64, device=dist.device)
        for batch in self.sweep(Crops(source=part.source, augmentation=view, seed=EVALUATION_SEED), policy):
            with autocast(cfg.precision, dist.device):
                scores = model(normalize(batch.image, self.backbone.statistics))
            right += (scores.view(-1, scores.shape[-1]).index_select(1, columns).argmax(dim=1) == batch.label).sum()
        folder = f"folder {part.corruption}/{part.severity}" if part.corruption else "variant's folder"
        seen = readable(len(part.source), unread(policy, dist), of=folder)
        return read_mean({"right": right}, dist)["right"] * dist.world / seen, len(part.source) - seen


def class_names(cfg: RobustnessConfig) -> list[str]:
    """Return the classifier's class folders in the order of its scores."""
    if cfg.classes is not None:
        path = Path(cfg.classes)
        if not path.is_file():
            raise ValueError(
                f"classes = {cfg.classes!r} does not exist: give a text file with one class folder (wnid) per line"
            )
        return path.read_text(encoding="utf-8-sig").split()
    if cfg.data.root is not None and Path(cfg.data.root).is_file():
        return list(FolderConfig(root=cfg.data.root, split="train").open().classes)
    train = Path(cfg.data.root or "") / "train"
    if cfg.data.root is None or not train.is_dir():
        raise ValueError(
            "the order of the classes is unknown: set data.root to the ImageNet folder, or a pack of it, whose train/ "
            "has a folder per class, or classes to a text file with the class folders (wnids) in sorted order"
        )
    return sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))


def open_variant(variant: Variant, root: Path, names: list[str]) -> list[Part]:
    """Return the folders of a variant: one, or one for each corruption and severity of ImageNet-C."""
    if variant != "imagenet-c":
        return [open_part("", 0, root, names)]
    wanted = [(name, severity, root / name / str(severity)) for name in ALEXNET_ERROR for severity in SEVERITIES]
    missing = [str(path.relative_to(root)) for _, _, path in wanted if not path.is_dir()]
    if missing:
        raise ValueError(
            f"{root} lacks {len(missing)} of the {len(wanted)} folders of ImageNet-C (corruption/severity): add "
            f"{', '.join(missing)}"
        )
    return [open_part(name, severity, path, names) for name, severity, path in wanted]


def open_part(corruption: str, severity: int, path: Path, names: list[str]) -> Part:
    """Open one folder; ValueError if it has a class that the classifier lacks."""
    source = FolderConfig(root=str(path)).open()
    unknown = sorted(set(source.classes) - set(names))
    if unknown:
        raise ValueError(
            f"{path} has class folders that are none of the classifier's {len(names)}: {', '.join(unknown[:5])} "
            f"({len(unknown)} in all)"
        )
    column_of = {name: column for column, name in enumerate(names)}
    return Part(corruption, severity, source, torch.tensor([column_of[name] for name in source.classes]))
