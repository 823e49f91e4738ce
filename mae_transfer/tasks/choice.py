"""How an evaluator selects a constant: on held-out training images, never on those that it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae_transfer.engine.dist import Dist, agree
from mae_transfer.metrics.accuracy import hits
from mae_transfer.seeding import fold
from mae_transfer.tasks.evaluation import LabelledFeatures


class Choice(NamedTuple):
    """A selected constant."""

    value: float
    accuracy: float  # on the held-out images; NaN if there was nothing to select


def hold_out(train: LabelledFeatures, share: float, *, of: str) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Return the features to fit and those to select on: `share` of each class, at least one image.

    A class with a single image uses it to fit. The selection is fixed.

    of: the option that is to be selected, for the message.

    Raises:
        ValueError: every class has one image.
    """
    labels = train.labels.tolist()
    members: dict[int, list[int]] = {}
    for image, label in enumerate(labels):
        members.setdefault(label, []).append(image)
    held: list[int] = []
    for label, images in members.items():
        count = min(max(1, round(share * len(images))), len(images) - 1)
        held += np.random.default_rng(fold(0, "hold out", label)).permutation(images)[:count].tolist()
    if not held:
        raise ValueError(
            f"{of}: no training image can be held out to select one, because each of {len(members)} classes has one "
            f"image: add images, or give one value, for instance --set {of}=(1.0,)"
        )
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[held] = True
    parts = (chosen.logical_not(), chosen)
    fitted, selected = (
        LabelledFeatures(*(tensor[index.to(tensor.device).nonzero()[:, 0]] for tensor in train)) for index in parts
    )
    return fitted, selected


def choose(
    values: Sequence[float],
    train: LabelledFeatures,
    share: float,
    scores: Callable[[LabelledFeatures, Tensor, Sequence[float]], Sequence[Tensor]],
    dist: Dist,
    *,
    of: str,
) -> Choice:
    """Return the value with the most correct held-out images, and the first of equal ones, as the first rank finds it.

    Sums on a GPU differ in their last digits, so ranks could choose different values. Every rank calls it.

    Args:
        share: of each class's images, to select on.
        scores: (images to fit, n features, values) -> scores (n, C) for each value.
        of: the option that is selected, for messages.
    """
    if len(values) == 1:
        return Choice(values[0], float("nan"))
    fitted, selected = hold_out(train, share, of=of)
    right = [hits(one, selected.labels)[0].item() for one in scores(fitted, selected.features, values)]
    best = max(range(len(values)), key=lambda index: right[index])
    return agree(lambda: Choice(values[best], right[best] / len(selected.labels)), dist)
