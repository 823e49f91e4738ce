"""The interface of data sets for the loader: a length, and a sample per index."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

UNLABELLED = -1


class Sample(NamedTuple):
    """One stored image, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    label: int | np.ndarray  # index into `classes`, or UNLABELLED; or a precomputed array (WithRows)


class Source(Protocol):
    """A data set. Loader workers receive a pickled copy, so it should be small."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names by label; empty if the images are unlabelled."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return sample `index`. UnreadableImage names a file that cannot be decoded."""
        ...

    def where(self, index: int) -> str:
        """Return the path of sample `index`, for messages."""
        ...


@runtime_checkable
class Labelled(Source, Protocol):
    """A data set that can list its labels, so that it can be split by class."""

    def labels(self) -> np.ndarray:
        """Return the label of every sample, (N,) int64, without decoding images if possible."""
        ...


class Spread:
    """`count` samples spread evenly over a source, because folders are sorted by class; all samples if it has fewer."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.classes = source, source.classes
        self.indices = [i * len(source) // min(count, len(source)) for i in range(min(count, len(source)))]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return sample `index` of the subset."""
        return self.source.read(self.indices[index])

    def where(self, index: int) -> str:
        """Return the source's name of sample `index`, for messages."""
        return self.source.where(self.indices[index])
