"""A ridge classifier on frozen features, in closed form. Its penalty is selected on held-out training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from mae_transfer.bounds import Between, Positive
from mae_transfer.data import Source
from mae_transfer.engine.dist import Dist, on_all
from mae_transfer.metrics.accuracy import accuracies, hits_by_class
from mae_transfer.metrics.features import check_finite, widen
from mae_transfer.metrics.ridge import fit_ridge
from mae_transfer.tasks.choice import choose
from mae_transfer.tasks.evaluation import CHOSEN, EvaluationConfig, LabelledFeatures
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.sweep import sum_of_ranks

PENALTIES = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


class RidgeConfig(EvaluationConfig):
    """An evaluation by a ridge classifier."""

    debug: ClassVar[dict[str, Any]] = {**EvaluationConfig.debug, "penalties": (1.0,)}

    task: Literal["ridge"] = "ridge"
    """Which task the file configures."""
    penalties: tuple[Positive, ...] = Field(default=PENALTIES, min_length=1)
    """Penalties of the squared weights to choose from, in units of the mean eigenvalue of the features' scatter, so
    that they suit features of any scale. The first of equally good ones is chosen: sort them from strong to weak."""
    selection_fraction: Between = 0.1
    """Share of each class's training images to choose the penalty on. The classifier is then fitted to all images."""

    def evaluator(self, train: Source) -> Ridge:
        return Ridge(self.penalties, self.selection_fraction)


@dataclass(frozen=True)
class Ridge:
    """Classifies by linear regression of one-hot labels with a penalty of the weights."""

    penalties: tuple[float, ...] = PENALTIES
    selection_fraction: float = 0.1

    def __call__(self, train: LabelledFeatures, val: LabelledFeatures, *, classes: int, dist: Dist) -> dict[str, float]:
        """Return the accuracy by "ridge_top1" ..., with that of the held-out images and the chosen penalty."""
        check_finite(train.features, of="training")
        on_all(dist, lambda: check_finite(val.features, of="validation"))

        def scores(fitted: LabelledFeatures, features: Tensor, penalties: Sequence[float]) -> list[Tensor]:
            path, wide = fit_ridge(fitted.features, fitted.labels, classes=classes), widen(features)
            return [(wide @ weight + bias).to(features) for weight, bias in map(path.solve, penalties)]

        choice = choose(self.penalties, train, self.selection_fraction, scores, dist, of="penalties")
        final = torch.stack(scores(train, val.features, (choice.value,)))
        found = accuracies(sum_of_ranks(hits_by_class(final, val.labels), dist))
        figures = {f"ridge_{name}": value for name, (value,) in found.items()}
        return figures | {f"{HOLDOUT}ridge_top1": choice.accuracy, f"{CHOSEN}ridge_penalty": choice.value}
