"""Subsets of labelled data sets: a share of the labels, and a hold-out of the training set for selection.

Both are drawn per class with a fixed seed that does not depend on the run's seed. So runs are compared on the same
images, and the 1 % subset is part of the 10 % subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mae_transfer.data.source import Labelled, Sample, Source
from mae_transfer.seeding import fold

LIST_SEED = 0


class Split(NamedTuple):
    """A labelled training set and its hold-out."""

    train: Source
    held_out: Source | None  # for selection; None: nothing is held out


class Subset:
    """The samples `indices` of a labelled source, in this order. Labels are checked when they are read."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.classes = source, source.classes
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return sample `index` of the subset. ValueError if its label is not one of the classes."""
        sample = self.source.read(self.indices[index].item())
        if not 0 <= sample.label < len(self.classes):
            raise ValueError(
                f"{self.where(index)} has label {sample.label}, but the {len(self.classes)} classes are "
                f"0..{len(self.classes) - 1}: correct its label"
            )
        return sample

    def where(self, index: int) -> str:
        """Return the source's name of sample `index`, for messages."""
        return self.source.where(self.indices[index].item())


def whole(source: Source, *, of: str) -> Subset:
    """Return all samples of a source, with labels checked when read. ValueError if it has no classes."""
    if not source.classes:
        raise ValueError(f"the {of} set has no classes: classification needs one folder per class (labelled=True)")
    return Subset(source, range(len(source)))


def split(source: Source, *, label_fraction: float = 1.0, holdout_fraction: float = 0.0) -> Split:
    """Keep `label_fraction` of each class, and hold out `holdout_fraction` of the kept images.

    Each class contributes at least one image to both, but a class with a single image uses it for training.

    Raises:
        ValueError: the source has no classes, cannot list its labels, or is too small for a hold-out.
    """
    all_samples = whole(source, of="training")
    if label_fraction == 1.0 and holdout_fraction == 0.0:
        return Split(all_samples, None)
    if not isinstance(source, Labelled):
        raise ValueError(
            f"{type(source).__name__} cannot list its labels: set data.label_fraction=1 and data.holdout_fraction=0"
        )
    labels = source.labels()
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(labels == label)
        if not len(members):
            continue  # a generated source may contain no image of a class
        members = np.random.default_rng(fold(LIST_SEED, "labels", label)).permutation(members)[
            : _share(label_fraction, len(members))
        ]
        held = min(_share(holdout_fraction, len(members)), len(members) - 1) if holdout_fraction else 0
        held_out.append(members[:held])
        train.append(members[held:])
    if holdout_fraction and not sum(map(len, held_out)):
        raise ValueError(
            f"no image can be held out (holdout_fraction={holdout_fraction:g}), because label_fraction="
            f"{label_fraction:g} keeps one image per class: raise data.label_fraction, or set data.holdout_fraction=0"
        )
    return Split(
        Subset(source, np.concatenate(train)), Subset(source, np.concatenate(held_out)) if holdout_fraction else None
    )


def part_of(count: int, part: tuple[float, float]) -> list[int]:
    """Return the sorted indices of the images between two fractions of a fixed random order of `count` images.

    (0.0, 0.9) and (0.9, 1.0) share no image and together contain all: a training set and a hold-out.

    Raises:
        ValueError: `part` is not two ascending fractions from 0 to 1.
    """
    start, end = part
    if not 0 <= start < end <= 1:
        raise ValueError(f"part={part}: give two fractions from 0 to 1, the lower one first")
    order = np.random.default_rng(fold(LIST_SEED, "part")).permutation(count)
    return sorted(order[round(start * count) : round(end * count)].tolist())


def _share(fraction: float, count: int) -> int:
    """Return this fraction of a count, rounded, but at least one if there are any."""
    return min(count, max(1, round(fraction * count)))
