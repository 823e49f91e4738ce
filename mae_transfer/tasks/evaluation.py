"""Evaluations without training: an evaluator judges the features of a frozen backbone.

An evaluator is an object with one method. A training run can call one on its own backbone with `extract`.

Legend: N images, D width.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mae_transfer import results
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.data import Crops, EvalKeys, LabelledDataConfig, Source, Unreadable, evaluation_views, open_labelled
from mae_transfer.engine.dist import Dist, eagerly, read_mean
from mae_transfer.engine.log import Logger
from mae_transfer.engine.state import Precision, autocast
from mae_transfer.interfaces import Backbone, Batch
from mae_transfer.models.attention import set_position_bias
from mae_transfer.models.heads import FrozenPool, pool, taps_of
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import DEBUG_ENCODER, BackboneConfig, LoadedBackbone, open_backbone
from mae_transfer.tasks.config import RunnableConfig
from mae_transfer.tasks.run import HOLDOUT, RecordedRun
from mae_transfer.tasks.sweep import EVALUATION_SEED, gather, unread
from mae_transfer.tasks.workdir import WorkDir, open_work_dir, sole_user, write_config

NO_IMAGE = "no image of a set could be read: check the files under data.root"
AT_ONCE = 32  # images per forward pass that records attention, whose weights are held in memory
CHOSEN = "chosen/"  # prefix of constants that an evaluator has selected: they are logged, but are no results


class LabelledFeatures(NamedTuple):
    """The features of labelled images."""

    features: Tensor  # (N, D) float32, on the device
    labels: Tensor  # (N,) int64


class Evaluator(Protocol):
    """Judges features."""

    def __call__(self, train: LabelledFeatures, val: LabelledFeatures, *, classes: int, dist: Dist) -> dict[str, float]:
        """Return figures in [0, 1] by "PROTOCOL_METRIC": "knn-20_top1". Every rank calls it.

        Figures of held-out training images begin with HOLDOUT, constants that were selected on them with CHOSEN.

        Args:
            train: features of all training images.
            val: features of this rank's part of the validation images (see sweep.sum_of_ranks).
            classes: number of classes; labels are below it.
        """
        ...


class FrozenConfig(RunnableConfig):
    """Options of every evaluation of a frozen backbone."""

    keeps_features: ClassVar[bool] = True
    family: ClassVar[str] = "classify"
    """The task that its results belong to."""

    task: str
    """Which task the file configures."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone to evaluate. --backbone sets its reference."""

    def title(self) -> str:
        """Return the name of the protocol."""
        return self.task


