"""Statistics without labels: effective rank and spread of frozen features, which show a collapse; attention entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mae_transfer.data import Crops, Source, evaluation_views, pick_evenly
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import Logger
from mae_transfer.metrics.features import check_finite, effective_rank, spread
from mae_transfer.tasks.evaluation import Evaluation, EvaluationConfig, LabelledFeatures, attention_figures
from mae_transfer.tasks.sweep import EVALUATION_SEED

ATTENTION_IMAGES = 256  # images whose attention is measured, evenly spread over a set


class StatisticsConfig(EvaluationConfig):
    """An evaluation of the features' distribution."""

    task: Literal["statistics"] = "statistics"
    """Which task the file configures."""

    def evaluator(self, train: Source) -> FeatureStatistics:
        return FeatureStatistics()


@dataclass(frozen=True)
class FeatureStatistics:
    """Measures the distribution of the training features."""

    def __call__(self, train: LabelledFeatures, val: LabelledFeatures, *, classes: int, dist: Dist) -> dict[str, float]:
        """Return effective rank and spread as shares of their largest values."""
        check_finite(train.features, of="training")
        figures = {"rank": effective_rank(train.features), "spread": spread(train.features)}
        return {f"statistics_{name}": value.item() for name, value in figures.items()}


class StatisticsRun(Evaluation):
    """An evaluation of the features' distribution and of the backbone's attention."""

    def evaluate(self, log: Logger) -> tuple[dict[str, float], int]:
        figures, unreadable = super().evaluate(log)
        data = self.cfg.data
        view = evaluation_views(data, shorter_side=data.shorter_side)
        source = pick_evenly(self.sources["train"], ATTENTION_IMAGES)
        batches = self.sweep(Crops(source=source, augmentation=view, seed=EVALUATION_SEED), data.unreadable())
        images = (batch.image for batch in batches)
        return figures | attention_figures(self.backbone.model, images, self.backbone.statistics, self.dist), unreadable
