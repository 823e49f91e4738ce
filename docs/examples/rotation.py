"""Predict which of four orientations an image is in (Gidaris et al., arXiv 1803.07728).

Legend: B batch, S pixels per side.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.core.normalize import normalize
from mae_transfer.data import Crops, DataConfig, evaluation_views, open_sources, training_views
from mae_transfer.engine.loop import Step
from mae_transfer.engine.state import autocast
from mae_transfer.interfaces import Batch
from mae_transfer.models.heads import Classifier, Tune, freeze
from mae_transfer.tasks.backbones import BackboneConfig
from mae_transfer.tasks.sweep import EVALUATION_SEED, mean_of_sums, unread
from mae_transfer.tasks.transfer import Transfer, TransferConfig

TURNS = 4  # of 90 degrees


class RotationConfig(TransferConfig):
    """A rotation run."""

    task: Literal["rotation"] = "rotation"
    """Which task the file configures."""
    data: DataConfig = DataConfig()
    """Images and their augmentation; labels are not used."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone; --backbone sets its reference."""
    tune_blocks: Tune = 0
    """How many of the last blocks train with the classifier: a number, "half" of the last one, or "all"."""


class Rotation(Transfer[RotationConfig]):
    """A rotation run: a classifier of four orientations on the backbone."""

    name = "rotation"
    uses_labels = False

    @property
    def method(self) -> str:
        return f"rotation-{self.cfg.tune_blocks}"

    def open(self) -> None:
        self.train_set, self.val_set = open_sources(self.cfg.data)
        if self.val_set is None:
            raise ValueError("data.val is not set: rotation evaluates on images that it does not train on")
        self.sources = {"train": self.train_set, "val": self.val_set}
        self.load_backbone({"image_size": self.cfg.data.size, "final_norm": False})

    def training_samples(self) -> Crops:
        return Crops(source=self.train_set, augmentation=training_views(self.cfg.data), seed=self.cfg.seed)

    def model(self) -> nn.Module:
        freeze(self.backbone.model, self.cfg.tune_blocks)
        return Classifier(self.backbone.model, TURNS)

    def turned(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S) in all orientations, (4 B, 3, S, S), and their quarter turns, (4 B,) int64."""
        images = normalize(images, self.backbone.statistics)
        turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
        return torch.cat([images.rot90(k, dims=(2, 3)) for k in range(TURNS)]), turns

    def loss(self, model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        images, turns = self.turned(batch.image)
        return F.cross_entropy(model(images).float(), turns), {}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        policy, seen, right = self.cfg.data.unreadable(), 0, torch.zeros((), device=self.dist.device)
        samples = Crops(source=self.val_set, augmentation=evaluation_views(self.cfg.data), seed=EVALUATION_SEED)
        for batch in self.sweep(samples, policy):
            images, turns = self.turned(batch.image)
            with autocast(self.cfg.precision, self.dist.device):
                right += (model(images).argmax(dim=1) == turns).sum()
            seen += len(turns)
        return mean_of_sums({"top1": right}, seen, self.dist) | unread(policy, self.dist)
