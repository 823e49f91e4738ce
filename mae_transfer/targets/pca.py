"""Principal component coefficients of a patch (MAE, section 4.1 and table 1d: the 96 largest).

Legend: B batch, M requested patches, P = p * p * C values per patch, K components.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Batch
from mae_transfer.targets.frame import Files, Frame
from mae_transfer.targets.pixel import Pixel, PixelLossConfig


class PCAConfig(PixelLossConfig):
    """The K coefficients of a patch's normalised pixels in a fixed basis, fitted by tools/tokenizer_train.py pca.

    The paper does not say whether coefficients are whitened. By default they are not, so the loss is the squared error
    of the pixels within the span of the basis.
    """

    name: Literal["pca"] = "pca"
    basis: str
    """The basis: a basis.safetensors, or random:K."""
    whiten: bool = False
    """Whether to divide each coefficient by its standard deviation, which gives every component the same weight."""

    def build(self, frame: Frame, files: Files) -> PCA:
        return PCA(frame, files.basis(self.basis), self)


class PCA(Pixel):
    """The target of PCAConfig."""

    weight: Tensor  # (K, P): maps pixels to coefficients
    bias: Tensor  # (K,)
    components: Tensor  # (K, P): maps coefficients to pixels
    mean: Tensor  # (P,)

    def __init__(self, frame: Frame, basis: Basis, cfg: PCAConfig) -> None:
        super().__init__(frame, cfg)
        if (basis.patch, basis.statistics) != (frame.patch, frame.statistics):
            raise ValueError(
                f"the basis was fitted to patches of {basis.patch} px normalised by {basis.statistics}, but the "
                f"encoder has {frame.patch} px and {frame.statistics}: fit one with tools/tokenizer_train.py pca and "
                "this config"
            )
        scale = basis.variance.clamp(min=1e-12).rsqrt() if cfg.whiten else torch.ones_like(basis.variance)
        self.register_buffer("weight", basis.components * scale[:, None])
        self.register_buffer("bias", -(basis.components * scale[:, None]) @ basis.mean)
        self.register_buffer("components", basis.components / scale[:, None])
        self.register_buffer("mean", basis.mean)
        self.dim = len(basis.components)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the coefficients (B, M, K) of patches `ids` (B, M)."""
        return F.linear(super().forward(batch, ids).to(self.weight.dtype), self.weight, self.bias)

    def denorm(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return the normalised pixels (B, M, P) within the span of the basis."""
        return pred.to(self.mean.dtype) @ self.components + self.mean
