"""Logistic regression on frozen features: its penalty is selected on held-out training images; few-shot accuracy.

Legend: N images, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mae_transfer.bounds import Between, Count, Few, Positive
from mae_transfer.data import Source
from mae_transfer.data.sources import listed_labels
from mae_transfer.engine.dist import Dist, on_all
from mae_transfer.interfaces import MEAN_PER_CLASS
from mae_transfer.metrics.accuracy import accuracies, hits_by_class
from mae_transfer.metrics.features import check_finite
from mae_transfer.metrics.logreg import fit_path
from mae_transfer.seeding import fold
from mae_transfer.tasks.choice import choose
from mae_transfer.tasks.evaluation import CHOSEN, EvaluationConfig, LabelledFeatures
from mae_transfer.tasks.run import HOLDOUT
from mae_transfer.tasks.sweep import sum_of_ranks

CS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


class LogRegConfig(EvaluationConfig):
    """An evaluation by logistic regression."""

    debug: ClassVar[dict[str, Any]] = {**EvaluationConfig.debug, "cs": (1.0,), "shots": ()}

    task: Literal["logreg"] = "logreg"
    """Which task the file configures."""
    cs: tuple[Positive, ...] = Field(default=CS, min_length=1)
    """Values of scikit-learn's C to choose from: weights of the summed cross-entropy against half the squared weights.
    They hold for features of mean 0 and mean variance 1, to which all are shifted and scaled. The first of equally good
    ones is chosen: sort them from small to large."""
    selection_fraction: Between = 0.1
    """Share of each class's training images to choose C on. The classifier is then fitted to all images."""
    shots: tuple[Count, ...] = ()
    """Numbers of training images per class of the few-shot accuracies."""
    draws: Few = 5
    """Random draws of the images for each number of shots. The results are their mean and their range."""
    shots_c: Positive = 1.0
    """C of the few-shot classifiers. It is not selected, because they have no images to select on."""

    def evaluator(self, train: Source) -> LogisticRegression:
        labels = listed_labels(train) if self.shots else None
        if labels is not None:
            check_shots(labels, max(self.shots), train.classes)
        return LogisticRegression(
            self.cs, self.selection_fraction, self.shots, self.draws, self.shots_c, tuple(train.classes)
        )


@dataclass(frozen=True)
class LogisticRegression:
    """Classifies by multinomial logistic regression."""

    cs: tuple[float, ...] = CS
    selection_fraction: float = 0.1
    shots: tuple[int, ...] = ()
    draws: int = 5
    shots_c: float = 1.0
    names: tuple[str, ...] = ()
    """The classes, for messages."""

    def __call__(self, train: LabelledFeatures, val: LabelledFeatures, *, classes: int, dist: Dist) -> dict[str, float]:
        """Return "logreg_top1" ..., "logreg-5shot_top1" ... with "-min" and "-max" over draws; and the selected C."""
        check_finite(train.features, of="training")
        on_all(dist, lambda: check_finite(val.features, of="validation"))
        drawn = {
            shots: [draw_shots(train.labels, shots, draw, self.names) for draw in range(self.draws)]
            for shots in self.shots
        }
        mean = train.features.mean(dim=0)
        scale = (train.features - mean).square().mean().sqrt().clamp(min=torch.finfo(mean.dtype).tiny)
        train, val = (LabelledFeatures((one.features - mean) / scale, one.labels) for one in (train, val))

        def scores(fitted: LabelledFeatures, features: Tensor, cs: Sequence[float]) -> list[Tensor]:
            models = fit_path(fitted.features, fitted.labels, classes=classes, cs=cs)
            return [model(features) for model in models]

        choice = choose(self.cs, train, self.selection_fraction, scores, dist, of="cs")
        fits = [(train, choice.value)]
        for images in chain.from_iterable(drawn.values()):
            fits.append((LabelledFeatures(train.features[images], train.labels[images]), self.shots_c))
        counts = [hits_by_class(scores(fitted, val.features, [c])[0], val.labels) for fitted, c in fits]
        found = accuracies(sum_of_ranks(torch.stack(counts, dim=1), dist))
        figures = {f"logreg_{name}": values[0] for name, values in found.items()}
        for number, shots in enumerate(self.shots):
            of_draws = slice(1 + number * self.draws, 1 + (number + 1) * self.draws)
            for metric in ("top1", MEAN_PER_CLASS):
                values, name = found[metric][of_draws], f"logreg-{shots}shot_{metric}"
                figures |= {name: fmean(values), f"{name}-min": min(values), f"{name}-max": max(values)}
        return figures | {f"{HOLDOUT}logreg_top1": choice.accuracy, f"{CHOSEN}logreg_c": choice.value}


def check_shots(labels: np.ndarray, shots: int, names: Sequence[str]) -> None:
    """Raise ValueError if a class has images, but fewer than `shots`."""
    counts = np.bincount(labels)
    for label, count in enumerate(counts):
        if 0 < count < shots:
            raise ValueError(
                f"shots = {shots}: class {names[label] if names else label} has {count} readable training image(s); "
                "lower shots or add images"
            )


def draw_shots(labels: Tensor, shots: int, draw: int, names: Sequence[str] = ()) -> Tensor:
    """Return the indices of `shots` images of each class; a pure function of the number of the draw.

    Raises:
        ValueError: a class has fewer images.
    """
    known = labels.numpy(force=True)
    check_shots(known, shots, names)
    picked = [
        np.random.default_rng(fold(0, "shots", draw, int(label))).permutation(np.flatnonzero(known == label))[:shots]
        for label in np.unique(known)
    ]
    return torch.from_numpy(np.concatenate(picked)).to(labels.device)
