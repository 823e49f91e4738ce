"""What a data set is to the loader: a length, and a sample per index."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

UNLABELLED = -1


class Sample(NamedTuple):
    """One image as it is stored, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    label: int | np.ndarray  # index into `classes`, or UNLABELLED; or what was computed of the image (WithRows)


class Source(Protocol):
    """A data set. It is sent to the loader's workers, so it must pickle and should be small."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names by label; empty where the images are unlabelled."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return sample `index`; UnreadableImage names a file that cannot be decoded."""
        ...

    def where(self, index: int) -> str:
        """Return what sample `index` is called in messages: its path."""
        ...


@runtime_checkable
class Labelled(Source, Protocol):
    """A data set that can list its labels, so that it can be split by class."""

    def labels(self) -> np.ndarray:
        """Return the label of every sample, (N,) int64, without decoding an image where they are known otherwise."""
        ...


class Spread:
    """`count` samples of a source, spread evenly over it (a folder is sorted by class); all of them where it has fewer."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.classes = source, source.classes
        self.indices = [i * len(source) // min(count, len(source)) for i in range(min(count, len(source)))]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return sample `index` of the selection."""
        return self.source.read(self.indices[index])

    def where(self, index: int) -> str:
        """Return what the source calls it."""
        return self.source.where(self.indices[index])
