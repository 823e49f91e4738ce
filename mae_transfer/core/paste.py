"""Masks of objects, drawn within their boxes, as masks of the whole image.

Legend: n objects, M x M pixels of a mask within its box, H x W pixels of the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float = 0.5) -> Tensor:
    """Return masks of the image, (n, H, W) bool: at each pixel's centre the mask is sampled bilinearly (0 around it) and compared with the threshold.

    This is detectron2's rule; torchvision rounds the boxes first, which costs small objects up to a tenth of their IoU.

    Args:
        masks: (n, M, M) in [0, 1].
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
        size: H, W.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for k, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks.float(), boxes.tolist(), strict=True)):
        columns, u = _places(x0, x1, size[1], boxes.device)
        rows, v = _places(y0, y1, size[0], boxes.device)
        if len(u) and len(v):
            grid = torch.stack([u.expand(len(v), -1), v[:, None].expand(-1, len(u))], dim=-1)
            sampled = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
            pasted[k, rows, columns] = sampled >= threshold
    return pasted


def _places(low: float, high: float, length: int, device: torch.device) -> tuple[slice, Tensor]:
    """Return the pixels of an axis that a box can touch, and their centres in the box, from -1 to 1."""
    first, last = max(0, math.floor(low) - 1), min(length, math.ceil(high) + 1)
    centres = torch.arange(first, max(first, last), device=device, dtype=torch.float32) + 0.5
    return slice(first, max(first, last)), (centres - low) / max(high - low, 1e-9) * 2 - 1
