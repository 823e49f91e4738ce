"""Normalisation of images, on any device. Legend: C channels, in any dimension of a tensor of any rank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from mae_transfer.bounds import Deviation, Probability

TOLERANCE = 5e-3  # largest difference of two roundings of the same value


class Statistics(NamedTuple):
    """Mean and standard deviation of a data set, one value per channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def matches(self, other: Statistics) -> bool:
        """Return whether two statistics are equal up to rounding."""
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=False)
        return len(self.mean) == len(other.mean) and all(abs(a - b) <= TOLERANCE for a, b in pairs)

    def text(self) -> str:
        """Return the statistics as text for a sentence."""
        mean, std = (tuple(round(value, 5) for value in part) for part in self)
        return f"mean {mean} and std {std}"


def check_statistics(mean: Iterable[float], std: Iterable[float], *, where: str) -> Statistics:
    """Return the statistics after checking that they are possible for pixels in [0, 1].

    Raises:
        ValueError: the lengths differ, or a value is not finite or out of range. For values on the scale 0..255 the
            message gives the values divided by 255.
    """
    values = Statistics(tuple(mean), tuple(std))
    numbers = [value for part in values for value in part]
    if not all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in numbers
    ):
        raise ValueError(f"{where}: mean {values.mean} and std {values.std} must be finite numbers, one per channel")
    if not len(values.mean) == len(values.std) > 0:
        raise ValueError(
            f"{where}: mean has {len(values.mean)} values and std {len(values.std)}; give one per channel in both"
        )
    if 1 < max(numbers) <= 255 and min(numbers) >= 0:
        scaled = [tuple(round(value / 255, 4) for value in part) for part in values]
        raise ValueError(
            f"{where}: mean {values.mean} and std {values.std} are on the scale 0..255; divide by 255: "
            f"mean={scaled[0]} std={scaled[1]}"
        )
    if min(numbers) < 0 or min(values.std) == 0 or max(numbers) > 1:
        raise ValueError(
            f"{where}: mean {values.mean} and std {values.std} are impossible for pixels in [0, 1]; give a mean from 0 "
            "to 1 and a std above 0"
        )
    return Statistics(*(tuple(float(value) for value in part) for part in values))


def _on_unit_scale(values: Any) -> Any:
    """Raise ValueError with the remedy for numbers on the scale 0..255. The type checks everything else."""
    numbers = [value for value in values if isinstance(value, int | float)] if isinstance(values, tuple | list) else []
    if numbers and 1 < max(numbers) <= 255 and min(numbers) >= 0:
        raise ValueError(
            f"{tuple(values)} is on the scale 0..255; divide by 255: "
            f"{tuple(round(value / 255, 4) for value in numbers)}"
        )
    return values


Mean = Annotated[tuple[Probability, ...], BeforeValidator(_on_unit_scale)]
"""Mean per channel in a config, for pixels in [0, 1]."""
Std = Annotated[tuple[Deviation, ...], BeforeValidator(_on_unit_scale)]
"""Standard deviation per channel in a config, for pixels in [0, 1]."""
IMAGENET = Statistics(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def normalize(images: Tensor, statistics: Statistics = IMAGENET, *, channels: int = 1) -> Tensor:
    """Return (images / 255 - mean) / std as float32, for uint8 images with C in dimension `channels`."""
    scale, shift = _affine(images, statistics, channels)
    return torch.addcmul(shift, images.to(scale.dtype), scale)


def denormalize(values: Tensor, statistics: Statistics = IMAGENET, *, channels: int = 1) -> Tensor:
    """Invert `normalize`. The result is on the scale [0, 1] and not clipped."""
    scale, shift = _affine(values, statistics, channels)
    return (values - shift) / (scale * 255)


def _affine(images: Tensor, statistics: Statistics, channels: int) -> tuple[Tensor, Tensor]:
    """Return scale and shift of x -> x * scale + shift, which normalises grey levels, shaped to broadcast."""
    if not images.shape[channels] == len(statistics.mean) == len(statistics.std):
        raise ValueError(
            f"images of {images.shape[channels]} channels cannot be normalised with mean {statistics.mean} and std "
            f"{statistics.std}: give one value per channel"
        )
    shape = [-1 if dim == channels % images.ndim else 1 for dim in range(images.ndim)]
    dtype = images.dtype if images.is_floating_point() else torch.get_default_dtype()
    scale, shift = _constants(statistics, images.device, dtype)
    return scale.view(shape), shift.view(shape)


@lru_cache(maxsize=32)  # avoids a copy to the device in every step
def _constants(statistics: Statistics, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in statistics)
    return (1 / (255 * std)).to(device, dtype), (-mean / std).to(device, dtype)
