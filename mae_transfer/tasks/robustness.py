"""Evaluates a trained classifier on ImageNet-A, -R, -Sketch and -C (MAE, appendix B and table 13).

Legend: B images, C classes of the classifier, c classes of a variant (200 of the 1000 in A and R).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from mae_transfer import results
from mae_transfer.config import Schema
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.data import Crops, Folder, Source, evaluation_views
from mae_transfer.engine.dist import Dist, read_mean, session
from mae_transfer.engine.state import autocast
from mae_transfer.metrics.corruption import ALEXNET_ERROR, SEVERITIES, corruption_errors, mean_corruption_error
from mae_transfer.results import Result
from mae_transfer.tasks.classify import Classify, ClassifyConfig
from mae_transfer.tasks.provenance import About
from mae_transfer.tasks.sweep import EVALUATION_SEED, readable, sweep_over, unread
from mae_transfer.tasks.transfer import Trained
from mae_transfer.tasks.workdir import WorkDir

Variant = Literal["imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c"]


class RobustnessConfig(ClassifyConfig):
    """A classifier's config, and the variants to evaluate it on."""

    task: Literal["robustness"] = "robustness"  # type: ignore[assignment]
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
    """An evaluation of a classifier on the variants."""

    name = "robustness"
    trained_by: ClassVar[type[Schema] | None] = ClassifyConfig
    variant: Variant
    """The variant that is being evaluated."""

    def open_data(self) -> None:
        """Open the variants' folders; the classes are those of the classifier."""
        cfg = self.cfg
        assert isinstance(cfg, RobustnessConfig)
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

    def about(self) -> About:
        """Return what the record says of the evaluation of a variant."""
        return super().about()._replace(dataset=self.variant)

    def measure_variant(self, variant: Variant, trained: Trained, work_dir: Path | None) -> list[Result]:
        """Return the numbers of a variant in percent: top-1, or for ImageNet-C the corruption errors and their mean."""
        cfg, parts, start = self.cfg, self.variants[variant], time.perf_counter()
        shown = track(parts, description=variant, disable=not (cfg.run.progress and self.dist.is_main))
        counted = {
            (part.corruption, part.severity): accuracy(cfg, trained.model, self.chosen.statistics, part, self.dist)
            for part in shown
        }
        right = {key: share for key, (share, _) in counted.items()}
        if variant == "imagenet-c":
            errors = {name: {severity: 1 - right[name, severity] for severity in SEVERITIES} for name in ALEXNET_ERROR}
            figures = {"mCE": mean_corruption_error(errors)}
            figures |= {f"CE_{name}": value for name, value in corruption_errors(errors).items()}
        else:
            figures = {"top1": right["", 0]}
        self.variant = variant
        self.sources = {
            f"{part.corruption}_{part.severity}" if part.corruption else "val": part.source for part in parts
        }
        shared = self.evaluation(trained, work_dir, seconds=time.perf_counter() - start)
        own = {
            "run": self.chosen.name,
            "dataset": variant,
            "unreadable": sum(missing for _, missing in counted.values()),
        }
        return [
            Result.model_validate(
                {**shared, **own, "metric": name, "value": 100 * value, "higher_is_better": name == "top1"}
            )
            for name, value in figures.items()
        ]


def evaluate(cfg: RobustnessConfig, reference: str, work_dir: Path | None) -> list[Result]:
    """Evaluate trained weights on the variants; print the numbers, and append them to the work dir's results.

    Args:
        reference: a step_*.pt of this config, or mae-finetuned:PATH.
    Raises:
        ValueError: no variant has a folder; a corruption, a severity or a class is missing or unknown (all are named).
    """
    with session(cfg.run.device, matmul=cfg.matmul, timeout_minutes=cfg.run.timeout_minutes) as dist:
        task = Robustness(Robustness.as_trained(cfg, reference), dist)
        trained = task.load_trained(reference)
        trained.model.to(dist.device).eval()
        written = [number for variant in task.variants for number in task.measure_variant(variant, trained, work_dir)]
        if dist.is_main:
            for number in written:
                print(f"{number.dataset}: {number.metric} {number.value:.2f}{number.unit}", flush=True)
            if work_dir is not None:
                written = results.append(WorkDir(work_dir).results, written)
        return written


def class_names(cfg: RobustnessConfig) -> list[str]:
    """Return the classifier's class folders in the order of its scores."""
    if cfg.classes is not None:
        path = Path(cfg.classes)
        if not path.is_file():
            raise ValueError(
                f"classes = {cfg.classes!r} does not exist: give a text file with one class folder (wnid) per line"
            )
        return path.read_text(encoding="utf-8-sig").split()
    train = Path(cfg.data.root or "") / "train"
    if cfg.data.root is None or not train.is_dir():
        raise ValueError(
            "the order of the classes is unknown: set data.root to the ImageNet folder whose train/ has a folder per "
            "class, or classes to a text file with the class folders (wnids) in sorted order"
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
    source = Folder(root=str(path))
    unknown = sorted(set(source.classes) - set(names))
    if unknown:
        raise ValueError(
            f"{path} has class folders that are none of the classifier's {len(names)}: {', '.join(unknown[:5])} "
            f"({len(unknown)} in all)"
        )
    column_of = {name: column for column, name in enumerate(names)}
    return Part(corruption, severity, source, torch.tensor([column_of[name] for name in source.classes]))


@torch.no_grad()
def accuracy(
    cfg: ClassifyConfig, model: nn.Module, statistics: Statistics, part: Part, dist: Dist
) -> tuple[float, int]:
    """Return the accuracy on a folder among the folder's own classes, and the number of unreadable images.

    The images of ImageNet-C are already cropped, so they are not resized before the centre crop.
    """
    view = evaluation_views(cfg.data, shorter_side=1.0 if part.corruption else cfg.data.shorter_side)
    columns, right = part.columns.to(dist.device), torch.zeros((), dtype=torch.int64, device=dist.device)
    policy = cfg.data.unreadable()
    samples = Crops(source=part.source, augmentation=view, seed=EVALUATION_SEED)
    size, workers = cfg.run.evaluation_batch, cfg.run.workers
    for batch in sweep_over(samples, dist, batch=size, workers=workers, unreadable=policy):
        with autocast(cfg.precision, dist.device):
            scores = model(normalize(batch.image, statistics))
        right += (scores.view(-1, scores.shape[-1]).index_select(1, columns).argmax(dim=1) == batch.label).sum()
    left_out = unread(policy, dist)
    seen = readable(
        len(part.source),
        left_out,
        of=f"folder {part.corruption}/{part.severity}" if part.corruption else "variant's folder",
    )
    return read_mean({"right": right}, dist)["right"] * dist.world / seen, len(part.source) - seen
