"""Histograms of oriented gradients as MaskFeat predicts them (arXiv 2112.09133, section 3.2).

Legend: B batch, C channels, H x W pixels, c side of a cell, h x w cells, O orientation bins, M patches asked for, P = C * O * cells per patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.bounds import Few, Pixels
from mae_transfer.core.patches import patchify, put, take, unpatchify
from mae_transfer.interfaces import Batch, ViewSpec
from mae_transfer.targets.frame import Frame
from mae_transfer.targets.frozen import FrozenTarget
from mae_transfer.targets.pixel import GREY


class HOG(FrozenTarget):
    """Each cell's histogram of gradient orientations per channel, weighted by magnitude and scaled to length 1: Sobel filters, mirrored border,
    orientations modulo half a turn into equal bins without interpolation.

    It does not change when a channel is shifted or scaled, so it is taken from the bytes.

    Args:
        bins: orientations per histogram.
        cell: pixels per side of a cell; must divide the patch.
        loss: mean squared ("l2") or mean absolute ("l1") error.
    """

    views: tuple[ViewSpec, ...] = ()
    glyphs: Tensor  # (O, c, c): a line along the edge that each bin stands for

    def __init__(self, frame: Frame, *, bins: Few = 9, cell: Pixels = 8, loss: Literal["l2", "l1"] = "l2") -> None:
        super().__init__()
        if frame.patch % cell:
            raise ValueError(
                f"cells of {cell} px do not divide patches of {frame.patch} px: set target.cell to a divisor of {frame.patch}"
            )
        self.patch, self.grid, self.bins, self.cell = frame.patch, frame.grid, bins, cell
        self.channels = len(frame.statistics.mean)
        self.dim = self.channels * bins * (frame.patch // cell) ** 2
        self.distance: Callable[..., Tensor] = {"l2": F.mse_loss, "l1": F.l1_loss}[loss]
        self.register_buffer("glyphs", _glyphs(bins, cell), persistent=False)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the histograms (B, M, P) of patches `ids` (B, M): cells row by row, within a cell channel by channel."""
        return take(patchify(histograms(batch.image, bins=self.bins, cell=self.cell), self.patch // self.cell), ids)

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared (or absolute) error of each patch, (B, M)."""
        return self.distance(pred.to(target.dtype), target, reduction="none").mean(dim=2)

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {}

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1]: in each cell a line along every edge direction, as bright as its bin; grey elsewhere."""
        everywhere = torch.zeros(len(pred), self.grid[0] * self.grid[1], self.dim, device=pred.device)
        maps = unpatchify(put(pred, ids, into=everywhere), self.grid, channels=self.channels * self.bins)
        b, _, h, w = maps.shape
        lines = torch.zeros(b, self.channels, h, self.cell, w, self.cell, device=pred.device)
        for weight, glyph in zip(maps.view(b, self.channels, self.bins, h, w).unbind(2), self.glyphs, strict=True):
            lines = torch.maximum(lines, torch.einsum("bchw,ij->bchiwj", weight, glyph))
        drawn = patchify(lines.reshape(b, self.channels, h * self.cell, w * self.cell).clamp(0, 1), self.patch)
        shown = put(take(drawn, ids), ids, into=torch.full_like(drawn, GREY))
        return unpatchify(shown, self.grid, channels=self.channels)


def histograms(images: Tensor, *, bins: int, cell: int) -> Tensor:
    """Return the histograms (B, C * O, H / c, W / c) float32 of images (B, C, H, W) uint8 or float; the bin index runs fastest."""
    b, c, height, width = images.shape
    x, y = gradients(images.float())
    orientation = (torch.atan2(x, y) * (bins / math.pi)).floor().long() % bins
    row, column = (torch.arange(size, device=images.device) // cell for size in (height, width))
    cells = (row[:, None] * (width // cell) + column) * bins
    sums = x.new_zeros(b * c, (height // cell) * (width // cell) * bins)
    sums.scatter_add_(1, (orientation + cells).flatten(2).flatten(0, 1), torch.hypot(x, y).flatten(2).flatten(0, 1))
    unit = F.normalize(sums.view(b, c, height // cell, width // cell, bins), dim=-1)
    return unit.permute(0, 1, 4, 2, 3).flatten(1, 2)


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the responses (B, C, H, W) of the Sobel filters [1 0 -1] x [1 2 1] along x and y, the border mirrored."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = padded[..., :-2] - padded[..., 2:]
    down = padded[..., :-2, :] - padded[..., 2:, :]
    x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return x, y


def _glyphs(bins: int, cell: int) -> Tensor:
    """Return (O, c, c) in [0, 1]: a line through the cell's centre, at right angles to the gradients of each bin."""
    place = torch.arange(cell) - (cell - 1) / 2
    angle = (torch.arange(bins) + 0.5) * math.pi / bins  # atan2(x, y): from the y axis
    distance = place[None, :, None] * angle.cos()[:, None, None] + place[None, None, :] * angle.sin()[:, None, None]
    return (1 - distance.abs()).clamp(min=0)
