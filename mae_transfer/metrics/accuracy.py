"""Top-k accuracy, counted on the device. Legend: B images, C classes; "..." are optional dimensions, such as probes."""

from __future__ import annotations

import torch
from torch import Tensor

TOP = (1, 5)


def top_ks(classes: int) -> tuple[int, ...]:
    """Return the values of k for which top-k accuracy is meaningful with this number of classes."""
    return tuple(k for k in TOP if k < classes) or (1,)


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the number of images whose label is among the k best scores, (len(ks), ...) int64 with ks = top_ks(C).

    Among equal scores the first class ranks higher on every device, as in argmax. A label with a score of NaN or -inf
    (no prediction) never counts as correct. NaN scores of other classes rank higher than the label.

    Args:
        scores: (..., B, C).
        labels: (B,) int64.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])
    first = torch.arange(scores.shape[-1], device=scores.device) < labels[:, None]
    before = (~(scores <= own) | ((scores == own) & first)).sum(dim=-1)  # comparisons with NaN are false
    predicted = own[..., 0] > -torch.inf
    return torch.stack([((before < k) & predicted).sum(dim=-1) for k in top_ks(scores.shape[-1])])
