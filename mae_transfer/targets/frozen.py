"""What every target shares: how it is called."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_transfer.arithmetic import exact
from mae_transfer.interfaces import Batch


class FrozenTarget(nn.Module):
    """Base of the targets. A call computes without gradient, outside autocast and in IEEE arithmetic: whatever the precision of the model that
    learns them, the targets are the same, and the same as in an evaluation or a cache.
    """

    def __call__(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the targets of patches `ids` (B, M)."""
        with torch.no_grad(), exact(ids.device):
            target: Tensor = super().__call__(batch, ids)
        return target
