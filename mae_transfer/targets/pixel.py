"""Pixels, raw or normalised per patch (MAE, section 3).

Legend: B batch, M requested patches, P = p * p * C values per patch, channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.bounds import Epsilon
from mae_transfer.core.normalize import denormalize, normalize
from mae_transfer.core.patches import grid_of, paint, patchify, take
from mae_transfer.interfaces import Batch, Target
from mae_transfer.targets.frame import Frame, TargetConfig


class PixelLossConfig(TargetConfig):
    """A target whose loss is the error of a patch's values."""

    loss: Literal["l2", "l1"] = "l2"
    """Mean squared ("l2") or mean absolute ("l1") error."""


class PixelConfig(PixelLossConfig):
    """The pixels of a patch, normalised by the data set's statistics (MAE, table 1d "pixel (w/o norm)")."""

    name: Literal["pixel"] = "pixel"

    def build(self, frame: Frame, files: object = None) -> Pixel:
        return Pixel(frame, self)


class NormPixelConfig(PixelLossConfig):
    """The pixels of a patch, normalised by their mean and unbiased variance (MAE, table 1d "pixel (w/ norm)")."""

    name: Literal["norm_pixel"] = "norm_pixel"
    eps: Epsilon = 1e-6
    """Added to the variance of a patch."""

    def build(self, frame: Frame, files: object = None) -> NormPixel:
        return NormPixel(frame, self)


class Pixel(Target):
    """The target of PixelConfig."""

    def __init__(self, frame: Frame, cfg: PixelLossConfig) -> None:
        super().__init__()
        self.patch, self.statistics = frame.patch, frame.statistics
        self.channels = len(frame.statistics.mean)
        self.dim = frame.patch**2 * self.channels
        self.distance: Callable[..., Tensor] = {"l2": F.mse_loss, "l1": F.l1_loss}[cfg.loss]

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the normalised pixels (B, M, P) float of patches `ids` (B, M)."""
        patches = take(patchify(batch.image, self.patch), ids)  # in uint8, a quarter of the bytes of float32
        return normalize(self._channels_last(patches), self.statistics, channels=3).flatten(2)

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared (or absolute) error of each patch, (B, M)."""
        return self.distance(pred.to(target.dtype), target, reduction="none").mean(dim=2)

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [0, 1]: predicted patches, grey elsewhere."""
        grid = grid_of((batch.image.shape[2], batch.image.shape[3]), self.patch)
        values = self._channels_last(self.denorm(pred.to(torch.get_default_dtype()), batch, ids))
        patches = denormalize(values, self.statistics, channels=3).flatten(2)
        return paint(patches, ids, grid, channels=self.channels).clamp(0, 1)

    def _channels_last(self, patches: Tensor) -> Tensor:
        """Return patches (B, M, P) as (B, M, p * p, C)."""
        return patches.view(*patches.shape[:2], -1, self.channels)

    def denorm(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Convert a prediction to normalised pixels (B, M, P)."""
        return pred


class NormPixel(Pixel):
    """The target of NormPixelConfig."""

    def __init__(self, frame: Frame, cfg: NormPixelConfig) -> None:
        super().__init__(frame, cfg)
        self.eps = cfg.eps

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return (x - mean) / sqrt(var + eps), (B, M, P), with mean and variance over a patch's P values x."""
        values = super().forward(batch, ids)
        var, mean = torch.var_mean(values, dim=2, keepdim=True)
        return (values - mean) / (var + self.eps).sqrt()

    def denorm(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return the prediction with mean and variance of the TRUE patch. It shows structure, not brightness."""
        var, mean = torch.var_mean(super().forward(batch, ids), dim=2, keepdim=True)
        return pred * (var + self.eps).sqrt() + mean
