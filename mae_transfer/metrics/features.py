"""Statistics of frozen features. Legend: N images, D width."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**16  # features widened at a time


def check_finite(features: Tensor, *, of: str) -> None:
    """Raise ValueError if a feature is not finite. `of`: what the features are of, for the message."""
    if broken := count_broken(features).item():
        raise ValueError(
            f"{broken} of {len(features)} {of} features contain NaN or infinity: check the backbone's weights, or set "
            "precision=float32"
        )


def count_broken(features: Tensor) -> Tensor:
    """Return the number of features that are not finite, 0-d."""
    broken: Tensor = len(features) - torch.linalg.vector_norm(features, dim=1).isfinite().sum()
    return broken


def widen(features: Tensor) -> Tensor:
    """Return the features in float64; on the CPU if their device has no such type (mps)."""
    return (features.cpu() if features.device.type == "mps" else features).double()


def gram(features: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Return X'X in float64, (D, D), for X = features - mean."""
    total = torch.zeros((), dtype=torch.float64)
    for chunk in features.split(CHUNK):
        part = widen(chunk) - mean
        total = total.to(part.device) + part.T @ part
    return total


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank as a share of the largest possible one, min(N, D): 1 if all directions are equal, 0-d.

    It is the exponential of the entropy of the normalised singular values (RankMe, arXiv 2210.02885, equation 4).
    """
    singular = torch.linalg.eigvalsh(gram(features)).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp() / min(features.shape)


def spread(features: Tensor) -> Tensor:
    """Return the mean standard deviation of the normalised features times sqrt(D), 0-d.

    It is 0 if all features point in one direction, and near 1 if they point in all (SimSiam, arXiv 2011.10566, 4.1).
    """
    return F.normalize(features, dim=1).std(dim=0, correction=0).mean() * sqrt(features.shape[1])