class EvaluationConfig(FrozenConfig):
    """An evaluation on labelled images. Each evaluator adds its own options."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "data.train": {"name": "shapes", "length": 6, "size": 32},
        "data.val": {"name": "shapes", "length": 2, "size": 32, "seed": 1},
        "data.size": 32,
        "backbone": {"encoder": DEBUG_ENCODER},
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    data: LabelledDataConfig = LabelledDataConfig()
    """Images: those of `val` are judged with the help of those of `train`. All are cropped as in evaluation."""
    pool: FrozenPool = "cls"
    """Features of an image, after the final norm: the class token ("cls"), the mean of the patch tokens ("mean"), the
    class tokens of the last 4 blocks ("cls-4"), or both kinds ("cls+mean", "cls-4+mean")."""

    @abstractmethod
    def evaluator(self, train: Source) -> Evaluator:
        """Return the evaluator; ValueError if it cannot work with these training images."""


C = TypeVar("C", bound=FrozenConfig)


class FrozenRun(RecordedRun[C]):
    """An evaluation of a frozen backbone."""

    backbone: LoadedBackbone
    """The backbone, from `open` on."""

    def __init__(self, cfg: C, dist: Dist) -> None:
        super().__init__(cfg, dist)
        self.name = cfg.task
        self.batch = cfg.run.evaluation_batch  # images per forward pass

    @property
    def method(self) -> str:
        return self.cfg.task

    @abstractmethod
    def evaluate(self, log: Logger) -> tuple[dict[str, float], int]:
        """Return the figures, and the number of unreadable images. Every rank calls it."""

    def pictures(self, folder: WorkDir) -> None:
        """Draw pictures (rank 0)."""

    def load_backbone(self, size: int | tuple[int, int]) -> None:
        """Open the backbone for images of this size."""
        cfg = self.cfg
        changes = {"image_size": size}
        self.backbone = open_backbone(cfg.backbone, changes, statistics=cfg.statistics, seed=cfg.seed)
        self.inputs = {"backbone": self.backbone.origin}

    def check_processes(self) -> None:
        """Raise ValueError if a set has no image for one of the processes."""
        if (fewest := min(map(len, self.sources.values()))) < self.dist.world:
            raise ValueError(f"a set has {fewest} images for {self.dist.world} processes: start fewer processes")

    def title(self) -> str:
        backbone, images, judged = self.backbone, len(self.sources["train"]), len(self.sources["val"])
        method = {"knn": "k-NN"}.get(self.method, self.method)
        return (
            f"{method} of {backbone.name} (pretraining: {backbone.pretrain}; {self.cfg.scale} scale), {images} "
            f"training images, {judged} to {self.cfg.family}\nnormalised with {backbone.normalization}"
        )

    def described(self) -> dict[str, Any]:
        return {**self.backbone.described(), "task": self.cfg.family}

    @classmethod
    def launch(cls, cfg: C, work_dir: Path, *, resume: bool = False) -> list[Result]:
        """Evaluate and append the results to those in `work_dir`; return them (rank 0).

        Args:
            resume: has no effect, because there is no state to continue from.
        Raises:
            ValueError: config, data and backbone do not fit together.
        """
        with cls.session(cfg) as dist, torch.no_grad():
            run = cls(cfg, dist)
            run.open()
            return run.run(work_dir)

    def run(self, work_dir: Path) -> list[Result]:
        """Evaluate and write the results."""
        cfg, dist, start = self.cfg, self.dist, time.perf_counter()
        folder = open_work_dir(work_dir, cfg, resume=True)
        model = self.backbone.model.to(dist.device).eval()
        set_position_bias(model, cfg.run.position_bias, device=dist.device, compiled=False)
        keys = [
            EvalKeys(images=len(one), batch=self.batch, rank=dist.rank, world=dist.world)
            for one in self.sources.values()
        ]
        steps = sum(map(len, keys))
        with (
            sole_user(work_dir, dist),
            Logger(work_dir, steps=steps, main=dist.is_main, progress=cfg.run.progress, wandb=cfg.run.wandb) as log,
        ):
            if dist.is_main:
                write_config(folder, cfg)
            log.say(f"{self.title()}\n{self.machine(cfg.precision)}")
            figures, unreadable = self.evaluate(log)
            log.write("eval", steps, figures)
            seconds = time.perf_counter() - start
            shared = self.evaluated(model, work_dir.name, seconds, batch=self.batch)
            if not dist.is_main:
                return []
            written = results.append(folder.results, self.results(figures, shared | {"unreadable": unreadable}))
            shown = ", ".join(
                f"{name} {value:g}" if name.startswith(CHOSEN) else f"{name} {100 * value:.2f}%"
                for name, value in figures.items()
            )
            self.pictures(folder)
            log.say(f"done: {shown}; in {folder.results}")
            return written


class Evaluation(FrozenRun[EvaluationConfig]):
    """An evaluation on labelled images by the evaluator of its config."""

    def open(self) -> None:
        cfg = self.cfg
        split, val = open_labelled(cfg.data)
        self.sources = {"train": split.train, "val": val}
        self.check_processes()
        self.evaluator = cfg.evaluator(split.train)
        self.load_backbone(cfg.data.size)

    def evaluate(self, log: Logger) -> tuple[dict[str, float], int]:
        cfg, dist, ticks, policies = self.cfg, self.dist, count(1), []

        def ticking(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                yield batch
                log.tick(next(ticks))

        view, sets = evaluation_views(cfg.data, shorter_side=cfg.data.shorter_side), []
        for part, source in self.sources.items():
            policies.append(cfg.data.unreadable())
            if cfg.run.features is not None:
                sets.append(self.kept(part, source, policies[-1], tick=lambda: log.tick(next(ticks))))
                continue
            samples = Crops(source=source, augmentation=view, seed=EVALUATION_SEED)
            batches = ticking(self.sweep(samples, policies[-1]))
            one = extract(self.backbone.model, batches, self.backbone.statistics, cfg.pool, cfg.precision)
            sets.append(LabelledFeatures(*(gather(tensor, dist) for tensor in one)) if part == "train" else one)
        figures = self.evaluator(*sets, classes=len(self.sources["val"].classes), dist=dist)
        return figures, round(sum(unread(policy, dist).get("unreadable", 0) for policy in policies))

    def kept(self, part: str, source: Source, policy: Unreadable, *, tick: Callable[[], None]) -> LabelledFeatures:
        """Return the features of a set from the folder run.features, where they are kept for other runs."""
        from mae_transfer.tasks.features import (  # few runs need it
            UNREAD,
            labelled_pass,
            pooled_features,
            select,
            share,
        )

        cfg, data = self.cfg, self.cfg.data
        one = labelled_pass(cfg, data, self.backbone, source, part, self.dist, shorter_side=data.shorter_side)
        rows = pooled_features(one, cfg.pool, unreadable=policy, tick=tick)
        if not (rows["label"] != UNREAD).any():
            raise ValueError(NO_IMAGE)
        if part == "val":
            rows = rows[slice(*share(len(rows), self.dist))]
        read = rows["label"] != UNREAD
        found = (select(rows, cfg.pool, read), rows["label"][read].astype("int64"))
        return LabelledFeatures(*(torch.from_numpy(array).to(self.dist.device) for array in found))

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        written = []
        for name, value in figures.items():
            protocol, _, metric = name.removeprefix(HOLDOUT).rpartition("_")
            own = {"protocol": protocol, "metric": metric, "value": 100 * value}
            if name.startswith(HOLDOUT):
                own["split"] = "holdout"
            if not name.startswith(CHOSEN) and not math.isnan(value):
                written.append(Result.model_validate(shared | own))
        return written


def extract(
    backbone: Backbone, batches: Iterable[Batch], statistics: Statistics, how: FrozenPool, precision: Precision
) -> LabelledFeatures:
    """Return features and labels of this rank's images. Unreadable images are left out.

    Args:
        batches: of one pass over the images, on the device (RecordedRun.sweep).
    Raises:
        ValueError: there is no batch.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    taps = taps_of(backbone, (how,))
    for batch in batches:
        with autocast(precision, batch.image.device):
            features.append(pool(backbone(normalize(batch.image, statistics), taps=taps, norm=True), how))
        labels.append(batch.label)
    if not features:
        raise ValueError(NO_IMAGE)
    return LabelledFeatures(torch.cat(features), torch.cat(labels))


def attention_figures(
    backbone: Backbone, images: Iterable[Tensor], statistics: Statistics, dist: Dist
) -> dict[str, float]:
    """Return the mean entropy of the last block's attention; nothing if it is not among all patches.

    It is computed in float32. Every rank calls it.

    Args:
        images: batches (B, 3, H, W) uint8 of this rank, on the device.
    """
    from mae_transfer.metrics.attention import attention_entropy

    with eagerly(backbone):
        found = [
            attention_entropy(backbone, normalize(part, statistics))
            for batch in images
            for part in batch.split(AT_ONCE)
        ]
    entropies = torch.cat([torch.zeros(0, device=dist.device), *(one for one in found if one is not None)])
    count = torch.tensor(len(entropies), device=dist.device)
    mean = read_mean({"entropy": entropies.sum(), "images": count}, dist)
    return {"statistics_attention": mean["entropy"] / mean["images"]} if mean["images"] else {}
