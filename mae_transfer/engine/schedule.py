"""Learning rates as a pure function of the step: linear warm-up, then a curve or steps down. Nothing about a schedule is ever stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from mae_transfer.bounds import Epochs, Factor, NonNegative, Probability, Weight
from mae_transfer.config import Schema

CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
    "linear": lambda t: 1.0 - t,
    "constant": lambda t: 1.0,
}
"""Progress after the warm-up, 0..1 -> share of the way from `min_lr` up to the peak."""


class Schedule(Schema):
    """How the learning rate moves over a run; it changes at every step."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up: an entry of CURVES ("linear" is mmsegmentation's poly of power 1)."""
    milestones: tuple[Epochs, ...] = ()
    """Epochs after which the rate is multiplied by `gamma`, on top of the shape: with "constant", the step schedule of detection and SimMIM."""
    gamma: Factor = 0.1
    """Factor at each milestone."""
    warmup_epochs: NonNegative = 0.0
    """Epochs over which the rate climbs linearly to its peak; fractions of an epoch and of a step count (ViTDet-H: 187.5 steps)."""
    warmup_factor: Probability = 0.0
    """Share of the peak at which the warm-up begins."""
    min_lr: Weight = 0.0
    """Learning rate at the end of the run (absolute, before the layer's lr_scale)."""


def lr_at(step: int, *, schedule: Schedule, peak: float, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the 0-based `step` of a run of `steps` (MAE, table 8: per-iteration, linear warm-up, half a cosine).

    Args:
        peak: the rate where the warm-up ends (see optim.peak_lr).
        steps_per_epoch: what makes `warmup_epochs` a number of steps.
    Raises:
        ValueError: the warm-up is longer than the run.
    """
    warmup = in_steps(schedule.warmup_epochs, steps_per_epoch)
    if warmup > steps:
        raise ValueError(f"warmup_epochs={schedule.warmup_epochs:g} is {warmup:g} steps, but the run has {steps}: shorten it or train longer")
    if step < warmup:
        return peak * (schedule.warmup_factor + (1.0 - schedule.warmup_factor) * step / warmup)
    progress = (step - warmup) / max(steps - warmup, 1.0)
    passed = sum(step >= in_steps(milestone, steps_per_epoch) for milestone in schedule.milestones)
    return schedule.gamma**passed * (schedule.min_lr + (peak - schedule.min_lr) * CURVES[schedule.kind](min(progress, 1.0)))


def in_steps(epochs: float, steps_per_epoch: int) -> float:
    """Return epochs as steps, a fraction included, to the millionth: 187.5 / 1832 epochs of 1832 steps are 187.5 steps, whatever the rounding."""
    return round(epochs * steps_per_epoch, 6)
