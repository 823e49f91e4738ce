"""Object detection and instance segmentation with a pretrained backbone.

The detector is Mask R-CNN with the heads of torchvision or detectron2.

Legend: B batch, S pixels per side of the padded square, K classes, n objects of an image.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from mae_transfer.adapters import AdaptedBackbone, AnyAdapter, SimpleFPNConfig
from mae_transfer.adapters.levels import NORMS
from mae_transfer.bounds import BelowOne
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides, size_of
from mae_transfer.core.runs import paste_masks
from mae_transfer.data import Unreadable
from mae_transfer.data.checks import check_images
from mae_transfer.data.coco import ObjectSource, encode_runs
from mae_transfer.data.objects import ObjectDataConfig, SceneBatch, Scenes, build_samples, open_object_set
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import Decay, Group, Layers, param_groups, select_exempt
from mae_transfer.engine.state import Precision, autocast
from mae_transfer.interfaces import Found
from mae_transfer.metrics.coco import CocoMetric, Detections, Kind
from mae_transfer.models.mask_rcnn import Detector, HeadsConfig, MaskRCNN
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import BackboneConfig
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.dense import Dense, DenseConfig, percent
from mae_transfer.tasks.sweep import EVALUATION_SEED, unread
from mae_transfer.tasks.workdir import WorkDir

S = TypeVar("S")
T = TypeVar("T")
EVALUATED_IN: Precision = "float32"  # as detectron2 evaluates, whatever the precision of training
COARSEST = 32  # stride of the last level but one: sides of batches are multiples of it
DEBUG_ENCODER = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 16, "image_size": 64}


class DetectConfig(DenseConfig):
    """A detection run. An epoch is a pass over the training images that have objects."""

    debug: ClassVar[dict[str, Any]] = {
        **TrainConfig.debug,
        "data.train": {"name": "shapes", "length": 8, "size": 64},
        "data.val": {"name": "shapes", "length": 2, "size": 64, "seed": 1},
        "data.holdout?": {"name": "shapes", "length": 2, "size": 64, "seed": 2},
        "data.augmentation": {"name": "large_scale_jitter", "size": 64},
        "data.view": {"name": "shortest_edge", "lengths": (64,), "longest": 64, "flip": 0.0},
        "data.square": 64,
        "backbone": {
            "encoder": DEBUG_ENCODER,
            "changes": {
                "windows": 3,
                "global_blocks": (1,),  # fits a backbone of two blocks
                "relative_positions": "decomposed",
                "positions": "learned",
            },
        },
        "adapter.channels?": 32,
        "adapter.fpn?": 32,
        "heads.box_width": 32,
        "heads.roi_batch": 16,
        "schedule.milestones?": (),
        "run": {**TrainConfig.debug["run"], "pictures": 1},
    }

    task: Literal["detect"] = "detect"
    """Which task the file configures."""
    data: ObjectDataConfig = ObjectDataConfig()
    """Images with objects, and how they are resized."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone to transfer. --backbone sets its reference. Its `changes` add windows and relative positions."""
    adapter: AnyAdapter = SimpleFPNConfig()
    """The feature pyramid."""
    heads: HeadsConfig = HeadsConfig()
    """The detector's heads."""
    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """Library of the heads: "torchvision", configured to equal detectron2's, or "detectron2", if it is installed."""
    decay: Decay = "matrices"
    """Parameters with weight decay: matrices only, as in BEiT and MAE; also biases, as in detectron2's ViTDet-B and -L;
    or every parameter, as in its ViTDet-H."""
    drop_path: BelowOne = 0.0
    """Stochastic depth rate of the backbone's last block."""
    protocol: str = "mask_rcnn"
    """Name of the recipe in tables."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads.norm is not None and self.heads.norm not in NORMS:
            raise ValueError(f"heads.norm = {self.heads.norm!r}: one of {', '.join(NORMS)}, or None")
        return self

    @model_validator(mode="after")
    def _device_batch_changes_nothing(self) -> Self:
        if self.run.device_batch == "auto" and self.heads.masks:
            raise ValueError(
                "run.device_batch='auto': the mask loss is a mean over the objects of a device batch, so the result "
                "would depend on this machine's memory: set run.device_batch to a number, or heads.masks=False"
            )
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is evaluated: boxes, and masks where there is a mask head."""
        return ("bbox", "segm") if self.heads.masks else ("bbox",)

    @property
    def side(self) -> int | tuple[int, int]:
        """Pixels that the backbone's tables are made for: one side, or height and width.

        It is the square, or the longest sides of the training images.
        """
        longest = self.data.augmentation.largest()
        return self.data.square or size_of(*(-(-side // COARSEST) * COARSEST for side in longest))


class Detect(Dense[DetectConfig]):
    """A detection run."""

    name = "detect"
    select_on = "bbox/AP"
    metrics: dict[str, CocoMetric]
    """Empty metrics of the evaluation sets."""
    detector: Detector
    divisor: int
    """The pyramid takes images whose sides are multiples of it."""

    def __init__(self, cfg: DetectConfig, dist: Dist) -> None:
        if cfg.run.compile is None and cfg.data.square is None:  # torch compiles windows of many sizes for minutes
            cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"compile": False})})
        super().__init__(cfg, dist)

    @property
    def method(self) -> str:
        return self.cfg.protocol

    @property
    def evaluated_in(self) -> Precision:
        return EVALUATED_IN

    def open_set(self, part: str) -> ObjectSource:
        """Open the data set of a part; ValueError if it lacks what a later part of the run needs."""
        data, masks = self.cfg.data, self.cfg.heads.masks
        config = getattr(data, part)
        if config.model_dump().get("masks") and not masks:
            raise ValueError(
                f"data.{part} has masks=True, but heads.masks=False: leave masks=True out, so that all sets have the "
                "same objects"
            )
        source = open_object_set(config, data.root, masks=masks)
        if part == "train" and masks and not source.has_masks:  # an evaluation has its ground truth from the file
            raise ValueError(
                f"data.train = {config.model_dump()} has no masks: leave masks=False out, or set heads.masks=False to "
                "train on boxes alone"
            )
        return source

    def open_sets(self, *parts: str) -> None:
        super().open_sets(*parts)
        kinds, most = self.cfg.kinds, self.cfg.heads.detections
        self.metrics = {
            part: CocoMetric(source.ground_truth(), kinds=kinds, detections=most)
            for part, source in self.sources.items()
            if part != "train"
        }

    def check_files(self, sets: dict[str, Any], *, skip: int) -> None:
        check_images(sets, skip=skip)

    def open_weights(self) -> None:
        cfg, classes = self.cfg, len(self.val_set.classes)
        self.load_backbone(
            {"image_size": cfg.side, "class_token": False, "final_norm": False, "drop_path": cfg.drop_path}
        )
        # a mean over the positive boxes of a micro-batch, in torchvision and detectron2
        self.depends_on_device_batch = ("mask loss",) if cfg.heads.masks else ()
        adapter = cfg.adapter.build(self.backbone.model.maps())
        pyramid = AdaptedBackbone(self.backbone.model, adapter)
        self.divisor, strides = pyramid.size_divisor, list(adapter.strides.values())
        if cfg.data.square is not None and any(side % self.divisor for side in sides(cfg.data.square)):
            raise ValueError(
                f"data.square = {cfg.data.square} is no multiple of {self.divisor}, which the pyramid needs"
            )
        if cfg.engine == "detectron2":
            from mae_transfer.tasks.detectron2 import Detectron2RCNN

            self.detector = Detectron2RCNN(pyramid, strides=strides, classes=classes, heads=cfg.heads)
        else:
            norm = NORMS[cfg.heads.norm] if cfg.heads.norm else None
            self.detector = MaskRCNN(
                pyramid, channels=adapter.channels, strides=strides, classes=classes, heads=cfg.heads, norm=norm
            )

    def training_samples(self) -> Scenes:
        return build_samples(self.train_set, self.cfg.data, seed=self.cfg.seed, divisor=self.divisor, training=True)

    def model(self) -> nn.Module:
        return self.detector

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the parameter groups, with layer-wise decay of the rate if the recipe has it."""
        optim, detector = self.cfg.optim, self.detector
        layers = Layers(detector.layer_of, detector.encoder.depth, optim.layer_decay) if optim.layer_decay else None
        no_decay = select_exempt(detector, optim, default=None)
        return param_groups(
            detector, weight_decay=optim.weight_decay, layers=layers, no_decay=no_decay, decay=self.cfg.decay
        )

    def loss(self, model: nn.Module, batch: SceneBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        losses: dict[str, Tensor] = model(padded(batch, self.backbone.statistics), batch.sizes, batch.objects)
        return torch.stack(list(losses.values())).sum(), losses if at.logs else {}

    def figures(self, model: nn.Module, part: str, folder: WorkDir | None = None) -> dict[str, float]:
        """Return "bbox/AP", "segm/AP50", "bbox/AP[dog]" ... of what the model finds in a part of the data.

        If unreadable images are skipped, they are left out with their objects.
        """
        metric, policy, source = self.metrics[part].empty(), self.cfg.data.unreadable(), self.sources[part]
        found = self.predictions(model, source, policy)
        for indices, detections in beside(partial(encoded, source), found):
            metric.update([int(source.image_ids[i]) for i in indices], detections)
        metric.leave_out([int(source.image_ids[index]) for index in policy.files])
        left_out = unread(policy, self.dist)
        save = folder.predictions if folder else None
        return metric.compute(save=save, per_class=True, group=self.dist.side) | left_out

    def predictions(
        self,
        model: nn.Module,
        source: ObjectSource,
        policy: Unreadable,
        *,
        batch: int | None = None,
        alone: bool = False,
    ) -> Iterator[tuple[SceneBatch, Sequence[Found]]]:
        """Yield this rank's part of a set with what the model finds in it, in pixels of the batch."""
        samples = build_samples(source, self.cfg.data, seed=EVALUATION_SEED, divisor=self.divisor, training=False)
        for seen in self.sweep(samples, policy, batch=batch, alone=alone):
            with autocast(EVALUATED_IN, self.dist.device):
                found: Sequence[Found] = model(padded(seen, self.backbone.statistics), seen.sizes)
            yield seen, found

    def draw(self, model: nn.Module, folder: WorkDir) -> Iterator[Path]:
        from mae_transfer.draw.detections import DetectionPicture, save_detections

        found = self.predictions(model, self.val_set, self.cfg.data.unreadable(), batch=1, alone=True)
        for number, ((index,), (detections,)) in enumerate(map(partial(encoded, self.val_set), found)):
            path = folder.detections / f"{number:04d}.png"
            there = self.val_set.read(index)
            shown = DetectionPicture(there.image, there.objects, detections, Path(self.val_set.where(index)).name)
            save_detections(path, shown, self.val_set.classes)
            yield path

    def title(self) -> str:
        return super().title().replace(" on ", f" by {self.cfg.engine} on ", 1)

    def described(self) -> dict[str, Any]:
        return super().described() | {"engine": self.cfg.engine}

    def flops(self, model: nn.Module, *, backward: bool) -> None:
        """Return None: the shapes after the proposals depend on the image."""

    def per_class(self, figures: Mapping[str, float]) -> str:
        """Return a line per class with its AP in percent, "-" where it does not occur."""
        shown = {
            name: [f"{kind} {percent(figures.get(f'{kind}/AP[{name}]', math.nan))}" for kind in self.cfg.kinds]
            for name in self.val_set.classes
        }
        return "\n".join("  " + "  ".join([*values, name]) for name, values in shown.items())

    def summary(self, written: list[Result]) -> str:
        main = (r for r in written if r.split == "val" and r.metric.endswith(("/AP", "/AP50")))
        return ", ".join(f"{r.metric} {r.value:.2f}%" for r in main)

    def closing_words(self, written: list[Result]) -> str:
        return f"{super().closing_words(written)}, pictures in {self.folder.detections}"


