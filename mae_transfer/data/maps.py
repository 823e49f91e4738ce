"""Input of segmentation models: batches of training crops, and the views of one image for evaluation.

A callable transforms each image (mmseg's transforms, adapters/mmseg_transforms.py). The loader handles keys, seeding
and resume.

Legend: B batch, S x T pixels (height and width) of a crop, H x W pixels of an image, h x w of one of its views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from mae_transfer.bounds import Factor, Pixels, Portion, Probability, Sides
from mae_transfer.core.patches import sides
from mae_transfer.data.ade import AdeConfig, MappedImage, MapSource
from mae_transfer.data.config import BaseDataConfig, check_holdout, check_not_empty
from mae_transfer.data.dense_shapes import ShapesMapsConfig
from mae_transfer.data.loader import Samples
from mae_transfer.interfaces import IGNORED, Tensors

AnyMaps = Annotated[AdeConfig | ShapesMapsConfig, Field(discriminator="name")]


@dataclass(frozen=True)
class MapBatch(Tensors):
    """Training crops with their maps, padded at the right and bottom."""

    image: Tensor  # (B, 3, S, T) uint8 RGB, not normalised; 0 outside the crop
    labels: Tensor  # (B, S, T) uint8: class, or IGNORED in void and outside the crop
    extent: Tensor  # (B, 2) int64: height and width of the crop; S and T if the image is large enough
    index: Tensor  # (B,) int64, ids of the samples


@dataclass(frozen=True)
class ScaledViews(Tensors):
    """One image resized to each evaluation scale, and its stored map."""

    images: tuple[Tensor, ...]  # (1, 3, h, w) uint8 RGB each
    original: Tensor  # (1, 3, H, W) uint8 RGB
    labels: Tensor  # (1, H, W) uint8
    index: Tensor  # (1,) int64


@dataclass(frozen=True, kw_only=True)
class MapCrops(Samples[MappedImage, MappedImage]):
    """Training crops of at most `size` pixels (one side, or height and width), drawn by `transform`."""

    source: MapSource
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # image (3, H, W), labels (H, W) -> the same, cropped
    size: int | tuple[int, int]

    def draw(self, sample: MappedImage, rng: np.random.Generator) -> MappedImage:
        """Return the crop. The transform draws from the global generators, which are seeded by the sample's key."""
        return MappedImage(*self.transform(sample.image, sample.labels))

    def collate(self, drawn: list[MappedImage], images: Tensor) -> MapBatch:
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
class MapViews(Samples[MappedImage, ScaledViews]):
    """Single images for evaluation, each in the sizes that `transform` returns."""

    source: MapSource
    transform: Callable[[Tensor], tuple[Tensor, ...]]

    def draw(self, sample: MappedImage, rng: np.random.Generator) -> ScaledViews:
        """Return the image's views. Nothing is random."""
        return ScaledViews(
            tuple(view[None] for view in self.transform(sample.image)),
            sample.image[None],
            sample.labels[None],
            torch.empty(0),
        )

    def collate(self, drawn: list[ScaledViews], images: Tensor) -> ScaledViews:
        """Return the one image."""
        (only,) = drawn
        return replace(only, index=images)


def inside(extent: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return which pixels of a batch are image and not padding, (B, 1, S, T) bool, for extents (B, 2)."""
    high, wide = (torch.arange(side, device=extent.device) for side in sides(size))
    rows, columns = high < extent[:, :1], wide < extent[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


class MapsConfig(BaseDataConfig):
    """Which images with class maps to use."""

    train: AnyMaps = AdeConfig(split="training")
    """The training set."""
    val: AnyMaps = AdeConfig(split="validation")
    """The same for validation."""


class MapDataConfig(MapsConfig):
    """How to crop images with class maps."""

    holdout: AnyMaps | None = None
    """The same for the images on which select="best" chooses the state: a part of the training set, or another set."""
    size: Sides = 512
    """Size of training crops and of sliding windows: pixels per side, or (height, width)."""
    scale: tuple[Pixels, Pixels] = (2048, 512)
    """Maximum longer and shorter side in pixels. Images are resized to fit, with their aspect ratio kept, in training
    and evaluation."""
    ratios: tuple[Factor, Factor] = (0.5, 2.0)
    """Smallest and largest random factor of `scale` in training."""
    largest_share: Portion = 0.75
    """Largest share of a crop's labelled pixels that one class may have (mmseg's cat_max_ratio). Up to ten crops are
    tried. 1.0: no limit."""
    flip: Probability = 0.5
    """Probability of flipping a training crop horizontally."""
    distort: bool = True
    """Whether to change brightness, contrast, saturation and hue of training crops (mmseg's PhotoMetricDistortion)."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        check_holdout(self.holdout, {"train": self.train, "val": self.val})
        if self.scale[0] < self.scale[1] or self.ratios[0] > self.ratios[1]:
            raise ValueError(
                f"scale {self.scale}, ratios {self.ratios}: give the longer side before the shorter one, and the "
                "smallest factor first"
            )
        return self


class ResizedMapsConfig(MapsConfig):
    """To what size to resize images with class maps."""

    size: Sides = 512
    """Size that every image is resized to, whatever its aspect ratio: pixels per side, or (height, width). A multiple
    of the backbone's patch."""


def open_map_set(part: AnyMaps, root: str | None) -> MapSource:
    """Return one set. `root` is its default folder. ValueError if it is empty."""
    return check_not_empty(part.completed({"root": root}).open(), part)
