"""A source whose labels are rows of an array on disk: what was computed of each image once (tokens), and is read by every worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.data.source import Sample, Source


class WithRows:
    """The samples of a source, each with row `index` of a .npy file as its label. The file is mapped into memory, once per process."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.classes, self.path = source, source.classes, path
        try:
            rows = len(np.load(path, mmap_mode="r"))
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, it will be made again") from None
        if rows != len(source):
            raise ValueError(f"{path} has {rows} rows for {len(source)} images: delete it, it will be made again")
        self.rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}  # a worker maps the file itself: the array would be copied

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        """Return sample `index` with its row, int64."""
        if self.rows is None:
            self.rows = np.load(self.path, mmap_mode="r")
        return Sample(self.source.read(index).image, self.rows[index].astype(np.int64))

    def where(self, index: int) -> str:
        """Return what the source calls it."""
        return self.source.where(index)
