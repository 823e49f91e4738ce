"""Semantic segmentation with a pretrained backbone: UperNet of mmsegmentation, or a linear head.

Training uses mmsegmentation's pipeline and this package's loop. tasks/segment_protocols.py has the heads.

Legend: B batch, S pixels per side of a crop, C classes, H x W pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import gt
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer.adapters.mmseg import Segmenter, accuracy
from mae_transfer.adapters.mmseg_transforms import Rescale, TrainingCrop
from mae_transfer.config import load_saved
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides, size_of
from mae_transfer.data import Unreadable
from mae_transfer.data.ade import MapSource
from mae_transfer.data.checks import check_maps
from mae_transfer.data.maps import MapBatch, MapCrops, MapDataConfig, MapViews, ScaledViews, inside, open_map_set
from mae_transfer.engine.dist import Dist, unwrap_model
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import Group
from mae_transfer.engine.state import LoopConfig, autocast
from mae_transfer.metrics.iou import IouMetric
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import DEBUG_ENCODER, BackboneConfig
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.dense import SET_NAMES, Dense, DenseConfig, main_figures, percent
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.segment_inference import PUBLISHED_SCALES, InferenceConfig, Windows, probabilities
from mae_transfer.tasks.segment_protocols import AnySegmentProtocol, SegmentProtocol, UperNet
from mae_transfer.tasks.sweep import EVALUATION_SEED, unread
from mae_transfer.tasks.workdir import WorkDir, run_of

NUMBERS = ("mIoU", "mAcc", "aAcc")
MULTI_SCALE: dict[str, Any] = {
    "inference.scales": PUBLISHED_SCALES,
    "inference.flip": True,
}  # what --multi-scale stands for


class SegmentConfig(DenseConfig):
    """A segmentation run. An epoch is a pass over the training images with one crop of each."""

    debug: ClassVar[dict[str, Any]] = {
        **TrainConfig.debug,
        "data.train": {"name": "shapes", "length": 8, "size": 48},
        "data.val": {"name": "shapes", "length": 2, "size": 48, "seed": 1},
        "data.size": 32,
        "data.scale": (96, 48),
        "backbone": {"encoder": DEBUG_ENCODER},
        "data.holdout?": {"name": "shapes", "length": 2, "size": 48, "seed": 2},
        "protocol.taps?": None,
        "protocol.channels?": None,
        "inference.stride?": None,
        "run": {**TrainConfig.debug["run"], "pictures": 1},
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

    @model_validator(mode="after")
    def _fits(self) -> Self:
        stride = self.inference.stride
        if self.inference.mode == "slide" and stride is not None and any(map(gt, sides(stride), sides(self.data.size))):
            raise ValueError(
                f"inference.stride={stride} is larger than data.size={self.data.size}, so windows would miss pixels: "
                "set a stride of at most data.size"
            )
        return self


class Segment(Dense[SegmentConfig]):
    """A segmentation run."""

    name = "segment"
    select_on = "mIoU"

    def __init__(self, cfg: SegmentConfig, dist: Dist) -> None:
        super().__init__(cfg, dist)
        self.protocol: SegmentProtocol = cfg.protocol

    @property
    def method(self) -> str:
        return self.protocol.title

    def open_set(self, part: str) -> MapSource:
        return open_map_set(getattr(self.cfg.data, part), self.cfg.data.root)

    def check_files(self, sets: dict[str, Any], *, skip: int) -> None:
        check_maps(sets, skip=skip)

    def open_weights(self) -> None:
        cfg = self.cfg
        self.load_backbone({"image_size": cfg.data.size, **self.protocol.changes()})
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
            lines = load_saved(own, SegmentConfig).differences(cfg)
            if different := [line for line in lines if line.startswith("protocol.")]:
                raise ValueError(
                    f"{root} trained another model than this config's; give its own config, {own}:\n  "
                    + "\n  ".join(different)
                )
        return super().as_trained(cfg, reference)

    def training_samples(self) -> MapCrops:
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
        self.check_micro_batch(loop, self.protocol.least, of="heads")

    def model(self) -> Segmenter:
        return self.protocol.model(self.backbone.model, len(self.val_set.classes))

    def groups(self, model: Any) -> list[Group]:
        return self.protocol.groups(model, self.cfg.optim)

    def loss(self, model: nn.Module, batch: MapBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        return segmenter_loss(model, batch, at, statistics=self.backbone.statistics)

    def evaluate_validation(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc of the validation set; the state keeps the figures of the classes."""
        self.state.extra["classes"] = self.figures(model, "val")
        return main_figures(self.state.extra["classes"])

    def figures(self, model: nn.Module, part: str, folder: WorkDir | None = None) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc of a part, and IoU[name] and Acc[name]; ValueError if no pixel has a class."""
        metric = IouMetric(self.sources[part].classes, device=self.dist.device)
        policy = self.cfg.data.unreadable()
        segmenter: Any = unwrap_model(model)
        for batch in self.views(self.sources[part], policy):
            metric.update(predict(self.cfg, segmenter, batch, self.backbone.statistics), batch.labels)
        return compute_iou(metric, of=SET_NAMES[part]) | unread(policy, self.dist)

    def views(self, source: MapSource, policy: Unreadable, *, alone: bool = False) -> Iterator[ScaledViews]:
        """Yield this rank's part of a set on the device, image by image."""
        cfg, several = self.cfg, len(self.cfg.inference.scales) > 1
        transform = Rescale(scale=cfg.data.scale, ratios=cfg.inference.scales, least=cfg.data.size if several else 0)
        samples = MapViews(source=source, seed=EVALUATION_SEED, transform=transform)
        return self.sweep(samples, policy, batch=1, alone=alone)

    def draw(self, model: nn.Module, folder: WorkDir) -> Iterator[Path]:
        segmenter: Any = unwrap_model(model)
        for number, batch in enumerate(self.views(self.val_set, self.cfg.data.unreadable(), alone=True)):
            predicted = predict(self.cfg, segmenter, batch, self.backbone.statistics)
            path = folder.segmentations / f"{number:04d}.png"
            draw_segmentation(path, self.val_set, batch, predicted)
            yield path

    def final_figures(self) -> dict[str, float]:
        held = {name: value for name, value in self.state.metrics.items() if name.startswith(HOLDOUT)}
        figures: dict[str, float] = self.state.extra["classes"]
        return figures | held

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        """Return mIoU, mAcc and aAcc, in percent; "mIoU/ms" if several scales or mirror images were averaged."""
        suffix = "/ms" if len(self.cfg.inference.scales) > 1 or self.cfg.inference.flip else ""
        renamed = {name + suffix if name.endswith(NUMBERS) else name: value for name, value in figures.items()}
        return super().results(renamed, shared)

    def per_class(self, figures: Mapping[str, float]) -> str:
        return class_lines(figures, self.val_set.classes)

    def summary(self, written: list[Result]) -> str:
        return ", ".join(f"{r.metric} {r.value:.2f}%" for r in written if r.split == "val")

    def closing_words(self, written: list[Result]) -> str:
        classes = self.per_class(self.final_figures())
        return f"{classes}\n{super().closing_words(written)}, pictures in {self.folder.segmentations}"


