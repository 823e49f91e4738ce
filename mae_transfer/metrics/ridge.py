"""Ridge regression of one-hot labels in closed form, for many penalties at the cost of one.

Legend: N features, D width, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mae_transfer.metrics.features import CHUNK, gram, widen


class RidgePath(NamedTuple):
    """The solutions for all penalties, in the eigenvectors of the covariance; float64."""

    mean: Tensor  # (D,), of the features
    values: Tensor  # (D,) eigenvalues of X'X, for features X around their mean
    vectors: Tensor  # (D, D), its eigenvectors
    projected: Tensor  # (D, C), X'Y in these vectors, for one-hot labels Y
    prior: Tensor  # (C,), the share of each class

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Return weight (D, C) and bias (C,) that minimise |XW + b - Y|^2 + penalty s |W|^2.

        The unit s is the mean eigenvalue of X'X, so that a penalty means the same for features of any scale and number.
        """
        shrunk = self.values + penalty * self.values.mean()
        weight = self.vectors @ (self.projected / shrunk.clamp(min=torch.finfo(shrunk.dtype).tiny)[:, None])
        return weight, self.prior - self.mean @ weight


def fit_ridge(features: Tensor, labels: Tensor, *, classes: int) -> RidgePath:
    """Return the ridge regressions of the one-hot labels on the features.

    Args:
        features: (N, D), finite.
        labels: (N,) int64 in 0..C-1.
    """
    wide = widen(features[:0])
    labels, sums = labels.to(wide.device), wide.new_zeros(classes, features.shape[1])
    for chunk, its_labels in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
        sums.index_add_(0, its_labels, widen(chunk))
    mean, counts = sums.sum(dim=0) / len(labels), labels.bincount(minlength=classes).to(wide.dtype)
    centred = (sums - counts[:, None] * mean).T  # X'Y: the centred features of each class, added
    values, vectors = torch.linalg.eigh(gram(features, mean))
    return RidgePath(mean, values.clamp(min=0), vectors, vectors.T @ centred, counts / len(labels))
