"""Principal components of patches, exact and in one pass. Legend: n patches of P values, K components."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mae_transfer.core.normalize import Statistics


class Basis(NamedTuple):
    """The K directions in which patches vary most, strongest first, and the images that they were fitted on."""

    mean: Tensor  # (P,) float32
    components: Tensor  # (K, P) float32, orthonormal rows; the value of largest magnitude in each row is positive
    variance: Tensor  # (K,) float32, along each component
    explained: Tensor  # (K,) float32, share of the whole variance
    patch: int  # side of a patch, pixels
    statistics: Statistics  # how the images were normalised


def fit_basis(patches: Iterable[Tensor], components: int, *, patch: int, statistics: Statistics) -> Basis:
    """Return the `components` = K strongest principal components of all the patches (n, P) that an iterable yields, from their covariance in float64.

    Raises:
        ValueError: fewer than two patches, or more components than values.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for part in patches:
        values = part.double()
        count, total, products = count + len(values), total + values.sum(dim=0), products + values.T @ values
    if count < 2 or components > len(total):
        raise ValueError(
            f"{components} components of {count} patches of {total.numel()} values: give more patches, or fewer components"
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
