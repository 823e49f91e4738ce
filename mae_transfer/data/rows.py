"""A source whose labels are rows of an array on disk, precomputed per image (tokens) and read by every worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.data.source import Sample, Source


class WithRows:
    """The samples of a source, with row `index` of a .npy file as the label. Each process memory-maps the file once."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.classes, self.path = source, source.classes, path
        try:
            rows = len(np.load(path, mmap_mode="r"))
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, then it is computed again") from None
        if rows != len(source):
            raise ValueError(f"{path} has {rows} rows for {len(source)} images: delete it, then it is computed again")
        self.rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}  # pickling would copy the array; each worker maps the file itself

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        """Return sample `index` with its row, int64."""
        if self.rows is None:
            self.rows = np.load(self.path, mmap_mode="r")
        return Sample(self.source.read(index).image, self.rows[index].astype(np.int64))

    def where(self, index: int) -> str:
        """Return the source's name of sample `index`, for messages."""
        return self.source.where(index)
