"""Weighted k-NN on frozen features, without training (DINO's protocol). Every k is reported, so nothing is selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from mae_transfer.bounds import Count, Factor
from mae_transfer.data import Source
from mae_transfer.engine.dist import Dist, on_all
from mae_transfer.metrics.accuracy import accuracies, hits_by_class
from mae_transfer.metrics.features import check_finite
from mae_transfer.metrics.knn import knn_scores
from mae_transfer.tasks.evaluation import EvaluationConfig, LabelledFeatures
from mae_transfer.tasks.sweep import sum_of_ranks


class KnnConfig(EvaluationConfig):
    """A k-NN evaluation."""

    debug: ClassVar[dict[str, Any]] = {**EvaluationConfig.debug, "ks": (1, 3)}

    task: Literal["knn"] = "knn"
    """Which task the file configures."""
    ks: tuple[Count, ...] = Field(default=(10, 20, 100, 200), min_length=1)
    """Numbers of neighbours. Each gives a result."""
    temperature: Factor = 0.07
    """Temperature of the votes, exp(cosine / temperature)."""

    def evaluator(self, train: Source) -> KNN:
        images = len(train)
        if max(self.ks) > images:
            raise ValueError(
                f"ks = {self.ks}: there are not {max(self.ks)} neighbours of {images} training images; lower ks"
            )
        return KNN(self.ks, self.temperature)


@dataclass(frozen=True)
class KNN:
    """Classifies each image by the votes of the k training images with the most similar features."""

    ks: tuple[int, ...]
    temperature: float = 0.07

    def __call__(self, train: LabelledFeatures, val: LabelledFeatures, *, classes: int, dist: Dist) -> dict[str, float]:
        """Return the accuracy by "knn-20_top1" ..., in the order of `ks`."""
        if max(self.ks) > len(train.labels):
            raise ValueError(
                f"ks = {self.ks}: only {len(train.labels)} training images could be read, fewer than {max(self.ks)} "
                "neighbours; lower ks"
            )
        on_all(dist, lambda: check_finite(val.features, of="query"))
        scores = knn_scores(
            val.features, train.features, train.labels, classes=classes, ks=self.ks, temperature=self.temperature
        )
        found = accuracies(sum_of_ranks(hits_by_class(scores, val.labels), dist))
        return {f"knn-{k}_{name}": row[i] for name, row in found.items() for i, k in enumerate(self.ks)}
