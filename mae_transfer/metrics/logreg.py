"""Multinomial logistic regression with an l2 penalty, by preconditioned L-BFGS on the device.

Plain L-BFGS needs hundreds of passes over features whose variances differ by orders of magnitude, as those of a ViT do.
Here it searches along the principal axes of the features, scaled by the curvature that the objective has at zero
weights: covariance / C for the cross-entropy, and the penalty. The minimum stays the same.

Legend: N features, D width, C classes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.data.reports import report_on_main
from mae_transfer.metrics.features import gram, widen

MOST_STEPS = 1000
HISTORY = 10  # pairs of L-BFGS
CHUNK = 2**20  # logits computed at a time
HALVINGS = 20  # most shorter steps before the search ends


class LogReg(NamedTuple):
    """A linear classifier, in float64."""

    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    gradient: float = math.inf  # largest component of the gradient of the objective divided by c * N, which tends to 0

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits (n, C) of features (n, D)."""
        return F.linear(features, self.weight.to(features), self.bias.to(features))


class Axes(NamedTuple):
    """The principal axes of features."""

    mean: Tensor  # (D,)
    variances: Tensor  # (D,)
    axes: Tensor  # (D, D), one per column


def find_axes(features: Tensor) -> Axes:
    """Return the principal axes of features (N, D)."""
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    mean = features.mean(dim=0)
    variances, axes = torch.linalg.eigh(gram(features, widen(mean)) / len(features))
    return Axes(*(one.to(features.device, wide) for one in (mean, variances.clamp(min=0), axes)))


def fit_path(features: Tensor, labels: Tensor, *, classes: int, cs: Sequence[float]) -> list[LogReg]:
    """Return the fit of each c, each from the weights of the one before. See `fit_logreg`."""
    models: list[LogReg] = []
    axes = find_axes(features)
    for c in cs:
        start = models[-1] if models else None
        models.append(fit_logreg(features, labels, classes=classes, c=c, start=start, axes=axes))
    return models


def fit_logreg(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    c: float,
    start: LogReg | None = None,
    axes: Axes | None = None,
    tolerance: float = 1e-5,
    most_steps: int = MOST_STEPS,
) -> LogReg:
    """Minimise |W|^2 / 2 + c * (sum of the cross-entropies), as scikit-learn's LogisticRegression does.

    Logits and products with the features have their precision: float64 for exact coefficients, float32 for speed. Sums
    are float64, because sums in float32 would end the search too early.

    Args:
        features: (N, D), finite.
        labels: (N,) int64 in 0..C-1.
        c: inverse strength of the penalty. The bias has none.
        start: weights to start from, for instance those of another `c`.
        axes: of the features, if they are known.
        tolerance: stop if no component of the gradient of the objective, divided by c * N, is larger; or if rounding
            allows no progress.
        most_steps: stop after this many steps of L-BFGS.
    """
    mean, variances, turn = axes or find_axes(features)
    scale, share = 1.0 / (c * len(features)), classes**-0.5
    shrink = (share**2 * variances + scale).rsqrt()

    def model(point: Tensor) -> LogReg:
        weight = (point[:, :-1] * shrink) @ turn.T
        return LogReg(weight, point[:, -1] / share - weight @ mean)

    def objective(point: Tensor) -> tuple[float, Tensor, float]:
        """Return the objective divided by c * N, its gradient at a point, and its largest component by the weights."""
        weight, bias, _ = model(point)
        loss, of_weight, of_bias = _cross_entropy(features, labels, weight, bias)
        of_weight = of_weight + scale * weight
        largest = torch.maximum(of_weight.abs().max(), of_bias.abs().max())
        turned = ((of_weight - of_bias[:, None] * mean) @ turn) * shrink
        gradient = torch.cat([turned, of_bias[:, None] / share], dim=1)
        value, most = torch.stack([loss + scale / 2 * weight.square().sum(), largest]).tolist()
        return value, gradient, most

    point = variances.new_zeros(classes, len(mean) + 1)
    if start is not None:
        point = torch.cat([start.weight @ turn / shrink, (start.bias + start.weight @ mean)[:, None] * share], dim=1)
    point, largest = _minimise(objective, point, tolerance, most_steps, rounding=torch.finfo(features.dtype).eps)
    if largest > tolerance:
        report_on_main(
            f"logistic regression with C = {c:g} ended before its minimum (gradient {largest:.1e}, tolerance "
            f"{tolerance:g}): leave C this large out of cs"
        )
    return model(point)._replace(gradient=largest)


def _cross_entropy(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean cross-entropy and its gradients by weight and bias, in the type of the weight."""
    loss, of_weight, of_bias = weight.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(bias)
    narrow, rows = LogReg(weight.to(features), bias.to(features)), max(1, CHUNK // len(bias))
    for part, truth in zip(features.split(rows), labels[:, None].split(rows), strict=True):
        scores = narrow(part).log_softmax(dim=1)
        loss -= scores.gather(1, truth).sum(dtype=loss.dtype)
        residual = scores.exp_().scatter_add_(1, truth, scores.new_full(truth.shape, -1.0))
        of_weight += residual.T @ part
        of_bias += residual.sum(dim=0, dtype=loss.dtype)
    return loss / len(features), of_weight / len(features), of_bias / len(features)


def _minimise(
    objective: Callable[[Tensor], tuple[float, Tensor, float]],
    point: Tensor,
    tolerance: float,
    most_steps: int,
    *,
    rounding: float,
) -> tuple[Tensor, float]:
    """Minimise a convex function by L-BFGS (Nocedal and Wright, algorithm 7.4).

    A step of the line search is accepted if the slope has lost a tenth and the value has not grown by more than
    rounding does: the value alone is too inexact near the minimum (Hager and Zhang, 2005, section 2).

    Args:
        objective: returns a value, its gradient, and what must not be larger than the tolerance.
    Returns:
        The point, and what `objective` returned there for the tolerance.
    """
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)
    value, gradient, largest = objective(point)
    for _ in range(most_steps):
        if largest <= tolerance:
            break
        way = _direction(gradient, pairs)
        slope, length = (gradient * way).sum().item(), 1.0
        for _ in range(HALVINGS):
            new, its_gradient, its_largest = objective(point + length * way)
            its_slope = (its_gradient * way).sum().item()
            if new <= value + rounding * abs(value) and its_slope <= -0.9 * slope:
                break
            root = -slope / (its_slope - slope) if its_slope > slope else 0.5  # of a linear slope
            length *= min(max(root, 0.1), 0.5)
        else:
            break
        if its_slope > slope:
            pairs.append((length * way, its_gradient - gradient))
        point, value, gradient, largest = point + length * way, new, its_gradient, its_largest
    return point, largest


def _direction(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the way of the next step, given the last changes of point and gradient."""
    way, kept = -gradient, []
    for step, change in reversed(pairs):
        share = (step * way).sum() / (step * change).sum()
        kept.append(share)
        way = way - share * change
    if pairs:
        step, change = pairs[-1]
        way = way * (step * change).sum() / change.square().sum()
    for (step, change), share in zip(pairs, reversed(kept), strict=True):
        way = way + (share - (change * way).sum() / (step * change).sum()) * step
    return way
