"""Figures of the frozen backbone while it is pretrained: k-NN, a ridge classifier, statistics.

The loss does not say whether features are useful. A monitor does, on labelled images that the pretraining never uses.
It changes no number of the pretraining: it draws nothing, and the config's digest leaves it out.

Legend: N images, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mae_transfer.bounds import Count, Epochs
from mae_transfer.config import Schema, validate
from mae_transfer.core.normalize import Statistics
from mae_transfer.data import (
    AnyImages,
    BaseDataConfig,
    Crops,
    FolderConfig,
    LabelledDataConfig,
    evaluation_views,
    open_labelled,
    pick_evenly,
)
from mae_transfer.data.reports import report_on_main
from mae_transfer.data.transforms import SHORTER_SIDE, Enlarged
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.state import Precision, RunConfig
from mae_transfer.interfaces import Backbone, Batch
from mae_transfer.models.heads import Pool
from mae_transfer.tasks.sweep import EVALUATION_SEED, gather, interruptible, mean_of_sums, sweep_over, workers_of

PARTS = ("train", "val")


class MonitorDataConfig(BaseDataConfig):
    """The labelled images of a monitor. They are cropped to the size of the pretraining's images."""

    train: AnyImages = FolderConfig(split="train")
    """The images that classifiers learn from."""
    val: AnyImages = FolderConfig(split="val")
    """The images to classify."""
    shorter_side: Enlarged = SHORTER_SIDE
    """Resize an image to just cover this many times the crop's size, then crop the centre."""

    def labelled(self, size: int | tuple[int, int]) -> LabelledDataConfig:
        """Return the data config of an evaluation at this size."""
        return validate({**self.model_dump(), "size": size}, LabelledDataConfig, where="monitor.data")


class MonitorConfig(Schema):
    """What to measure during a pretraining, and how often."""

    data: MonitorDataConfig
    """Labelled images: --set monitor.data.root=/data/imagenet for folders train/<class> and val/<class>."""
    every_epochs: Epochs = 20.0
    """Epochs between two measurements. The end of the run is always measured."""
    images: Count = 10_000
    """Most training images, spread evenly over the set. They stay in memory, decoded: 150 kB each at 224 px."""
    val_images: Count = 2_500
    """The same for validation images."""
    evaluators: tuple[Literal["knn", "ridge", "statistics"], ...] = Field(
        default=("knn", "ridge", "statistics"), min_length=1
    )
    """What to measure: accuracy of k-NN, accuracy of a ridge classifier whose penalty is selected on held-out training
    images, and statistics (effective rank and spread of the features, entropy of the attention)."""
    ks: tuple[Count, ...] = Field(default=(5, 20), min_length=1)
    """Numbers of neighbours of k-NN. Each gives a figure."""
    pool: Pool = "mean"
    """Features of an image, after the final norm: the mean of the patch tokens, or the class token ("cls")."""


@contextmanager
def naming_monitor() -> Iterator[None]:
    """Begin the message of a ValueError in the block with the key that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"monitor: {error}") from None


class Monitor:
    """Measures a backbone on labelled images, which are decoded once. Each process holds its part of them."""

    def __init__(
        self,
        cfg: MonitorConfig,
        *,
        size: int | tuple[int, int],
        statistics: Statistics,
        precision: Precision,
        run: RunConfig,
        dist: Dist,
    ) -> None:
        """Open the data sets. ValueError if a set is missing or unlabelled, or there are too few images.

        Args:
            size: pixels per side of the backbone's images, or height and width.
            statistics: mean and standard deviation that normalise them.
        """
        self.cfg, self.statistics, self.precision, self.run, self.dist = cfg, statistics, precision, run, dist
        self.data = cfg.data.labelled(size)
        with naming_monitor():
            split, val = open_labelled(self.data)
        self.sources = {"train": pick_evenly(split.train, cfg.images), "val": pick_evenly(val, cfg.val_images)}
        self.classes = len(val.classes)
        self.kept: dict[str, list[Batch]] = {}
        if (fewest := min(map(len, self.sources.values()))) < dist.world:
            raise ValueError(f"monitor: a set has {fewest} images for {dist.world} processes: give one each at least")

    def read(self) -> None:
        """Decode the images, and judge features of zeros, so that what cannot be measured fails before the first step.

        Every rank calls it.

        Raises:
            ValueError: there are too few images for `ks`, or every class has one, so that no penalty can be selected.
        """
        if self.kept:
            return
        host = replace(self.dist, device=torch.device("cpu"))
        view, run = evaluation_views(self.data, shorter_side=self.data.shorter_side), self.run
        for part, source in self.sources.items():
            samples, policy = Crops(source=source, augmentation=view, seed=EVALUATION_SEED), self.data.unreadable()
            batches = sweep_over(samples, host, batch=run.evaluation_batch, workers=workers_of(run), unreadable=policy)
            self.kept[part] = [batch.apply(torch.clone) for batch in batches]  # out of the workers' shared memory
        labels = [torch.cat([batch.label for batch in self.kept[part]]).to(self.dist.device) for part in PARTS]
        with naming_monitor():
            self._judge(*((torch.zeros(len(one), 1, device=one.device), one) for one in labels))

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        """Return the figures of a backbone in eval mode, without gradients. Every rank calls it.

        Features that are not finite do not stop the training: the only figure is their share.
        """
        from mae_transfer.metrics.features import count_broken
        from mae_transfer.tasks.evaluation import extract

        train, val = (
            extract(backbone, self.batches(part), self.statistics, self.cfg.pool, self.precision) for part in PARTS
        )
        broken = count_broken(torch.cat([train.features, val.features]))
        share = mean_of_sums({"share": broken}, len(train.labels) + len(val.labels), self.dist)["share"]
        if share:
            report_on_main(f"monitor: {share:.1%} of the features contain NaN or infinity, so nothing else is measured")
            return {"broken_features": share}
        return self._judge(train, val) | (self._attention(backbone) if "statistics" in self.cfg.evaluators else {})

    def _attention(self, backbone: Backbone) -> dict[str, float]:
        """Return the entropy of the attention on validation images, which is the same for any number of processes."""
        from mae_transfer.tasks.evaluation import attention_figures
        from mae_transfer.tasks.statistics import ATTENTION_IMAGES

        every = -(-len(self.sources["val"]) // ATTENTION_IMAGES)
        images = (batch.image[batch.index % every == 0].to(self.dist.device) for batch in self.kept["val"])
        return attention_figures(backbone, images, self.statistics, self.dist)

    def batches(self, part: str) -> Iterator[Batch]:
        """Yield this rank's decoded images of a part, on the device. A signal ends the pass (Stopped)."""
        kept, images = self.kept[part], len(self.sources[part])
        for batch in interruptible(kept, self.dist, images=images, batch=self.run.evaluation_batch):
            yield batch.to(self.dist.device)

    def _judge(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Return the figures of all evaluators, given this rank's parts of features and labels."""
        from mae_transfer.tasks.evaluation import Evaluator, LabelledFeatures
        from mae_transfer.tasks.knn import KNN
        from mae_transfer.tasks.ridge import Ridge
        from mae_transfer.tasks.statistics import FeatureStatistics

        known: dict[str, Evaluator] = {"knn": KNN(self.cfg.ks), "ridge": Ridge(), "statistics": FeatureStatistics()}
        whole = LabelledFeatures(*(gather(part, self.dist) for part in train))
        figures: dict[str, float] = {}
        for name in self.cfg.evaluators:
            figures |= known[name](whole, LabelledFeatures(*val), classes=self.classes, dist=self.dist)
        return figures
