"""The mean colour of a patch with 3 bits per channel (masked patch prediction of ViT, arXiv 2010.11929, B.1.2).

Legend: B batch, C channels, M requested patches, P = 8^C classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mae_transfer.core.patches import paint, patchify, take
from mae_transfer.interfaces import Batch
from mae_transfer.targets.classes import ClassTarget
from mae_transfer.targets.frame import Frame, TargetConfig


class MeanColourConfig(TargetConfig):
    """The class of the mean colour, with `2 ** bits` equal levels per channel and cross-entropy as the loss."""

    name: Literal["mean_colour"] = "mean_colour"
    bits: Annotated[int, Field(ge=1, le=8)] = 3
    """Bits per channel. 3 bits of RGB give 512 classes."""

    def build(self, frame: Frame, files: object = None) -> MeanColour:
        return MeanColour(frame, self)


class MeanColour(ClassTarget):
    """The target of MeanColourConfig."""

    weights: Tensor  # (C,) int64: factors that combine the channels' levels to a class

    def __init__(self, frame: Frame, cfg: MeanColourConfig) -> None:
        super().__init__()
        channels = len(frame.statistics.mean)
        self.patch, self.grid, self.channels, self.levels = frame.patch, frame.grid, channels, 2**cfg.bits
        self.dim = self.levels**channels
        self.register_buffer("weights", self.levels ** torch.arange(channels - 1, -1, -1), persistent=False)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the classes (B, M) int64 of patches `ids` (B, M). The first channel is the most significant."""
        patches = take(patchify(batch.image, self.patch), ids)
        mean = patches.view(*ids.shape, -1, self.channels).float().mean(dim=2)
        classes: Tensor = ((mean * (self.levels / 256)).long() * self.weights).sum(dim=2)
        return classes

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1]: predicted patches in the colour of their class, grey elsewhere."""
        levels = pred.argmax(dim=2, keepdim=True) // self.weights % self.levels
        colours = ((levels + 0.5) / self.levels).repeat(1, 1, self.patch**2)
        return paint(colours, ids, self.grid, channels=self.channels)
