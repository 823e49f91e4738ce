"""Exact weighted k-nearest-neighbour classification of frozen features (DINO, arXiv 2104.14294, section 4.1).

Legend: Q queries, N features of the bank, D width, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.metrics.features import check_finite

CHUNK = 2**27  # similarities computed at a time: half a GiB of float32


def knn_scores(
    queries: Tensor, bank: Tensor, labels: Tensor, *, classes: int, ks: Sequence[int], temperature: float = 0.07
) -> Tensor:
    """Return the votes for each class, (len(ks), Q, C).

    Each of the k most similar features votes for its class with the weight exp(cosine / temperature). A query's weights
    are divided by the largest one, which keeps them finite at any temperature. A class without votes gets -inf, so that
    it is not a prediction, even in top-5 with k < 5.

    Args:
        queries: (Q, D), normalised here.
        bank: (N, D), normalised here.
        labels: (N,) int64 in 0..C-1, labels of the bank.
        ks: numbers of neighbours.

    Raises:
        ValueError: a k is not in 1..N, the temperature is not above 0, or a feature is not finite.
    """
    if temperature <= 0 or not ks or not 1 <= min(ks) <= max(ks) <= len(bank):
        raise ValueError(
            f"ks {tuple(ks)}, temperature {temperature}: give 1 <= k <= {len(bank)} (features in the bank) and a "
            "temperature above 0"
        )
    check_finite(queries, of="query")
    check_finite(bank, of="bank")
    bank, most = F.normalize(bank, dim=1), max(ks)
    parts: list[Tensor] = []
    for chunk in torch.split(F.normalize(queries, dim=1), max(1, CHUNK // len(bank))):
        nearest = (chunk @ bank.T).topk(most, dim=1)
        weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
        voters = labels[nearest.indices]
        parts.append(torch.stack([_votes(weights[:, :k], voters[:, :k], classes) for k in ks]))
    return torch.cat(parts, dim=1)


def _votes(weights: Tensor, voters: Tensor, classes: int) -> Tensor:
    """Return the sum of the weights (Q, k) by class of the voters (Q, k), (Q, C); -inf for a class without voters."""
    votes = weights.new_zeros(len(weights), classes).scatter_add_(1, voters, weights)
    voted = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, voters, True)
    return votes.where(voted, -torch.inf)
