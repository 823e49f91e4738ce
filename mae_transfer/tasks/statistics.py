"""Statistics of frozen features, which show a collapse without labels: effective rank and spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mae_transfer.engine.dist import Dist
from mae_transfer.metrics.features import check_finite, effective_rank, spread
from mae_transfer.tasks.evaluation import EvaluationConfig, LabelledFeatures


class StatisticsConfig(EvaluationConfig):
    """An evaluation of the features' distribution."""

    task: Literal["statistics"] = "statistics"
    """Which task the file configures."""

    def evaluator(self, images: int) -> FeatureStatistics:
        return FeatureStatistics()


@dataclass(frozen=True)
class FeatureStatistics:
    """Measures the distribution of the training features."""

    def __call__(self, train: LabelledFeatures, val: LabelledFeatures, *, classes: int, dist: Dist) -> dict[str, float]:
        """Return effective rank and spread as shares of their largest values."""
        check_finite(train.features, of="training")
        figures = {"rank": effective_rank(train.features), "spread": spread(train.features)}
        return {f"statistics_{name}": value.item() for name, value in figures.items()}
