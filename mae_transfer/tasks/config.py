"""The part of the configs that all training tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from mae_transfer.arithmetic import Matmul
from mae_transfer.bounds import Between, Count, Epochs, Seed, Whole
from mae_transfer.config import Schema
from mae_transfer.core.normalize import IMAGENET, Mean, Statistics, Std
from mae_transfer.engine.optim import OptimConfig
from mae_transfer.engine.schedule import Schedule
from mae_transfer.engine.state import Precision, RunConfig
from mae_transfer.tasks.backbones import statistics_of

if TYPE_CHECKING:
    from mae_transfer.data.places import Places


class PicturesRun(RunConfig):
    """Execution options of a run that ends with pictures."""

    pictures: Whole = 8
    """Validation images to draw with ground truth and predictions (--visualize)."""


class NormalisedConfig(Schema):
    """Base of the configs with `mean` and `std` of the images."""

    if TYPE_CHECKING:
        mean: Mean | None
        std: Std | None

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        statistics_of(self.mean, self.std)
        return self

    @property
    def statistics(self) -> Statistics | None:
        """Mean and standard deviation of the config. None: use the backbone's."""
        return statistics_of(self.mean, self.std)


class TrainConfig(NormalisedConfig):
    """Options of every training run."""

    if TYPE_CHECKING:
        data: Places  # each task has its own kind

    scale: Literal["mini", "small", "paper"]
    """How close the run is to the paper's. It is printed beside every number."""
    epochs: Epochs
    """Passes over the training images. Each pass gives `data.crops_per_image` crops per image."""
    batch: Count
    """Crops per optimizer step, over all devices and micro-steps."""
    mean: Mean | None = None
    """Mean per channel on the scale [0, 1], to normalise images. None: that of the backbone's pretraining."""
    std: Std | None = None
    """Standard deviation per channel. Set both `mean` and `std`, or neither."""
    optim: OptimConfig
    """Optimizer."""
    schedule: Schedule = Schedule()
    """Learning rate over the run."""
    precision: Precision = "bfloat16"
    """Arithmetic of the forward pass. Weights stay float32."""
    matmul: Matmul = "ieee"
    """Arithmetic of float32 matrix products and convolutions on CUDA: "ieee", or "tf32", which is faster and has 10
    bits of mantissa. It concerns float32 runs, the heads, and the evaluation of detectors. Torch's own default is tf32
    for convolutions and ieee for matrix products; runs of versions without this option used it. Targets, tokenizers
    and k-NN are always ieee."""
    ema_decay: Between | None = None
    """Average the weights with this decay per step. The average is evaluated, drawn and exported. None: no average."""
    evaluate_epochs: Epochs | None = None
    """Epochs between two evaluations. None: evaluate at the end only."""
    seed: Seed = 0
    """Seed of every random draw."""
    run: RunConfig = RunConfig()
    """Execution options. They change no number."""


class ImageConfig(TrainConfig):
    """Options of a run that starts from images alone, without a backbone whose statistics it could use."""

    mean: Mean = IMAGENET.mean
    """Mean per channel on the scale [0, 1], to normalise images."""
    std: Std = IMAGENET.std
    """Standard deviation per channel."""

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.mean, self.std)
