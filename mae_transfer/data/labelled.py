"""Which labelled images a protocol may use: a share of the labels, and a part of the training set that is held out to select on.

Both lists are drawn per class with a fixed seed, whatever the run's own: runs compare on the same images, and the 1 % list is a part of the 10 %
list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mae_transfer.data.source import Labelled, Sample, Source
from mae_transfer.seeding import fold

LIST_SEED = 0


class Split(NamedTuple):
    """A labelled training set and what is kept apart from it."""

    train: Source
    held_out: Source | None  # to select on; None: nothing is held out


class Subset:
    """The samples `indices` of a labelled source, in this order; a label outside the source's classes is refused where it is read."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.classes = source, source.classes
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return sample `index` of the selection; ValueError where its label is none of the classes."""
        sample = self.source.read(self.indices[index].item())
        if not 0 <= sample.label < len(self.classes):
            raise ValueError(
                f"{self.where(index)} has label {sample.label}, but the {len(self.classes)} classes are 0..{len(self.classes) - 1}"
            )
        return sample

    def where(self, index: int) -> str:
        """Return what the source calls it."""
        return self.source.where(self.indices[index].item())


def whole(source: Source, *, of: str) -> Subset:
    """Return all of a source, its labels checked as they are read; ValueError where it has no classes at all."""
    if not source.classes:
        raise ValueError(f"the {of} set has no classes: classification needs one folder per class (labelled=True)")
    return Subset(source, range(len(source)))


def split(source: Source, *, label_fraction: float = 1.0, holdout_fraction: float = 0.0) -> Split:
    """Keep `label_fraction` of each class and hold `holdout_fraction` of what is kept out of training.

    Both are at least one image per class, but a class of one image keeps it for training. ValueError where the set has no classes.
    """
    every = whole(source, of="training")
    if label_fraction == 1.0 and holdout_fraction == 0.0:
        return Split(every, None)
    if not isinstance(source, Labelled):
        raise ValueError(
            f"{type(source).__name__} cannot list its labels, which label_fraction and holdout_fraction need: leave them at 1 and 0"
        )
    labels = source.labels()
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for label in range(len(source.classes)):
        mine = np.flatnonzero(labels == label)
        if not len(mine):
            continue  # a source that is no folder may draw none of a class
        mine = np.random.default_rng(fold(LIST_SEED, "labels", label)).permutation(mine)[
            : _share(label_fraction, len(mine))
        ]
        held = min(_share(holdout_fraction, len(mine)), len(mine) - 1) if holdout_fraction else 0
        held_out.append(mine[:held])
        train.append(mine[held:])
    if holdout_fraction and not sum(map(len, held_out)):
        raise ValueError(
            f"nothing is left to hold out: label_fraction={label_fraction:g} leaves one training image of each class (holdout_fraction="
            f"{holdout_fraction:g} takes none of those): raise data.label_fraction, or set data.holdout_fraction=0"
        )
    return Split(
        Subset(source, np.concatenate(train)), Subset(source, np.concatenate(held_out)) if holdout_fraction else None
    )


def part_of(count: int, part: tuple[float, float]) -> list[int]:
    """Return, in ascending order, which of `count` images lie between two shares of a fixed random order; ValueError where that is no part.

    (0.0, 0.9) and (0.9, 1.0) have no image in common and leave none out: what a dense task trains on, and what it is selected on.
    """
    start, end = part
    if not 0 <= start < end <= 1:
        raise ValueError(f"part={part}: give two shares from 0 to 1, the lower one first")
    order = np.random.default_rng(fold(LIST_SEED, "part")).permutation(count)
    return sorted(order[round(start * count) : round(end * count)].tolist())


def _share(fraction: float, count: int) -> int:
    """Return this fraction of a count, rounded, at least one of a class that has any."""
    return min(count, max(1, round(fraction * count)))
