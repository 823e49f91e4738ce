"""Object detection and instance segmentation with a pretrained backbone.

The detector is Mask R-CNN with the heads of torchvision or detectron2.

Legend: B batch, S pixels per side of the padded square, K classes, n objects of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from mae_transfer.adapters import ADAPTERS, AdaptedBackbone
from mae_transfer.adapters.levels import NORMS
from mae_transfer.bounds import BelowOne
from mae_transfer.config import Spec, build, check
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides, size_of
from mae_transfer.core.runs import pasted
from mae_transfer.data import (
    ObjectDataConfig,
    ObjectSource,
    SceneBatch,
    Scenes,
    Unreadable,
    open_objects,
    open_one,
    same_classes,
    scenes,
)
from mae_transfer.data.checks import check_images
from mae_transfer.data.coco import encode_runs
from mae_transfer.draw.detections import DetectionPicture, save_detections
from mae_transfer.engine.dist import on_main
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import Decay, Group, Layers, param_groups, select_exempt
from mae_transfer.engine.state import Precision, autocast
from mae_transfer.interfaces import Found
from mae_transfer.metrics.coco import CocoMetric, Detections, Kind
from mae_transfer.models.mask_rcnn import HeadsConfig, MaskRCNN
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import BackboneConfig, open_backbone
from mae_transfer.tasks.best import Select, Selection, check_selection
from mae_transfer.tasks.config import PicturesRun
from mae_transfer.tasks.detectron2 import Detectron2RCNN
from mae_transfer.tasks.labels import classes_digest, learned
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.sweep import EVALUATION_SEED, unread
from mae_transfer.tasks.transfer import SET_NAMES, Transfer, TransferConfig
from mae_transfer.tasks.workdir import WorkDir

EVALUATED_IN: Precision = "float32"  # as detectron2 evaluates, whatever the precision of training
COARSEST = 32  # stride of the last level but one: sides of batches are multiples of it
DEBUG_ENCODER = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 16, "image_size": 64}


class DetectConfig(TransferConfig):
    """A detection run. An epoch is a pass over the training images that have objects."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
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
                "global_blocks": (1, 3),
                "relative_positions": "decomposed",
                "positions": "learned",
            },
        },
        "adapter.channels?": 32,
        "adapter.fpn?": 32,
        "heads.box_width": 32,
        "heads.roi_batch": 16,
        "schedule.warmup_epochs": 0.5,
        "schedule.milestones?": (),
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "pictures": 1},
    }

    choices: ClassVar = {"adapter": ADAPTERS}

    task: Literal["detect"] = "detect"
    """Which task the file configures."""
    data: ObjectDataConfig = ObjectDataConfig()
    """Images with objects, and how they are resized."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone to transfer. --backbone sets its reference. Its `changes` add windows and relative positions."""
    adapter: Spec = Spec(name="simple_fpn")
    """The feature pyramid: an entry of ADAPTERS with its options."""
    heads: HeadsConfig = HeadsConfig()
    """The detector's heads."""
    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """Library of the heads: "torchvision", configured to equal detectron2's, or "detectron2", if it is installed."""
    decay: Decay = "matrices"
    """Parameters with weight decay: matrices only, as in BEiT and MAE; also biases, as in detectron2's ViTDet-B and -L;
    or every parameter, as in its ViTDet-H."""
    drop_path: BelowOne = 0.0
    """Stochastic depth rate of the backbone's last block."""
    select: Select = "last"
    """The state to report: the last one, or the best one on data.holdout. The best state is saved as
    checkpoints/best.pt; evaluate_epochs sets how often states are compared."""
    protocol: str = "mask_rcnn"
    """Name of the recipe in tables."""
    run: PicturesRun = PicturesRun()
    """Execution options. They change no number."""

    @field_validator("adapter")
    @classmethod
    def _adapter_exists(cls, adapter: Spec) -> Spec:
        return check(ADAPTERS, adapter)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_selection(self.select, self.data.holdout)
        if self.heads.norm is not None and self.heads.norm not in NORMS:
            raise ValueError(f"heads.norm = {self.heads.norm!r}: one of {', '.join(NORMS)}, or None")
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


