"""What the tasks that start from images alone have in common: pretraining and training a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer.bounds import Count
from mae_transfer.core.normalize import IMAGENET, Mean, Statistics, Std
from mae_transfer.data import (
    Crops,
    DataConfig,
    ImagesConfig,
    Masking,
    Samples,
    Source,
    evaluation_views,
    open_sources,
    pick_evenly,
    training_crops,
)
from mae_transfer.engine.optim import Decay, Group, param_groups, select_exempt
from mae_transfer.interfaces import ViewSpec
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.sweep import EVALUATION_SEED
from mae_transfer.tasks.task import Task


class ImageConfig(TrainConfig):
    """Options of a run that starts from images alone, without a backbone whose statistics it could use."""

    if TYPE_CHECKING:
        data: ImagesConfig

    mean: Mean = IMAGENET.mean
    """Mean per channel on the scale [0, 1], to normalise images."""
    std: Std = IMAGENET.std
    """Standard deviation per channel."""
    evaluate_images: Count = 2048
    """Images to evaluate on, spread evenly over the validation set (over the training set if there is none)."""
    pictures: Count = 8
    """Images to draw."""
    decay: Decay = "matrices"
    """Parameters with weight decay: matrices only, as in MAE, BEiT and DINO; also biases; or all, norms included, as in
    the code of MoCo v3."""
    later = frozenset({"decay"})
    trains: ClassVar[str]
    """What is trained, for messages."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.optim.layer_decay:
            raise ValueError(
                f"optim.layer_decay = {self.optim.layer_decay}: {self.trains} has one rate for all layers; leave it out"
            )
        if self.decay == "all" and self.optim.no_decay:
            raise ValueError(
                f"optim.no_decay = {self.optim.no_decay} has no effect with decay = 'all': remove one of them"
            )
        return self

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.mean, self.std)


C = TypeVar("C", bound=ImageConfig)


class ImageTask(Task[C]):
    """A run that starts from images alone and draws what it makes of some."""

    uses_labels = False
    views: tuple[ViewSpec, ...] = ()
    """Further renderings of each crop."""
    masking: Masking | None = None
    """What draws a mask for each crop."""
    train_set: Source
    held_out: Source
    """The images to evaluate on and to draw."""
    split: str
    """Where they come from: "val", or "train" if there is no validation set."""

    def open(self) -> None:
        train_set, val_set = open_sources(self.cfg.data)
        self.train_set = self.prepared(train_set, "train")
        held_out = self.prepared(train_set if val_set is None else val_set, "held out")
        self.set_held_out(held_out, "train" if val_set is None else "val", most=self.cfg.evaluate_images)
        self.sources = {self.split: self.held_out, "train": self.train_set}

    def prepared(self, source: Source, purpose: str) -> Source:
        """Return a source with what the task adds to its images."""
        return source

    def set_held_out(self, source: Source, split: str, *, most: int) -> None:
        """Evaluate on and draw up to `most` images of a source, spread evenly over it."""
        self.held_out, self.split = pick_evenly(source, most), split

    def training_samples(self) -> Samples[Any, Any]:
        assert isinstance(self.cfg.data, DataConfig)  # a task with views has its own samples
        return training_crops(
            self.cfg.data,
            self.train_set,
            self.views,
            seed=self.cfg.seed,
            masking=self.masking,
            decode_on=self.decode_on,
        )

    def held_out_samples(self, most: int | None = None) -> Crops:
        """Return the held-out images, or up to `most` of them, with masks that are the same in every run."""
        source = self.held_out if most is None else pick_evenly(self.held_out, most)
        views = evaluation_views(self.cfg.data, self.views)
        return Crops(source=source, augmentation=views, seed=EVALUATION_SEED, masking=self.masking)

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the parameter groups. By default vectors and biases have no weight decay (MAE, table 8)."""
        optim, exempt = self.cfg.optim, select_exempt(model, self.cfg.optim, default=())
        return param_groups(model, weight_decay=optim.weight_decay, no_decay=exempt, decay=self.cfg.decay)

    def save_pictures(self, step: int, rows: Tensor, titles: Sequence[str]) -> None:
        """Write panels (B, K, 3, H, W), a row for each image, below K titles."""
        from mae_transfer.draw.reconstructions import save_sheet

        save_sheet(self.folder.reconstructions / f"step_{step:08d}.png", rows, titles)

    def title(self) -> str:
        return (
            f"{self.method} ({self.cfg.scale} scale), {len(self.train_set)} training images, evaluated on "
            f"{len(self.held_out)} of the {self.split} split"
        )


def sheet(rows: list[Tensor]) -> Tensor:
    """Return rows of panels (B, K, 3, H, W) as one tensor; an empty one if there are none."""
    return torch.cat(rows) if rows else torch.zeros(0, 1, 3, 1, 1)
