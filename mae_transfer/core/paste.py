"""Paste masks that are relative to their boxes into the whole image.

Legend: n objects, M x M pixels of a mask within its box, H x W pixels of the image, h x w pixels of the image region
that a box can touch.
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
    """Return the masks of the image as runs of pixels, (n, R).

    A mask is sampled bilinearly at each pixel's centre, with 0 outside, and compared with the threshold. This is
    detectron2's rule. torchvision rounds the boxes first, which costs small objects up to a tenth of their IoU. To save
    memory, masks are drawn one at a time and only within their boxes.

    Args:
        masks: (n, M, M) in [0, 1], on the CPU like the boxes.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
        size: H, W.
        threshold: minimum value of an object's pixels.
    """
    return stacked(
        [
            from_mask(drawn, size, top=top, left=left)
            for drawn, top, left in _draw_in_boxes(masks, boxes, size, threshold)
        ],
        size,
    )


def _draw_in_boxes(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield each mask within its box, (h, w) bool, with its first row and column in the image."""
    for mask, (x0, y0, x1, y1) in zip(masks.float(), boxes.tolist(), strict=True):
        left, u = _centres(x0, x1, size[1])
        top, v = _centres(y0, y1, size[0])
        drawn = np.zeros((len(v), len(u)), dtype=bool)
        if drawn.size:
            grid = torch.stack([u.expand(len(v), -1), v[:, None].expand(-1, len(u))], dim=-1)
            drawn = (F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= threshold).numpy()
        yield drawn, top, left


def _centres(low: float, high: float, length: int) -> tuple[int, Tensor]:
    """Return the first pixel that a box can touch on an axis, and the pixel centres relative to the box (-1 to 1)."""
    first, last = max(0, math.floor(low) - 1), min(length, math.ceil(high) + 1)
    centres = torch.arange(first, max(first, last), dtype=torch.float32) + 0.5
    return first, (centres - low) / max(high - low, 1e-9) * 2 - 1