class Detect(Transfer[DetectConfig]):
    """A detection run."""

    name = "detect"
    train_set: ObjectSource
    val_set: ObjectSource
    metric: CocoMetric
    """Of the validation set, empty."""
    holdout: tuple[ObjectSource, CocoMetric] | None = None
    """To select the best state on."""
    detector: nn.Module
    divisor: int
    """The pyramid takes images whose sides are multiples of it."""

    @property
    def method(self) -> str:
        """The recipe's name in tables."""
        return self.cfg.protocol

    @property
    def evaluated_in(self) -> Precision:
        return EVALUATED_IN

    def open(self) -> None:
        """Open the data and the backbone, build the detector, and look at every image."""
        cfg = self.cfg
        self.train_set, self.val_set, self.metric = open_sets(cfg)
        # a mean over the positive boxes of a micro-batch, in torchvision and detectron2
        self.depends_on_device_batch = ("mask loss",) if cfg.heads.masks else ()
        self.sources = {"train": self.train_set, "val": self.val_set}
        if cfg.data.holdout is not None:
            held = open_one(cfg.data.holdout, cfg.data.root, masks=cfg.heads.masks)
            same_classes(self.train_set.classes, held.classes)
            self.holdout = held, CocoMetric(held.ground_truth(), kinds=cfg.kinds, detections=cfg.heads.detections)
            self.sources = {**self.sources, "holdout": held}
        self.open_weights()
        self.examine()

    def open_for_evaluation(self) -> None:
        """Open validation set and backbone and build the detector."""
        _, self.val_set, self.metric = open_sets(self.cfg, train=False)
        self.sources = {"val": self.val_set}
        self.open_weights()

    def examine(self) -> None:
        """Look at the images of all sets on the first rank; ValueError names what an evaluation could not use."""
        sets: dict[str, Any] = {SET_NAMES[part]: source for part, source in self.sources.items()}
        on_main(self.dist, partial(check_images, sets, skip=self.cfg.data.unreadable().limit))

    def open_weights(self) -> None:
        """Open the backbone and build the detector on it."""
        cfg, classes = self.cfg, len(self.val_set.classes)
        changes = {"image_size": cfg.side, "class_token": False, "final_norm": False, "drop_path": cfg.drop_path}
        self.backbone = open_backbone(cfg.backbone, changes, statistics=cfg.statistics, seed=cfg.seed)
        self.inputs = {"backbone": self.backbone.origin}
        adapter = build(ADAPTERS, cfg.adapter, self.backbone.model.maps())
        pyramid = AdaptedBackbone(self.backbone.model, adapter)
        self.divisor, strides = pyramid.size_divisor, list(adapter.strides.values())
        if cfg.data.square is not None and any(side % self.divisor for side in sides(cfg.data.square)):
            raise ValueError(
                f"data.square = {cfg.data.square} is no multiple of {self.divisor}, which the pyramid needs"
            )
        if cfg.engine == "detectron2":
            self.detector = Detectron2RCNN(pyramid, strides=strides, classes=classes, heads=cfg.heads)
        else:
            norm = NORMS[cfg.heads.norm] if cfg.heads.norm else None
            self.detector = MaskRCNN(
                pyramid, channels=adapter.channels, strides=strides, classes=classes, heads=cfg.heads, norm=norm
            )

    def training_samples(self) -> Scenes:
        """Return augmented scenes."""
        return scenes(self.train_set, self.cfg.data, seed=self.cfg.seed, divisor=self.divisor, training=True)

    def model(self) -> nn.Module:
        """Return the detector."""
        return self.detector

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the parameter groups, with layer-wise decay of the rate if the recipe has it."""
        cfg = self.cfg
        detector: Any = model
        decay = cfg.optim.layer_decay
        layers = Layers(detector.layer_of, detector.encoder.depth, decay) if decay else None
        no_decay = select_exempt(detector, cfg.optim, default=None)
        return param_groups(
            detector, weight_decay=cfg.optim.weight_decay, layers=layers, no_decay=no_decay, decay=cfg.decay
        )

    def loss(self, model: nn.Module, batch: SceneBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the detector's losses."""
        losses: dict[str, Tensor] = model(padded(batch, self.backbone.statistics), batch.sizes, batch.objects)
        return torch.stack(list(losses.values())).sum(), losses if at.logs else {}

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
        """Select the state with the best box AP on the held-out images."""
        return None if self.holdout is None else Selection(f"{HOLDOUT}bbox/AP", self.evaluate_validation)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the figures of the validation set, or, if the best state is kept, of the held-out images.

        The latter are named "holdout/bbox/AP" ...
        """
        if self.holdout is None:
            return self.evaluate_validation(model, step)
        figures = self.figures(model, *self.holdout)
        return {HOLDOUT + name: value for name, value in figures.items() if not math.isnan(value)}

    def evaluate_validation(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the validation set's "bbox/AP", "segm/AP50" ... in [0, 1] that are defined; save the predictions."""
        figures = self.figures(model, self.val_set, self.metric, save=self.folder.predictions)
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def measure(self, model: nn.Module, folder: WorkDir | None) -> dict[str, float]:
        """Return all figures of the validation set, those of single classes too."""
        save = folder.predictions if folder else None
        return self.figures(model, self.val_set, self.metric, save=save, per_class=True)

    def figures(
        self,
        model: nn.Module,
        source: ObjectSource,
        metric: CocoMetric,
        *,
        save: Path | None = None,
        per_class: bool = False,
    ) -> dict[str, float]:
        """Return the COCO figures of what the model finds in a set, and the count of unreadable images.

        If unreadable images are skipped, they are left out with their objects.
        """
        filled, policy = metric.empty(), self.cfg.data.unreadable()
        for batch, found in self.predictions(model, source, policy):
            filled.update([int(source.image_ids[i]) for i in batch.index.tolist()], found)
        filled.leave_out([int(source.image_ids[index]) for index in policy.files])
        left_out = unread(policy, self.dist)
        return filled.compute(save=save, per_class=per_class, group=self.dist.side) | left_out

    def predictions(
        self,
        model: nn.Module,
        source: ObjectSource,
        policy: Unreadable,
        *,
        batch: int | None = None,
        alone: bool = False,
    ) -> Iterator[tuple[SceneBatch, list[Detections]]]:
        """Yield this rank's part of a set with what the model finds in it, in pixels of the stored images."""
        samples = scenes(source, self.cfg.data, seed=EVALUATION_SEED, divisor=self.divisor, training=False)
        for seen in self.sweep(samples, policy, batch=batch, alone=alone):
            with autocast(EVALUATED_IN, self.dist.device):
                found: Sequence[Found] = model(padded(seen, self.backbone.statistics), seen.sizes)
            stored = [source.size(i) for i in seen.index.tolist()]
            yield seen, [in_stored(one, size, into) for one, size, into in zip(found, seen.sizes, stored, strict=True)]

    def pictures(self, model: nn.Module, folder: WorkDir) -> None:
        """Draw the first validation images with their objects and with what is found, one PNG each."""
        count = self.cfg.run.pictures
        if not count:
            return
        with torch.no_grad():
            found = self.predictions(model, self.val_set, self.cfg.data.unreadable(), batch=1, alone=True)
            for number, (batch, detections) in zip(range(count), found, strict=False):
                index = int(batch.index[0])
                there = self.val_set.read(index)
                shown = DetectionPicture(
                    there.image, there.objects, detections[0], Path(self.val_set.where(index)).name
                )
                save_detections(folder.detections / f"{number:04d}.png", shown, self.val_set.classes)

    def title(self) -> str:
        """Return what is trained on what."""
        cfg, backbone = self.cfg, self.backbone
        return (
            f"{self.method} by {cfg.engine} on {backbone.name} (pretraining: {backbone.pretrain}; {cfg.scale} scale), "
            f"{len(self.val_set.classes)} classes, {len(self.train_set)} training and {len(self.val_set)} validation "
            f"images\nnormalised with {backbone.normalization}"
        )

    def described(self) -> dict[str, Any]:
        return super().described() | {"engine": self.cfg.engine}

    def flops(self, model: nn.Module, *, backward: bool) -> None:
        """Return None: the shapes after the proposals depend on the image."""

    def report(self, figures: Mapping[str, float], written: list[Result]) -> str:
        """Return the main numbers in one line, then a line per class."""
        classes = per_class(self.val_set.classes, figures, self.cfg.kinds)
        return f"{self.backbone.name}, {self.method}: {summary(written)}\n{classes}"

    def closing_words(self, written: list[Result]) -> str:
        """Return the main numbers, and where everything is."""
        return f"done: {summary(written)}; in {self.folder.results}, pictures in {self.folder.detections}"


