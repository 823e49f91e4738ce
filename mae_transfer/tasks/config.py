"""The parts of configs that several tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from mae_transfer.arithmetic import Matmul
from mae_transfer.bounds import Between, Count, Epochs, Seed
from mae_transfer.config import Schema
from mae_transfer.core.normalize import Mean, Statistics, Std
from mae_transfer.engine.optim import OptimConfig
from mae_transfer.engine.schedule import Anneal, Schedule
from mae_transfer.engine.state import Precision, RunConfig

if TYPE_CHECKING:
    from mae_transfer.data.config import BaseDataConfig


class RunnableConfig(Schema):
    """Options of every run, training or evaluation."""

    if TYPE_CHECKING:
        data: BaseDataConfig  # each task has its own kind

    keeps_features: ClassVar[bool] = False
    """Whether the run uses features that `run.features` keeps."""

    scale: Literal["mini", "small", "paper"]
    """How close the run is to the paper's. It is printed beside every number."""
    mean: Mean | None = None
    """Mean per channel on the scale [0, 1], to normalise images. None: that of the backbone's pretraining."""
    std: Std | None = None
    """Standard deviation per channel. Set both `mean` and `std`, or neither."""
    precision: Precision = "bfloat16"
    """Arithmetic of the forward pass. Weights stay float32, and so do k-NN similarities."""
    seed: Seed = 0
    """Seed of every random draw."""
    run: RunConfig = RunConfig()
    """Execution options. They change numbers by rounding, or by other random draws of the same kind."""

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"mean = {self.mean} and std = {self.std}: set both with one value per channel, or neither to use the "
                "backbone's own"
            )
        return self

    @model_validator(mode="after")
    def _device_can(self) -> Self:
        if self.run.augment_on == "device" and not self.augments_on_device():
            raise ValueError(
                "run.augment_on = 'device': only task 'joint', and task 'classify' with data.augmentation "
                "'rand_augment', can augment there; remove it"
            )
        if self.run.decode_on == "device" and not self.decodes_on_device():
            raise ValueError(
                "run.decode_on = 'device': only pretraining and classification can decode there, one crop per image "
                "without jitter, 'rand_augment' with run.augment_on = 'device'; remove it"
            )
        return self

    def decodes_on_device(self) -> bool:
        """Return whether the run may set run.decode_on = "device"."""
        return False

    def augments_on_device(self) -> bool:
        """Return whether the run may set run.augment_on = "device"."""
        return False

    @property
    def statistics(self) -> Statistics | None:
        """Mean and standard deviation of the config. None: use the backbone's."""
        return None if self.mean is None or self.std is None else Statistics(self.mean, self.std)


class TrainConfig(RunnableConfig):
    """Options of every training run."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "schedule.warmup_epochs": 0.5,
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    epochs: Epochs
    """Passes over the training images. Each pass gives `data.crops_per_image` crops per image."""
    batch: Count
    """Crops per optimizer step, over all devices and micro-steps."""
    optim: OptimConfig
    """Optimizer."""
    schedule: Schedule = Schedule()
    """Learning rate over the run."""
    matmul: Matmul = "ieee"
    """Arithmetic of float32 matrix products and convolutions on CUDA: "ieee", or "tf32", which is faster and has 10
    bits of mantissa. It concerns float32 runs, the heads, and the evaluation of detectors. Torch's own default is tf32
    for convolutions and ieee for matrix products; runs of versions without this option used it. Targets, tokenizers
    and k-NN are always ieee."""
    ema_decay: Between | Anneal | None = None
    """Average the weights with this decay per step, which may change over the run: dict(start=0.996, end=1.0,
    epochs="100%"). The average is evaluated, drawn and exported, but not with objective.exported = "trained" (MoCo v3,
    MoBY), where it is only the teacher. None: no average."""
    evaluate_epochs: Epochs | None = None
    """Epochs between two evaluations. None: evaluate at the end only."""

    @model_validator(mode="after")
    def _decay_fits(self) -> Self:
        decay = self.ema_decay
        if isinstance(decay, Anneal) and not (0 < decay.start < 1 and decay.end <= 1):
            raise ValueError(
                f"ema_decay: {decay.start:g} to {decay.end:g}: start between 0 and 1, and end at 1.0 or below"
            )
        return self