def compute_iou(metric: IouMetric, *, of: str) -> dict[str, float]:
    """Return mIoU, mAcc and aAcc, and IoU[name] and Acc[name]; ValueError if no pixel of the set has a class."""
    figures = metric.compute(per_class=True)
    if math.isnan(figures["mIoU"]):
        raise ValueError(
            f"no pixel of the {of} set has a class: its maps are void everywhere (tools/prepare_data.py check names "
            "them)"
        )
    return figures


def class_lines(figures: Mapping[str, float], classes: Sequence[str]) -> str:
    """Return a line per class with IoU and accuracy in percent, "-" where it neither occurs nor is found."""
    return "\n".join(
        f"  IoU {percent(figures[f'IoU[{name}]'])}  Acc {percent(figures[f'Acc[{name}]'])}  {name}" for name in classes
    )


def draw_segmentation(path: Path, source: MapSource, batch: ScaledViews, predicted: Tensor) -> None:
    """Draw an image of a set with its true map and the predicted one, (1, H, W)."""
    from mae_transfer.draw.segmentations import SegmentationPicture, save_segmentation

    image, truth, found = (part[0].cpu() for part in (batch.original, batch.labels, predicted))
    name = Path(source.where(int(batch.index[0]))).name
    save_segmentation(path, SegmentationPicture(image, truth, found, name), source.classes)


def segmenter_loss(
    model: nn.Module, batch: MapBatch, at: Step, *, statistics: Statistics
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of the heads' weighted losses; at log steps also the decode head's accuracy."""
    segmenter: Any = unwrap_model(model)
    # the margin of a small image is zero after normalisation, as in mmseg
    height, width = batch.image.shape[-2:]
    images = normalize(batch.image, statistics) * inside(batch.extent, (height, width))
    logits = model(images)
    losses = segmenter.losses(logits, batch.labels)
    total = torch.stack(list(losses.values())).sum()
    named = {f"{name}_loss": loss for name, loss in losses.items()}
    return total, {**named, "accuracy": accuracy(logits[0].detach(), batch.labels)} if at.logs else {}


def predict(cfg: SegmentConfig, model: Segmenter, batch: ScaledViews, statistics: Statistics) -> Tensor:
    """Return the class of each pixel of an image, (1, H, W)."""
    inference, size = cfg.inference, cfg.data.size
    slide = inference.mode == "slide"
    stride = inference.stride or size_of(*(side * 2 // 3 for side in sides(size)))
    how = Windows(size if slide else None, stride, model.pyramid.size_divisor, cfg.run.evaluation_batch)
    with autocast(cfg.precision, batch.labels.device):
        normalized = [normalize(image, statistics) for image in batch.images]
        height, width = batch.labels.shape[-2:]
        return probabilities(model, normalized, (height, width), how, flip=inference.flip).argmax(dim=1)
