"""Segments an image as a whole or in sliding windows, and averages over scales and mirror images, as mmseg does.

Legend: C classes, H x W pixels of an image, h x w pixels of a view or window, W windows.
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
    """How images are segmented."""

    mode: Literal["slide", "whole"] = "slide"
    """"slide": windows of `data.size` pixels, with logits averaged where they overlap. "whole": the image at once."""
    stride: Sides | None = None
    """Pixels between the starts of two windows: one number, or vertical and horizontal. At most the window's side.
    None: two thirds of the side, as in BEiT (341 of 512)."""
    scales: tuple[Factor, ...] = Field(default=(1.0,), min_length=1)
    """Factors of `data.scale`, one view of the image for each. The class probabilities of several views are averaged
    (--multi-scale: 0.5 to 1.75)."""
    flip: bool = False
    """Whether to average over the mirror image of each view, too."""


class Windows(NamedTuple):
    """How an image is cut into windows.

    A smaller image is padded with zeros to the window's size, as training crops are. So the grid is always the trained
    one.
    """

    size: int | tuple[int, int] | None  # pixels of a window, one side or height and width; None: the whole image
    stride: int | tuple[int, int]  # pixels between the starts of two windows, likewise
    divisor: int  # a whole image is padded with zeros, right and below, to sides that are multiples of it
    batch: int  # windows per forward pass


def probabilities(
    model: nn.Module, views: Sequence[Tensor], size: tuple[int, int], how: Windows, *, flip: bool
) -> Tensor:
    """Return the class probabilities, (1, C, H, W) for `size`, averaged over views and mirror images.

    For a single view without its mirror image, the logits are returned.

    views: normalised images (1, 3, h, w), of one image in several sizes.
    """
    flips = (False, True) if flip else (False,)
    single = len(views) * len(flips) == 1
    total: Tensor | None = None
    for view in views:
        for mirrored in flips:
            seen = logits(model, view.flip(3) if mirrored else view, how)
            scores = resized(seen.flip(3) if mirrored else seen, size)
            scores = scores if single else scores.softmax(dim=1) / (len(views) * len(flips))
            total = scores if total is None else total + scores
    assert total is not None, "no view"
    return total


def logits(model: nn.Module, image: Tensor, how: Windows) -> Tensor:
    """Return the logits (1, C, H, W) of a normalised image (1, 3, H, W).

    model: images -> (logits, ...), at any resolution.
    """
    height, width = image.shape[2:]
    most, stride = sides(how.size) if how.size else (height, width), sides(how.stride)
    side = (min(most[0], height), min(most[1], width))
    corners = [(y, x) for y in starts(height, side[0], stride[0]) for x in starts(width, side[1], stride[1])]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, height, width)
    for first in range(0, len(corners), how.batch):
        some = corners[first : first + how.batch]
        windows = torch.cat([image[:, :, y : y + side[0], x : x + side[1]] for y, x in some])
        scores = window_logits(model, windows, how)
        if total is None:
            total = scores.new_zeros(1, scores.shape[1], height, width)
        for (y, x), window in zip(some, scores, strict=True):
            total[0, :, y : y + side[0], x : x + side[1]] += window
            count[:, :, y : y + side[0], x : x + side[1]] += 1
    assert total is not None, "no window"
    return total / count


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of windows that cover an axis; the last window ends at its end, as in mmseg."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, length - window) for i in range(count)]


def window_logits(model: nn.Module, windows: Tensor, how: Windows) -> Tensor:
    """Return the logits (W, C, h, w) of windows (W, 3, h, w)."""
    h, w = windows.shape[2:]
    height, width = sides(how.size) if how.size else (h + -h % how.divisor, w + -w % how.divisor)
    padded = F.pad(windows, (0, width - w, 0, height - h))
    scores: Tensor = model(padded)[0]
    return resized(scores, (height, width))[:, :, :h, :w]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B, C, h, w) resized bilinearly."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
