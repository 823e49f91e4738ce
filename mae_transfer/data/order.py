"""The order of samples: a pure function of (seed, step). It needs no stored state, and resume is exact.

A key (epoch, image, repeat) identifies a sample. Each epoch permutes its images, each image gives `crops_per_image`
neighbouring crops, and each global batch is a consecutive slice of the crops. Rank r takes the r-th part of the slice,
and its micro-steps take consecutive parts of that. So order, crops and masks do not depend on the world size or on
gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mae_transfer.seeding import fold


class Key(NamedTuple):
    """One crop of one image. It seeds the random draws of the crop."""

    epoch: int
    image: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence of global batches. The last crops of an epoch are dropped if they do not fill a batch.

    Raises:
        ValueError: an epoch has fewer crops than one batch.
    """

    images: int
    batch: int  # crops of one optimizer step, over all ranks and micro-steps
    seed: int
    crops_per_image: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.crops_per_image < 1:
            raise ValueError(f"batch {self.batch}, crops_per_image {self.crops_per_image}: both must be at least 1")
        if self.steps_per_epoch < 1:
            crops = f"{self.images} images x {self.crops_per_image} crops"
            raise ValueError(
                f"the data set is smaller than one batch: {crops} < batch = {self.batch}; lower batch or add images"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the images."""
        return self.images * self.crops_per_image // self.batch

    def keys(self, step: int) -> list[Key]:
        """Return the keys of global batch `step` (0-based, counted from the start of training)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        crops = np.arange(within * self.batch, (within + 1) * self.batch)
        images = _permutation(self.images, self.seed, epoch)[crops // self.crops_per_image]
        return [
            Key(epoch, *pair) for pair in zip(images.tolist(), (crops % self.crops_per_image).tolist(), strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Share:
    """The endless sequence of one rank's micro-batches from step `start`, as lists of keys for the loader's workers."""

    order: Order
    start: int = 0
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate
        if self.order.batch % (parts * self.order.crops_per_image):
            crops = self.order.crops_per_image
            raise ValueError(
                f"batch = {self.order.batch} cannot be split evenly over {self.world} processes x {self.accumulate} "
                f"micro-steps x {crops} crops per image; make it a multiple of {parts * crops}"
            )

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.order.batch // (self.world * self.accumulate)
        step = self.start
        while True:
            keys = self.order.keys(step)
            for micro in range(self.accumulate):
                first = (self.rank * self.accumulate + micro) * size
                yield keys[first : first + size]
            step += 1


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every image exactly once, in order. Ranks take consecutive shares, and the last batch may be smaller."""

    images: int
    batch: int  # images of one process
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self._starts():
            yield [Key(0, image, 0) for image in range(start, min(start + self.batch, self._starts().stop))]

    def __len__(self) -> int:
        return len(self._starts())

    def _starts(self) -> range:
        return range(self.images * self.rank // self.world, self.images * (self.rank + 1) // self.world, self.batch)


@lru_cache(maxsize=2)
def _permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(fold(seed, "order", epoch)).permutation(images)
