"""What targets with one class per patch share. Legend: B batch, M requested patches, P classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.interfaces import Target


class ClassTarget(Target):
    """One class per patch, (B, M) int64, with cross-entropy as the loss."""

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each patch, (B, M) float32, for scores (B, M, P)."""
        return F.cross_entropy(pred.float().flatten(0, 1), target.flatten(), reduction="none").view(target.shape)

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the accuracy, the perplexity of the prediction, and the share of the P classes that targets use."""
        used = torch.zeros(pred.shape[2], device=pred.device).index_fill_(0, target.flatten(), 1.0)
        right = (pred.argmax(dim=2) == target).float().mean()
        return {"accuracy": right, "perplexity": self.loss(pred, target).mean().exp(), "classes_used": used.mean()}
