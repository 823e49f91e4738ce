"""Coefficients of a patch in the basis of principal components (MAE, section 4.1 and table 1d: the 96 largest).

Legend: B batch, M patches asked for, P = p * p * C values per patch, K components.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Batch
from mae_transfer.targets.frame import Frame
from mae_transfer.targets.pixel import Pixel


class PCA(Pixel):
    """The K coefficients of a patch's normalised pixels, in a basis that was fitted once on training images (tools/tokenizer_train.py pca).

    The paper does not say whether they are whitened. They are not, unless told otherwise: the loss then is the squared error of the pixels within
    the basis's span. `whiten` gives every component the same weight.

    Args:
        basis: a basis.safetensors, or random:K.
        whiten: whether each coefficient is divided by its standard deviation.
    """

    weight: Tensor  # (K, P): one product from pixels to coefficients
    bias: Tensor  # (K,)
    components: Tensor  # (K, P): from coefficients to pixels
    mean: Tensor  # (P,)

    def __init__(self, frame: Frame, *, basis: Basis, loss: Literal["l2", "l1"] = "l2", whiten: bool = False) -> None:
        super().__init__(frame, loss=loss)
        if (basis.patch, basis.statistics) != (frame.patch, frame.statistics):
            raise ValueError(
                f"the basis was fitted on patches of {basis.patch} px normalised by {basis.statistics}, but the encoder has {frame.patch} px and "
                f"{frame.statistics}: fit one with tools/tokenizer_train.py pca and this config"
            )
        scale = basis.variance.clamp(min=1e-12).rsqrt() if whiten else torch.ones_like(basis.variance)
        self.register_buffer("weight", basis.components * scale[:, None])
        self.register_buffer("bias", -(basis.components * scale[:, None]) @ basis.mean)
        self.register_buffer("components", basis.components / scale[:, None])
        self.register_buffer("mean", basis.mean)
        self.dim = len(basis.components)

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the coefficients (B, M, K) of patches `ids` (B, M)."""
        return F.linear(super().forward(batch, ids).to(self.weight.dtype), self.weight, self.bias)

    def denorm(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return the normalised pixels (B, M, P) within the basis's span."""
        return pred.to(self.mean.dtype) @ self.components + self.mean
