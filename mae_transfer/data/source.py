"""What a data set is to the loader: a length, and a sample per index."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

UNLABELLED = -1


class Sample(NamedTuple):
    """One image as it is stored, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    label: int  # index into `classes`, or UNLABELLED


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
