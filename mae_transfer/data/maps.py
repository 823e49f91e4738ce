"""Images with class maps on their way into a segmentation model: batches of training crops, and the views of one image that an evaluation sees.

What is done to an image is a callable (mmseg's transforms, adapters/mmseg_transforms.py); keys, seeding and resume are the loader's.

Legend: B batch, S x T pixels (height and width) of a crop, H x W pixels of an image, h x w of one of its views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from mae_transfer.bounds import Factor, Pixels, Portion, Probability, Sides
from mae_transfer.config import Spec, check
from mae_transfer.core.patches import sides
from mae_transfer.data.ade import Ade, Mapped, MapSource
from mae_transfer.data.dense_shapes import ShapesMaps
from mae_transfer.data.loader import Samples
from mae_transfer.data.places import Places, apart, opened, rooted, same_classes
from mae_transfer.interfaces import IGNORED

MAP_SETS: Mapping[str, Callable[..., MapSource]] = {"ade": Ade, "shapes": ShapesMaps}


class MapBatch(NamedTuple):
    """Training crops with their maps, at the top left of their places."""

    image: Tensor  # (B, 3, S, T) uint8 RGB, not normalised; 0 outside the crop
    labels: Tensor  # (B, S, T) uint8: class, or IGNORED in void and outside the crop
    extent: Tensor  # (B, 2) int64: height and width of the crop, S and T where the image was large enough
    index: Tensor  # type: ignore[assignment]  # (B,) int64, ids of the samples (shadows tuple.index, unused here)


class Scales(NamedTuple):
    """One image in the sizes that an evaluation sees it in, and its map as it is stored."""

    images: tuple[Tensor, ...]  # (1, 3, h, w) uint8 RGB each
    original: Tensor  # (1, 3, H, W) uint8 RGB
    labels: Tensor  # (1, H, W) uint8
    index: Tensor  # type: ignore[assignment]  # (1,) int64


@dataclass(frozen=True, kw_only=True)
class MapCrops(Samples[Mapped, Mapped]):
    """Training crops of at most `size` pixels (one side, or height and width), which `transform` draws."""

    source: MapSource
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # image (3, H, W), labels (H, W) -> those of the crop
    size: int | tuple[int, int]

    def draw(self, sample: Mapped, rng: np.random.Generator) -> Mapped:
        """Return the crop; the transform draws from the global generators, which are seeded by the sample's key."""
        return Mapped(*self.transform(sample.image, sample.labels))

    def collate(self, drawn: list[Mapped], images: Tensor) -> MapBatch:
        """Return the crops as a MapBatch."""
        extent = torch.tensor([crop.labels.shape for crop in drawn])
        high, wide = sides(self.size)
        margins = [(0, wide - width, 0, high - height) for height, width in extent.tolist()]
        image = torch.stack([F.pad(crop.image, margin) for crop, margin in zip(drawn, margins, strict=True)])
        labels = torch.stack(
            [F.pad(crop.labels, margin, value=IGNORED) for crop, margin in zip(drawn, margins, strict=True)]
        )
        return MapBatch(image, labels, extent, images)


@dataclass(frozen=True, kw_only=True)
class MapViews(Samples[Mapped, Scales]):
    """Images for an evaluation, one by one, in the sizes that `transform` gives them."""

    source: MapSource
    transform: Callable[[Tensor], tuple[Tensor, ...]]

    def draw(self, sample: Mapped, rng: np.random.Generator) -> Scales:
        """Return the image's views; nothing is drawn at random."""
        return Scales(
            tuple(view[None] for view in self.transform(sample.image)),
            sample.image[None],
            sample.labels[None],
            torch.empty(0),
        )

    def collate(self, drawn: list[Scales], images: Tensor) -> Scales:
        """Return the one image."""
        (only,) = drawn
        return only._replace(index=images)


def inside(extent: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return where a batch of crops of `size` pixels holds image and not margin, (B, 1, S, T) bool, for extents (B, 2)."""
    high, wide = (torch.arange(side, device=extent.device) for side in sides(size))
    rows, columns = high < extent[:, :1], wide < extent[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


class MapDataConfig(Places):
    """Images with class maps, and how they are cut."""

    choices: ClassVar = {"train": MAP_SETS, "val": MAP_SETS, "holdout": MAP_SETS}

    train: Spec = Spec.model_validate({"name": "ade", "split": "training"})
    """An entry of MAP_SETS with its options."""
    val: Spec = Spec.model_validate({"name": "ade", "split": "validation"})
    """The same for validation."""
    holdout: Spec | None = None
    """The same for the images that select="best" chooses the state on: a part of the training set, or another one."""
    size: Sides = 512
    """Pixels per side, or (height, width), of training crops and of sliding windows."""
    scale: tuple[Pixels, Pixels] = (2048, 512)
    """Longer and shorter side in pixels that an image is fitted into, its ratio kept, in training and evaluation."""
    ratios: tuple[Factor, Factor] = (0.5, 2.0)
    """Least and largest factor of `scale` in training."""
    largest_share: Portion = 0.75
    """Portion of a crop's labelled pixels that one class may have (mmseg's cat_max_ratio): ten crops are tried; 1.0: any."""
    flip: Probability = 0.5
    """Probability that a training crop is mirrored."""
    distort: bool = True
    """Whether brightness, contrast, saturation and hue of training crops are changed (mmseg's PhotoMetricDistortion)."""

    @property
    def name(self) -> str:
        """What tables call the data set."""
        return self.named(self.train)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        apart(self.holdout, {"train": self.train, "val": self.val})
        for spec in filter(None, (self.train, self.val, self.holdout)):
            check(MAP_SETS, rooted(MAP_SETS, spec, self.root or "unset"))
        if self.scale[0] < self.scale[1] or self.ratios[0] > self.ratios[1]:
            raise ValueError(
                f"scale {self.scale}, ratios {self.ratios}: give the longer side before the shorter one, and the least factor first"
            )
        return self


def open_maps(cfg: MapDataConfig) -> tuple[MapSource, MapSource]:
    """Return the training and the validation set; ValueError where one is empty or they have different classes."""
    train, val = (open_map_set(spec, cfg.root) for spec in (cfg.train, cfg.val))
    same_classes(train.classes, val.classes)
    return train, val


def open_map_set(spec: Spec, root: str | None) -> MapSource:
    """Return one set, whose folder is `root` where it needs one and names none; ValueError where it is empty."""
    return opened(MAP_SETS, spec, root)
