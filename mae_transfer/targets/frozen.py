"""The base class of all targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae_transfer.arithmetic import exact
from mae_transfer.interfaces import Batch


class FrozenTarget(nn.Module):
    """Base class of targets. They are computed without gradients, outside autocast and in IEEE arithmetic.

    So targets do not depend on the precision of the model, and are the same in training, evaluation and a cache.
    """

    def __call__(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the targets of patches `ids` (B, M)."""
        with torch.no_grad(), exact(ids.device):
            target: Tensor = super().__call__(batch, ids)
        return target
