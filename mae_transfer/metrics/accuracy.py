"""Top-k accuracy, counted on the device. Legend: B images, C classes; "..." is whatever shares the images: a row of probes, or nothing."""

from __future__ import annotations

import torch
from torch import Tensor

TOP = (1, 5)


def top_ks(classes: int) -> tuple[int, ...]:
    """Return the k whose top-k accuracy says anything for this number of classes."""
    return tuple(k for k in TOP if k < classes) or (1,)


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many images have their label among the k best scores, (len(ks), ...) int64 with ks = top_ks(C).

    Args:
        scores: (..., B, C), finite.
        labels: (B,) int64.
    """
    ks = top_ks(scores.shape[-1])
    right = scores.topk(ks[-1], dim=-1).indices == labels[:, None]
    return torch.stack([right[..., :k].any(dim=-1).sum(dim=-1) for k in ks])
