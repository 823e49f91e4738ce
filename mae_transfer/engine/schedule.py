"""Values that move during a run, as pure functions of the step. They have no state.

The learning rate has a linear warm-up, then a curve or milestones. Other values follow half a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, NamedTuple

from mae_transfer.bounds import Epochs, Factor, NonNegative, Probability, ShareOfRun, Weight
from mae_transfer.config import Schema

if TYPE_CHECKING:
    from torch import nn

CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
    "linear": lambda t: 1.0 - t,
    "constant": lambda t: 1.0,
}
"""Progress after the warm-up, 0..1 -> position between `min_lr` (0) and the peak (1)."""


class Schedule(Schema):
    """The learning rate over a run. It changes at every step."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up: an entry of CURVES ("linear" is mmsegmentation's poly of power 1)."""
    milestones: tuple[Epochs | ShareOfRun, ...] = ()
    """Times at which the rate is multiplied by `gamma`, on top of the shape: epochs, or shares of the run ("88%"),
    which scale with `epochs`. With "constant", this is the step schedule of detection and SimMIM."""
    gamma: Factor = 0.1
    """Factor at each milestone."""
    warmup_epochs: NonNegative | ShareOfRun = 0.0
    """Length of the linear warm-up: epochs, or a share of the run ("10%"), which scales with `epochs`. It can be a
    fraction of an epoch or of a step (ViTDet-H: 187.5 steps)."""
    warmup_factor: Probability = 0.0
    """Rate at the start of the warm-up, as a share of the peak."""
    min_lr: Weight = 0.0
    """Learning rate at the end of the run (absolute, before the layer's lr_scale)."""


class Anneal(Schema):
    """A value that follows half a cosine from `start` to `end` and then stays."""

    start: Weight
    """Value at step 0."""
    end: Weight
    """Value from `epochs` on."""
    epochs: Epochs | ShareOfRun
    """Length of the change: epochs, which may be a fraction, or a share of the run ("60%")."""

    def at(self, step: int, *, steps_per_epoch: int, steps: int) -> float:
        """Return the value at a 0-based step of a run of `steps`; ValueError if the run ends before the change does."""
        length = in_steps(self.epochs, steps_per_epoch, steps=steps)
        if length > steps:
            raise ValueError(
                f"epochs={_shown(self.epochs)} of an annealed value is {length:g} steps, but the run has {steps}: "
                'shorten it, give a share of the run (epochs="60%"), or train longer'
            )
        progress = min(step / length, 1.0) if length else 1.0
        return self.end + (self.start - self.end) * CURVES["cosine"](progress)


class Rates(NamedTuple):
    """What an optimizer step uses. None: the value does not move."""

    lr: float
    weight_decay: float | None = None
    ema_decay: float | None = None
    frozen: Collection[nn.Parameter] = ()
    """Parameters that this step leaves as they are: neither gradient, moments nor weight decay reach them."""


def moving(value: float | Anneal | None, step: int, *, steps: int, steps_per_epoch: int) -> float | None:
    """Return the value of an Anneal at a 0-based step; None if the value does not move."""
    return value.at(step, steps=steps, steps_per_epoch=steps_per_epoch) if isinstance(value, Anneal) else None


def lr_at(step: int, *, schedule: Schedule, peak: float, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the 0-based `step` of a run of `steps`.

    MAE, table 8: per iteration, linear warm-up, half a cosine.

    Args:
        peak: the rate at the end of the warm-up (see optim.peak_lr).
        steps_per_epoch: converts epochs into steps.
    Raises:
        ValueError: the warm-up is longer than the run, or a milestone is not before its end.
    """
    warmup = in_steps(schedule.warmup_epochs, steps_per_epoch, steps=steps)
    if warmup > steps:
        raise ValueError(
            f"schedule.warmup_epochs={_shown(schedule.warmup_epochs)} is {warmup:g} steps, but the run has {steps}: "
            'shorten it, give a share of the run (schedule.warmup_epochs="10%"), or train longer'
        )
    milestones = [in_steps(milestone, steps_per_epoch, steps=steps) for milestone in schedule.milestones]
    if late := [given for given, at in zip(schedule.milestones, milestones, strict=True) if at >= steps]:
        raise ValueError(
            f"schedule.milestones: {_shown(late[0])} is not before the end of the run, {steps / steps_per_epoch:g} "
            'epochs; give shares of the run (schedule.milestones=("88%","96%")), earlier epochs, or train longer'
        )
    if step < warmup:
        return peak * (schedule.warmup_factor + (1.0 - schedule.warmup_factor) * step / warmup)
    progress = (step - warmup) / max(steps - warmup, 1.0)
    passed = sum(step >= milestone for milestone in milestones)
    return schedule.gamma**passed * (
        schedule.min_lr + (peak - schedule.min_lr) * CURVES[schedule.kind](min(progress, 1.0))
    )


def in_steps(time: float | str, steps_per_epoch: int, *, steps: int = 0) -> float:
    """Convert epochs, or a share of a run of `steps` ("10%"), into steps, rounded to a millionth.

    The rounding makes 187.5 / 1832 epochs of 1832 steps exactly 187.5 steps.
    """
    if isinstance(time, str):
        return round(float(time.removesuffix("%")) / 100 * steps, 6)
    return round(time * steps_per_epoch, 6)


def _shown(time: float | str) -> str:
    return time if isinstance(time, str) else f"{time:g}"
