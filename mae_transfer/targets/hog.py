"""Histograms of oriented gradients, as in MaskFeat (arXiv 2112.09133, section 3.2).

Legend: B batch, C channels, H x W pixels, c side of a cell, h x w cells, O orientation bins, M requested patches,
P = C * O * cells per patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.bounds import Few, Pixels
from mae_transfer.core.patches import paint, patchify, put, take, unpatchify
from mae_transfer.interfaces import Batch, Target
from mae_transfer.targets.frame import Frame
from mae_transfer.targets.pixel import PixelLossConfig


class HOGConfig(PixelLossConfig):
    """Histograms of gradient orientations per cell and channel, weighted by magnitude and scaled to length 1.

    Gradients come from Sobel filters with a mirrored border. Orientations modulo 180 degrees are sorted into equal bins
    without interpolation. Histograms do not change when a channel is shifted or scaled, so they are computed from the
    uint8 image.
    """

    name: Literal["hog"] = "hog"
    bins: Few = 9
    """Orientations per histogram."""
    cell: Pixels = 8
    """Pixels per side of a cell; must divide the patch."""

    def build(self, frame: Frame, files: object = None) -> HOG:
        return HOG(frame, self)


class HOG(Target):
    """The target of HOGConfig."""

    glyphs: Tensor  # (O, c, c): a line along the edge direction of each bin

    def __init__(self, frame: Frame, cfg: HOGConfig) -> None:
        super().__init__()
        bins, cell = cfg.bins, cfg.cell
        if frame.patch % cell:
            raise ValueError(
                f"cells of {cell} px do not divide patches of {frame.patch} px: set target.cell to a divisor of "
                f"{frame.patch}"
            )
        self.patch, self.grid, self.bins, self.cell = frame.patch, frame.grid, bins, cell
        self.channels = len(frame.statistics.mean)
        self.dim = self.channels * bins * (frame.patch // cell) ** 2
        self.distance: Callable[..., Tensor] = {"l2": F.mse_loss, "l1": F.l1_loss}[cfg.loss]
        self.register_buffer("glyphs", _glyphs(bins, cell), persistent=False)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the histograms (B, M, P) of patches `ids` (B, M): cells row by row, then channels within a cell."""
        return take(patchify(histograms(batch.image, bins=self.bins, cell=self.cell), self.patch // self.cell), ids)

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared (or absolute) error of each patch, (B, M)."""
        return self.distance(pred.to(target.dtype), target, reduction="none").mean(dim=2)

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1]: lines along the edge directions in predicted patches, grey elsewhere.

        The value of a bin is the brightness of its line.
        """
        blank = torch.zeros(len(pred), self.grid[0] * self.grid[1], self.dim, device=pred.device)
        maps = unpatchify(put(pred, ids, into=blank), self.grid, channels=self.channels * self.bins)
        b, _, h, w = maps.shape
        lines = torch.zeros(b, self.channels, h, self.cell, w, self.cell, device=pred.device)
        for weight, glyph in zip(maps.view(b, self.channels, self.bins, h, w).unbind(2), self.glyphs, strict=True):
            lines = torch.maximum(lines, torch.einsum("bchw,ij->bchiwj", weight, glyph))
        drawn = patchify(lines.reshape(b, self.channels, h * self.cell, w * self.cell).clamp(0, 1), self.patch)
        return paint(take(drawn, ids), ids, self.grid, channels=self.channels)


def histograms(images: Tensor, *, bins: int, cell: int) -> Tensor:
    """Return the histograms (B, C * O, H / c, W / c) float32 of images (B, C, H, W). The bin index varies fastest."""
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
    """Return the responses (B, C, H, W) of the Sobel filters [1 0 -1] x [1 2 1] along x and y, with mirrored border."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = padded[..., :-2] - padded[..., 2:]
    down = padded[..., :-2, :] - padded[..., 2:, :]
    x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return x, y


def _glyphs(bins: int, cell: int) -> Tensor:
    """Return (O, c, c) in [0, 1]: a line through the cell's centre, perpendicular to the gradients of each bin."""
    offset = torch.arange(cell) - (cell - 1) / 2
    angle = (torch.arange(bins) + 0.5) * math.pi / bins  # atan2(x, y): measured from the y axis
    distance = offset[None, :, None] * angle.cos()[:, None, None] + offset[None, None, :] * angle.sin()[:, None, None]
    return (1 - distance.abs()).clamp(min=0)
