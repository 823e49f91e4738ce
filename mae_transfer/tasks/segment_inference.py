"""From an image to its class map: whole, by sliding windows in batches, and averaged over scales and mirror images; mmseg's arithmetic.

Legend: C classes, H x W pixels of an image, h x w of its logits' destination, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mae_transfer.bounds import Factor, Sides
from mae_transfer.config import Schema
from mae_transfer.core.patches import sides

PUBLISHED_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # with mirror images: BEiT, mae_segmentation and mmseg


class InferenceConfig(Schema):
    """How an image is segmented."""

    mode: Literal["slide", "whole"] = "slide"
    """Windows of `data.size` pixels whose logits are averaged where they overlap, or the whole image at once."""
    stride: Sides | None = None
    """Pixels from window to window, or those down and across, at most a window's side (two thirds of it in BEiT: 341 of 512); None: that."""
    scales: tuple[Factor, ...] = Field(default=(1.0,), min_length=1)
    """Factors of `data.scale`, a view of the image each; several: the classes' probabilities are averaged (--multi-scale: 0.5 to 1.75)."""
    flip: bool = False
    """Whether each view is seen mirrored too."""


class Windows(NamedTuple):
    """How to look at an image.

    A window has this `size` even where the image is smaller: padded with zeros, as training crops are, it has the grid that the model learned.
    """

    size: int | tuple[int, int] | None  # pixels of a window, one side or height and width; None: the whole image
    stride: int | tuple[int, int]  # pixels from window to window, likewise
    divisor: int  # of the sides that a whole image is padded to, right and below, with zeros
    batch: int  # windows per forward pass


def probabilities(
    model: nn.Module, views: Sequence[Tensor], size: tuple[int, int], how: Windows, *, flip: bool
) -> Tensor:
    """Return the mean over views and their mirror images of the classes' probabilities, (1, C, H, W) for `size`; for one view alone its logits.

    views: normalised images (1, 3, h, w), of one image in several sizes.
    """
    turns = (False, True) if flip else (False,)
    single = len(views) * len(turns) == 1
    total: Tensor | None = None
    for view in views:
        for mirrored in turns:
            seen = logits(model, view.flip(3) if mirrored else view, how)
            found = resized(seen.flip(3) if mirrored else seen, size)
            found = found if single else found.softmax(dim=1) / (len(views) * len(turns))
            total = found if total is None else total + found
    assert total is not None, "no view"
    return total


def logits(model: nn.Module, image: Tensor, how: Windows) -> Tensor:
    """Return the logits (1, C, H, W) of a normalised image (1, 3, H, W); model: images -> (logits, ...), at any resolution."""
    height, width = image.shape[2:]
    most, stride = sides(how.size) if how.size else (height, width), sides(how.stride)
    side = (min(most[0], height), min(most[1], width))
    places = [(y, x) for y in starts(height, side[0], stride[0]) for x in starts(width, side[1], stride[1])]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, height, width)
    for first in range(0, len(places), how.batch):
        some = places[first : first + how.batch]
        found = window_logits(model, torch.cat([image[:, :, y : y + side[0], x : x + side[1]] for y, x in some]), how)
        if total is None:
            total = found.new_zeros(1, found.shape[1], height, width)
        for (y, x), window in zip(some, found, strict=True):
            total[0, :, y : y + side[0], x : x + side[1]] += window
            count[:, :, y : y + side[0], x : x + side[1]] += 1
    assert total is not None, "no window"
    return total / count


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along an axis so that they cover it; the last one is moved back inside (mmseg)."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, length - window) for i in range(count)]


def window_logits(model: nn.Module, windows: Tensor, how: Windows) -> Tensor:
    """Return the logits (W, C, h, w) of windows (W, 3, h, w), at their size."""
    h, w = windows.shape[2:]
    height, width = sides(how.size) if how.size else (h + -h % how.divisor, w + -w % how.divisor)
    padded = F.pad(windows, (0, width - w, 0, height - h))
    found: Tensor = model(padded)[0]
    return resized(found, (height, width))[:, :, :h, :w]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, C, h, w) at another size, bilinearly."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
