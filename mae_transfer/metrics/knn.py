"""Weighted k-nearest-neighbour classification of frozen features (DINO, Caron et al., arXiv 2104.14294, section 4.1), exact and in chunks.

Legend: Q queries, N features of the bank, D width, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**27  # similarities held at a time: half a GiB of float32


def knn_scores(queries: Tensor, bank: Tensor, labels: Tensor, *, classes: int, ks: Sequence[int], temperature: float = 0.07) -> Tensor:
    """Return each class's votes, (len(ks), Q, C): every one of the k most similar features votes for its class with exp(cosine / temperature).

    Args:
        queries: (Q, D), of any length: normalised here, as the bank is.
        bank: (N, D).
        labels: (N,) int64 in 0..C-1, of the bank.
        ks: numbers of neighbours.
    Raises:
        ValueError: a k is not in 1..N, or the temperature is not above 0.
    """
    if temperature <= 0 or not ks or not 1 <= min(ks) <= max(ks) <= len(bank):
        raise ValueError(f"ks {tuple(ks)}, temperature {temperature}: need 1 <= k <= {len(bank)} (the features at hand) and a temperature above 0")
    bank, most = F.normalize(bank, dim=1), max(ks)
    parts: list[Tensor] = []
    for chunk in torch.split(F.normalize(queries, dim=1), max(1, CHUNK // len(bank))):
        nearest = (chunk @ bank.T).topk(most, dim=1)
        weights = (nearest.values / temperature).exp()
        voters = labels[nearest.indices]
        parts.append(torch.stack([weights.new_zeros(len(chunk), classes).scatter_add_(1, voters[:, :k], weights[:, :k]) for k in ks]))
    return torch.cat(parts, dim=1)
