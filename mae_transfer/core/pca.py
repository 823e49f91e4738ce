"""Exact principal components of patches in one pass. Legend: n patches of P values, K components."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mae_transfer.core.normalize import Statistics


class Basis(NamedTuple):
    """The K principal components of patches, by descending variance, and the format of the patches."""

    mean: Tensor  # (P,) float32
    components: Tensor  # (K, P) float32, orthonormal rows; the value of largest magnitude in each row is positive
    variance: Tensor  # (K,) float32, along each component
    explained: Tensor  # (K,) float32, share of the total variance
    patch: int  # side of a patch, pixels
    statistics: Statistics  # normalisation of the images


def fit_basis(patches: Iterable[Tensor], components: int, *, patch: int, statistics: Statistics) -> Basis:
    """Fit the `components` = K first principal components to all patches (n, P) of an iterable, in float64.

    Raises:
        ValueError: fewer than two patches, or more components than values.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for part in patches:
        values = part.double()
        count, total, products = count + len(values), total + values.sum(dim=0), products + values.T @ values
    if count < 2 or components > len(total):
        raise ValueError(
            f"{components} components cannot be fitted to {count} patches of {total.numel()} values: give more patches "
            "or fewer components"
        )
    mean = total / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    variance, vectors = torch.linalg.eigh(covariance)
    order = variance.argsort(descending=True)[:components]
    rows = vectors.T[order]
    rows = rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    strongest = variance[order].clamp(min=0)
    return Basis(
        mean.float(),
        rows.float(),
        strongest.float(),
        (strongest / variance.clamp(min=0).sum()).float(),
        patch,
        statistics,
    )