def open_sets(cfg: DetectConfig, *, train: bool = True) -> tuple[ObjectSource, ObjectSource, CocoMetric]:
    """Return the training set, the validation set and an empty metric of the validation set.

    Raises:
        ValueError: a set lacks what a later part of the run needs.
    """
    if train:
        source, val = open_objects(cfg.data, masks=cfg.heads.masks)
    else:
        source = val = open_one(cfg.data.val, cfg.data.root, masks=cfg.heads.masks)
    for name, part in (("train", cfg.data.train), ("val", cfg.data.val)):
        if part.model_dump().get("masks") and not cfg.heads.masks:
            raise ValueError(
                f"data.{name} has masks=True, but heads.masks=False: leave masks=True out, so that both sets have the "
                "same objects"
            )
    if train and cfg.heads.masks and not source.has_masks:  # an evaluation has its ground truth from the file
        raise ValueError(
            f"data.train = {cfg.data.train.model_dump()} has no masks: leave masks=False out, or set heads.masks=False "
            "to train on boxes alone"
        )
    metric = CocoMetric(val.ground_truth(), kinds=cfg.kinds, detections=cfg.heads.detections)
    return source, val, metric


def padded(batch: SceneBatch, statistics: Statistics) -> Tensor:
    """Return the images normalised, (B, 3, H, W), their padding zero: the mean colour, as detectron2 pads."""
    images = normalize(batch.image, statistics)
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


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
        else [encode_runs(runs, stored) for runs in pasted(found.masks[there], boxes[there], stored)]
    )
    return Detections(boxes[there], found.scores[there], found.labels[there], masks)


def summary(written: list[Result]) -> str:
    """Return the main numbers in one line."""
    main = (r for r in written if r.split == "val" and r.metric.endswith(("/AP", "/AP50")))
    return ", ".join(f"{r.metric} {r.value:.2f}%" for r in main)


def per_class(classes: tuple[str, ...], figures: Mapping[str, float], kinds: Sequence[Kind]) -> str:
    """Return a line per class with its AP in percent, "-" where it does not occur."""
    rows = [(name, [figures.get(f"{kind}/AP[{name}]", math.nan) for kind in kinds]) for name in classes]
    shown = [
        (name, ["     -" if math.isnan(value) else f"{100 * value:6.2f}" for value in values]) for name, values in rows
    ]
    return "\n".join(
        "  " + "  ".join(f"{kind} {text}" for kind, text in zip(kinds, texts, strict=True)) + f"  {name}"
        for name, texts in shown
    )
