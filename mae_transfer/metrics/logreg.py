"""Multinomial logistic regression with an l2 penalty, by L-BFGS on the device.

Legend: N features, D width, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_STEPS = 1000
HISTORY = 10  # pairs of L-BFGS


class LogReg(NamedTuple):
    """A linear classifier, in float64."""

    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    gradient: float = math.inf  # largest component of the gradient of the objective divided by c * N, which tends to 0

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits (n, C) of features (n, D)."""
        return F.linear(features, self.weight.to(features), self.bias.to(features))


def fit_logreg(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    c: float,
    start: LogReg | None = None,
    tolerance: float = 1e-5,
    most_steps: int = MOST_STEPS,
) -> LogReg:
    """Minimise |W|^2 / 2 + c * (sum of the cross-entropies), as scikit-learn's LogisticRegression does.

    Products with the features have their precision: float64 for exact coefficients, float32 for speed. All else is
    float64, because sums in float32 would end the search too early.

    Args:
        features: (N, D), finite.
        labels: (N,) int64 in 0..C-1.
        c: inverse strength of the penalty. The bias has none.
        start: weights to start from, for instance those of another `c`.
        tolerance: stop if no component of the gradient of the objective, divided by c * N, is larger; or if rounding
            allows no progress.
        most_steps: stop after this many steps of L-BFGS.
    """
    scale, wide = 1.0 / (c * len(features)), torch.float32 if features.device.type == "mps" else torch.float64
    weight, bias = (
        (features.new_zeros(classes, features.shape[1], dtype=wide), features.new_zeros(classes, dtype=wide))
        if start is None
        else (start.weight.clone(), start.bias.clone())
    )
    parameters, least = [weight.requires_grad_(), bias.requires_grad_()], torch.finfo(wide).eps / 10
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=most_steps, tolerance_grad=tolerance, tolerance_change=least,
        history_size=HISTORY, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = LogReg(weight, bias)(features).to(wide)
        loss = F.cross_entropy(logits, labels) + scale / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
        objective()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
    return LogReg(weight.detach(), bias.detach(), largest.item())
