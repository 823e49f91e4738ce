"""Normalisation of images, on whatever device they are. Legend: C channels, in any dimension of a tensor of any rank."""

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


class Statistics(NamedTuple):
    """Mean and standard deviation of a data set, one value per channel, on the scale [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def checked(mean: Iterable[float], std: Iterable[float], *, where: str) -> Statistics:
    """Return statistics of equal length that images on the scale [0, 1] can have.

    Raises:
        ValueError: a value is no finite number or out of range; on the scale of grey levels the remedy is the division by 255.
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
            f"{where}: mean {values.mean} and std {values.std} are on the scale 0..255; divide by 255: mean={scaled[0]} std={scaled[1]}"
        )
    if min(numbers) < 0 or min(values.std) == 0 or max(numbers) > 1:
        raise ValueError(
            f"{where}: mean {values.mean} and std {values.std} are not those of images on the scale [0, 1], with a std above 0"
        )
    return Statistics(*(tuple(float(value) for value in part) for part in values))


def _on_unit_scale(values: Any) -> Any:
    """Raise ValueError with the remedy where numbers are on the scale of grey levels; leave all else to the type."""
    numbers = [value for value in values if isinstance(value, int | float)] if isinstance(values, tuple | list) else []
    if numbers and 1 < max(numbers) <= 255 and min(numbers) >= 0:
        raise ValueError(
            f"{tuple(values)} is on the scale 0..255; divide by 255: {tuple(round(value / 255, 4) for value in numbers)}"
        )
    return values


Mean = Annotated[tuple[Probability, ...], BeforeValidator(_on_unit_scale)]
"""A config's mean per channel on the scale [0, 1]."""
Std = Annotated[tuple[Deviation, ...], BeforeValidator(_on_unit_scale)]
"""A config's standard deviation per channel, likewise."""
IMAGENET = Statistics(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def normalize(images: Tensor, statistics: Statistics = IMAGENET, *, channels: int = 1) -> Tensor:
    """Return (images / 255 - mean) / std as float32, for uint8 images whose dimension `channels` is C."""
    scale, shift = _affine(images, statistics, channels)
    return torch.addcmul(shift, images.to(scale.dtype), scale)


def denormalize(values: Tensor, statistics: Statistics = IMAGENET, *, channels: int = 1) -> Tensor:
    """Return what `normalize` maps to `values`, on the scale [0, 1] and not clipped."""
    scale, shift = _affine(values, statistics, channels)
    return (values - shift) / (scale * 255)


def _affine(images: Tensor, statistics: Statistics, channels: int) -> tuple[Tensor, Tensor]:
    """Return scale and shift, broadcast along `channels`, of x -> x * scale + shift from grey levels to normalised values."""
    if not images.shape[channels] == len(statistics.mean) == len(statistics.std):
        raise ValueError(
            f"images of {images.shape[channels]} channels cannot be normalised with mean {statistics.mean} and std {statistics.std}"
        )
    shape = [-1 if dim == channels % images.ndim else 1 for dim in range(images.ndim)]
    dtype = images.dtype if images.is_floating_point() else torch.get_default_dtype()
    scale, shift = _constants(statistics, images.device, dtype)
    return scale.view(shape), shift.view(shape)


@lru_cache(maxsize=32)  # a copy to the device in every step would be a small wait in every step
def _constants(statistics: Statistics, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in statistics)
    return (1 / (255 * std)).to(device, dtype), (-mean / std).to(device, dtype)