def padded(batch: SceneBatch, statistics: Statistics) -> Tensor:
    """Return the images normalised, (B, 3, H, W), their padding zero: the mean colour, as detectron2 pads."""
    images = normalize(batch.image, statistics)
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


def beside(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield the work on each item, in order. A thread does it while the caller makes the next item."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def encoded(source: ObjectSource, one: tuple[SceneBatch, Sequence[Found]]) -> tuple[list[int], list[Detections]]:
    """Return the indices of a batch's images and what was found in each, in pixels of the stored image."""
    batch, found = one
    indices: list[int] = batch.index.tolist()
    stored = map(source.size, indices)
    return indices, [in_stored(one, size, into) for one, size, into in zip(found, batch.sizes, stored, strict=True)]


def in_stored(found: Found, size: tuple[int, int], stored: tuple[int, int]) -> Detections:
    """Return the predictions for an image, resized to `size`, in pixels of the `stored` image, on the CPU.

    Sizes are (height, width). Masks are pasted into the stored image.
    """
    found = found.to(torch.device("cpu"))
    scale = torch.tensor([stored[1] / size[1], stored[0] / size[0]]).repeat(2)
    boxes = clip_boxes_to_image(found.boxes * scale, stored)
    there = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    masks = (
        None
        if found.masks is None
        else [encode_runs(runs, stored) for runs in paste_masks(found.masks[there], boxes[there], stored)]
    )
    return Detections(boxes[there], found.scores[there], found.labels[there], masks)
