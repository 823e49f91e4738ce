"""Semantic segmentation with a pretrained backbone: UperNet of mmsegmentation, or a linear head.

Training uses mmsegmentation's pipeline and this suite's loop. tasks/segment_protocols.py has the heads.

Legend: B batch, S pixels per side of a crop, C classes, H x W pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from operator import gt
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer.adapters.mmseg import Segmenter, accuracy
from mae_transfer.adapters.mmseg_transforms import Rescale, TrainingCrop
from mae_transfer.config import load
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides, size_of
from mae_transfer.data import Unreadable, same_classes
from mae_transfer.data.ade import MapSource
from mae_transfer.data.checks import check_maps
from mae_transfer.data.maps import MapBatch, MapCrops, MapDataConfig, MapViews, Scales, inside, open_map_set, open_maps
from mae_transfer.draw.segmentations import SegmentationPicture, save_segmentation
from mae_transfer.engine.dist import Dist, on_main, unwrap_model
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import Group
from mae_transfer.engine.state import LoopConfig, autocast
from mae_transfer.metrics.iou import IouMetric
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import DEBUG_ENCODER, BackboneConfig, open_backbone
from mae_transfer.tasks.best import Select, Selection, check_selection
from mae_transfer.tasks.config import PicturesRun
from mae_transfer.tasks.labels import classes_digest, learned
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.segment_inference import PUBLISHED_SCALES, InferenceConfig, Windows, probabilities
from mae_transfer.tasks.segment_protocols import AnySegmentProtocol, SegmentProtocol, UperNet
from mae_transfer.tasks.sweep import EVALUATION_SEED, unread
from mae_transfer.tasks.transfer import SET_NAMES, Transfer, TransferConfig
from mae_transfer.tasks.workdir import WorkDir, run_of

NUMBERS = ("mIoU", "mAcc", "aAcc")
MULTI_SCALE: dict[str, Any] = {
    "inference.scales": PUBLISHED_SCALES,
    "inference.flip": True,
}  # what --multi-scale stands for


class SegmentConfig(TransferConfig):
    """A segmentation run. An epoch is a pass over the training images with one crop of each."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 8, "size": 48},
        "data.val": {"name": "shapes", "length": 2, "size": 48, "seed": 1},
        "data.size": 32,
        "data.scale": (96, 48),
        "backbone": {"encoder": DEBUG_ENCODER},
        "data.holdout?": {"name": "shapes", "length": 2, "size": 48, "seed": 2},
        "protocol.taps?": None,
        "protocol.channels?": None,
        "inference.stride?": None,
        "schedule.warmup_epochs": 0.5,
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "pictures": 1},
    }

    task: Literal["segment"] = "segment"
    """Which task the file configures."""
    data: MapDataConfig = MapDataConfig()
    """Images with class maps, and their augmentation."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone to transfer. --backbone sets its reference."""
    protocol: AnySegmentProtocol = UperNet()
    """What is trained on the backbone, and how."""
    inference: InferenceConfig = InferenceConfig()
    """How images are segmented in evaluation."""
    select: Select = "last"
    """The state to report: the last one, or the best one on data.holdout. The best state is saved as
    checkpoints/best.pt; evaluate_epochs sets how often states are compared."""
    run: PicturesRun = PicturesRun()
    """Execution options. They change no number."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_selection(self.select, self.data.holdout)
        stride = self.inference.stride
        if self.inference.mode == "slide" and stride is not None and any(map(gt, sides(stride), sides(self.data.size))):
            raise ValueError(
                f"inference.stride={stride} is larger than data.size={self.data.size}, so windows would miss pixels: "
                "set a stride of at most data.size"
            )
        return self


class Segment(Transfer[SegmentConfig]):
    """A segmentation run."""

    name = "segment"
    train_set: MapSource
    val_set: MapSource
    holdout: MapSource | None = None
    """To select the best state on."""

    def __init__(self, cfg: SegmentConfig, dist: Dist) -> None:
        super().__init__(cfg, dist)
        self.protocol: SegmentProtocol = cfg.protocol

    @property
    def method(self) -> str:
        """The protocol."""
        return self.protocol.title

    def open(self) -> None:
        """Open the backbone and the data, and look at every map."""
        data = self.cfg.data
        self.open_weights()
        self.train_set, self.val_set = open_maps(data)
        self.sources = {"train": self.train_set, "val": self.val_set}
        if data.holdout is not None:
            self.holdout = open_map_set(data.holdout, data.root)
            same_classes(self.train_set.classes, self.holdout.classes)
            self.sources = {**self.sources, "holdout": self.holdout}
        self.examine()

    def open_for_evaluation(self) -> None:
        """Open backbone and validation set."""
        self.open_weights()
        self.val_set = open_map_set(self.cfg.data.val, self.cfg.data.root)
        self.sources = {"val": self.val_set}

    def examine(self) -> None:
        """Look at the maps of all sets on the first rank; ValueError names what an evaluation could not use."""
        sets: dict[str, Any] = {SET_NAMES[part]: source for part, source in self.sources.items()}
        on_main(self.dist, partial(check_maps, sets, skip=self.cfg.data.unreadable().limit))

    def open_weights(self) -> None:
        """Open the backbone; ValueError if it does not fit the protocol."""
        cfg = self.cfg
        changes = {"image_size": cfg.data.size, **self.protocol.changes()}
        self.backbone = open_backbone(cfg.backbone, changes, statistics=cfg.statistics, seed=cfg.seed)
        self.inputs = {"backbone": self.backbone.origin}
        fixed = any(getattr(module, "strict_img_size", False) for module in self.backbone.model.modules())
        if cfg.inference.mode == "whole" and fixed:  # timm's ViT, Swin
            raise ValueError(
                f"{self.backbone.name} takes images of {cfg.data.size} pixels only: inference.mode='slide'"
            )

    @classmethod
    def as_trained(cls, cfg: SegmentConfig, reference: str) -> SegmentConfig:
        """Return the config with backbone and statistics of the run that a training state belongs to.

        Raises:
            ValueError: the run had another head. Options that change no shape, taps for instance, would go unnoticed.
        """
        root = run_of(reference)
        if root is not None:
            own = WorkDir(root).config
            lines = load(own, SegmentConfig).differences(cfg)
            if different := [line for line in lines if line.startswith("protocol.")]:
                raise ValueError(
                    f"{root} trained another model than this config's; give its own config, {own}:\n  "
                    + "\n  ".join(different)
                )
        return super().as_trained(cfg, reference)

    def training_samples(self) -> MapCrops:
        """Return random crops."""
        data = self.cfg.data
        transform = TrainingCrop(
            scale=data.scale,
            ratios=data.ratios,
            size=data.size,
            largest_share=data.largest_share,
            flip=data.flip,
            distort=data.distort,
        )
        return MapCrops(source=self.train_set, seed=self.cfg.seed, transform=transform, size=data.size)

    def prepare(self, loop: LoopConfig) -> None:
        """Raise ValueError if a micro-batch is too small for the heads' batch norms."""
        micro, least = self.cfg.batch // (self.dist.world * loop.accumulate), self.protocol.least
        if micro < least and not self.dist.sync_bn:
            raise ValueError(
                f"crops per device and forward pass: {micro}, but the heads' batch norms need {least}: raise "
                "run.device_batch, or batch"
            )

    def model(self) -> nn.Module:
        """Return the protocol's model around the backbone."""
        return self.protocol.model(self.backbone.model, len(self.val_set.classes))

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the protocol's parameter groups."""
        assert isinstance(model, Segmenter)
        return self.protocol.groups(model, self.cfg.optim)

    def loss(self, model: nn.Module, batch: MapBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the heads' weighted losses."""
        return segmenter_loss(model, batch, at, statistics=self.backbone.statistics)

    def digest(self) -> str:
        """Return the digest of the classes."""
        return classes_digest(self.train_set.classes)

    def extra(self) -> dict[str, Any]:
        """Return the names of the classes."""
        return {"names": list(self.train_set.classes)}

    def check_classes(self, extra: Mapping[str, Any], where: str) -> None:
        """Raise ValueError if a training state learned other classes."""
        learned(extra, self.val_set.classes, where=where)

    def selection(self) -> Selection | None:
        """Select the state with the best mIoU on the held-out images."""
        return None if self.holdout is None else Selection(f"{HOLDOUT}mIoU", self.evaluate_validation)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the figures of the validation set, or of held-out images ("holdout/mIoU") to keep the best state."""
        if self.holdout is None:
            return self.evaluate_validation(model, step)
        figures = self.figures(model, self.holdout)
        return {HOLDOUT + name: figures[name] for name in NUMBERS}

    def evaluate_validation(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc of the validation set in [0, 1]; the state keeps the figures of the classes."""
        figures = self.figures(model, self.val_set)
        self.state.extra["classes"] = figures
        return {name: figures[name] for name in (*NUMBERS, "unreadable") if name in figures}

    def measure(self, model: nn.Module, folder: WorkDir | None) -> dict[str, float]:
        """Return all figures of the validation set, those of single classes too."""
        return self.figures(model, self.val_set)

    def figures(self, model: nn.Module, source: MapSource) -> dict[str, float]:
        """Return the figures of a set over all ranks, per class too; ValueError if no pixel of it has a class."""
        metric, policy = IouMetric(source.classes, device=self.dist.device), self.cfg.data.unreadable()
        for batch in self.views(source, policy):
            metric.update(predict(self.cfg, unwrap_model(model), batch, self.backbone.statistics), batch.labels)
        figures = metric.compute(per_class=True)
        if math.isnan(figures["mIoU"]):
            raise ValueError(
                "no pixel of the validation set has a class: its maps are void everywhere (tools/prepare_data.py check "
                "names them)"
            )
        return figures | unread(policy, self.dist)

    def views(self, source: MapSource, policy: Unreadable, *, alone: bool = False) -> Iterator[Scales]:
        """Yield this rank's part of a set on the device, image by image."""
        cfg, several = self.cfg, len(self.cfg.inference.scales) > 1
        transform = Rescale(scale=cfg.data.scale, ratios=cfg.inference.scales, least=cfg.data.size if several else 0)
        samples = MapViews(source=source, seed=EVALUATION_SEED, transform=transform)
        return self.sweep(samples, policy, batch=1, alone=alone)

    def pictures(self, model: nn.Module, folder: WorkDir) -> None:
        """Draw the first validation images with ground truth and prediction, one PNG each."""
        count, statistics = self.cfg.run.pictures, self.backbone.statistics
        if not count:
            return
        with torch.no_grad():
            views = self.views(self.val_set, self.cfg.data.unreadable(), alone=True)
            for number, batch in zip(range(count), views, strict=False):
                predicted = predict(self.cfg, unwrap_model(model), batch, statistics)
                image, truth, found = (part[0].cpu() for part in (batch.original, batch.labels, predicted))
                shown = SegmentationPicture(image, truth, found, Path(self.val_set.where(int(batch.index[0]))).name)
                save_segmentation(folder.segmentations / f"{number:04d}.png", shown, self.val_set.classes)

    def final_figures(self) -> dict[str, float]:
        """Return the figures of the last evaluation or of the best state, per class too."""
        held = {name: value for name, value in self.state.metrics.items() if name.startswith(HOLDOUT)}
        figures: dict[str, float] = self.state.extra["classes"]
        return figures | held

    def title(self) -> str:
        """Return what is trained on what."""
        backbone = self.backbone
        return (
            f"{self.method} on {backbone.name} (pretraining: {backbone.pretrain}; {self.cfg.scale} scale), "
            f"{len(self.val_set.classes)} classes, {len(self.train_set)} training and {len(self.val_set)} validation "
            f"images\nnormalised with {backbone.normalization}"
        )

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        """Return mIoU, mAcc and aAcc, in percent; "mIoU/ms" if several scales or mirror images were averaged."""
        suffix = "/ms" if len(self.cfg.inference.scales) > 1 or self.cfg.inference.flip else ""
        renamed = {name + suffix if name.endswith(NUMBERS) else name: value for name, value in figures.items()}
        return super().results(renamed, shared)

    def report(self, figures: Mapping[str, float], written: list[Result]) -> str:
        """Return the main numbers in one line, then a line per class."""
        return f"{self.backbone.name}, {self.method}: {summary(written)}\n{per_class(self.val_set.classes, figures)}"

    def closing_words(self, written: list[Result]) -> str:
        """Return a line per class, the main numbers, and where everything is."""
        classes, folder = per_class(self.val_set.classes, self.final_figures()), self.folder
        return f"{classes}\ndone: {summary(written)}; in {folder.results}, pictures in {folder.segmentations}"


def segmenter_loss(
    model: nn.Module, batch: MapBatch, at: Step, *, statistics: Statistics
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of the heads' weighted losses; at log steps also the decode head's accuracy."""
    segmenter = unwrap_model(model)
    assert isinstance(segmenter, Segmenter)
    # the margin of a small image is zero after normalisation, as in mmseg
    height, width = batch.image.shape[-2:]
    images = normalize(batch.image, statistics) * inside(batch.extent, (height, width))
    logits = model(images)
    losses = segmenter.losses(logits, batch.labels)
    total = torch.stack(list(losses.values())).sum()
    named = {f"{name}_loss": loss for name, loss in losses.items()}
    return total, {**named, "accuracy": accuracy(logits[0].detach(), batch.labels)} if at.logs else {}


def predict(cfg: SegmentConfig, model: nn.Module, batch: Scales, statistics: Statistics) -> Tensor:
    """Return the class of each pixel of an image, (1, H, W)."""
    assert isinstance(model, Segmenter)
    inference, size = cfg.inference, cfg.data.size
    slide = inference.mode == "slide"
    stride = inference.stride or size_of(*(side * 2 // 3 for side in sides(size)))
    how = Windows(size if slide else None, stride, model.pyramid.size_divisor, cfg.run.evaluation_batch)
    with autocast(cfg.precision, batch.labels.device):
        normalized = [normalize(image, statistics) for image in batch.images]
        height, width = batch.labels.shape[-2:]
        return probabilities(model, normalized, (height, width), how, flip=inference.flip).argmax(dim=1)


def per_class(classes: tuple[str, ...], figures: Mapping[str, float]) -> str:
    """Return a line per class with IoU and accuracy in percent, "-" where it neither occurs nor is found."""
    shown = [
        [f"{100 * figures[f'{what}[{name}]']:6.2f}".replace("   nan", "     -") for what in ("IoU", "Acc")]
        for name in classes
    ]
    return "\n".join(f"  IoU {iou}  Acc {acc}  {name}" for (iou, acc), name in zip(shown, classes, strict=True))


def summary(written: list[Result]) -> str:
    """Return the numbers in one line."""
    return ", ".join(f"{r.metric} {r.value:.2f}%" for r in written if r.split == "val")
