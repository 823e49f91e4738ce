"""Masks of objects, drawn within their boxes, as masks of the whole image.

Legend: n objects, M x M pixels of a mask within its box, H x W pixels of the image, h x w those of it that a box can touch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.runs import Size, from_mask, stacked


def pasted(masks: Tensor, boxes: Tensor, size: Size, *, threshold: float = 0.5) -> Tensor:
    """Return masks of the image as runs of pixels, (n, R): each pixel's centre is sampled bilinearly (0 around the mask) and compared.

    This is detectron2's rule; torchvision rounds the boxes first, which costs small objects up to a tenth of their IoU. One
    mask is drawn at a time, and within its box alone.

    Args:
        masks: (n, M, M) in [0, 1], on the CPU like the boxes.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
        size: H, W.
        threshold: least value of an object's pixels.
    """
    return stacked(
        [from_mask(drawn, size, top=top, left=left) for drawn, top, left in _drawn(masks, boxes, size, threshold)], size
    )


def _drawn(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield each mask within its box, (h, w) bool, with the image's row and column that it begins at."""
    for mask, (x0, y0, x1, y1) in zip(masks.float(), boxes.tolist(), strict=True):
        left, u = _places(x0, x1, size[1])
        top, v = _places(y0, y1, size[0])
        drawn = np.zeros((len(v), len(u)), dtype=bool)
        if drawn.size:
            grid = torch.stack([u.expand(len(v), -1), v[:, None].expand(-1, len(u))], dim=-1)
            drawn = (F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= threshold).numpy()
        yield drawn, top, left


def _places(low: float, high: float, length: int) -> tuple[int, Tensor]:
    """Return the first pixel of an axis that a box can touch, and the centres of all of them in the box, from -1 to 1."""
    first, last = max(0, math.floor(low) - 1), min(length, math.ceil(high) + 1)
    centres = torch.arange(first, max(first, last), dtype=torch.float32) + 0.5
    return first, (centres - low) / max(high - low, 1e-9) * 2 - 1
