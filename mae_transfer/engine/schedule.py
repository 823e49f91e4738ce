"""Learning rates as a pure function of the step: linear warm-up from zero, then a curve. Nothing about a schedule is ever stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import NonNegativeFloat

from mae_transfer.config import Schema

CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}
"""Progress after the warm-up, 0..1 -> share of the way from `min_lr` up to the peak."""


class Schedule(Schema):
    """How the learning rate moves over a run; it changes at every step."""

    kind: Literal["cosine"] = "cosine"
    """Shape after the warm-up: an entry of CURVES."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the rate climbs linearly from 0 to its peak; fractions count."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the run (absolute, before the layer's lr_scale)."""


def lr_at(step: int, *, schedule: Schedule, peak: float, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the 0-based `step` of a run of `steps` (MAE, table 8: per-iteration, linear warm-up, half a cosine).

    Args:
        peak: the rate where the warm-up ends (see optim.peak_lr).
        steps_per_epoch: what makes `warmup_epochs` a number of steps.
    Raises:
        ValueError: the warm-up is longer than the run.
    """
    warmup = schedule.warmup_epochs * steps_per_epoch
    if warmup > steps:
        raise ValueError(f"warmup_epochs={schedule.warmup_epochs:g} is {warmup:g} steps, but the run has {steps}: shorten it or train longer")
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(steps - warmup, 1.0)
    return schedule.min_lr + (peak - schedule.min_lr) * CURVES[schedule.kind](min(progress, 1.0))
