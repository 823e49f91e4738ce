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

    Of equal scores the first class counts as the better one, on every device, as argmax takes it. A label whose score is NaN or -inf (no answer) is
    never right, and a NaN of another class counts as better.

    Args:
        scores: (..., B, C).
        labels: (B,) int64.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])
    first = torch.arange(scores.shape[-1], device=scores.device) < labels[:, None]
    before = (~(scores <= own) | ((scores == own) & first)).sum(dim=-1)  # NaN is neither above nor below
    answered = own[..., 0] > -torch.inf
    return torch.stack([((before < k) & answered).sum(dim=-1) for k in top_ks(scores.shape[-1])])
