"""Find tensors with NaN or infinity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def non_finite(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return "name (3 NaN, 1 infinite of 768)" for every tensor with a value that is not finite."""
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    return [f"{name} ({_counts(tensor)})" for name, tensor in items if not bool(torch.isfinite(tensor).all())]


def _counts(tensor: Tensor) -> str:
    counts = {"NaN": int(torch.isnan(tensor).sum()), "infinite": int(torch.isinf(tensor).sum())}
    return f"{', '.join(f'{count} {kind}' for kind, count in counts.items() if count)} of {tensor.numel()}"
