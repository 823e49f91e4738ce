"""Images of any number of channels: a folder of .npy arrays (C, H, W) uint8, unlabelled."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from mae_transfer.data.decode import UnreadableImage
from mae_transfer.data.sources import UNLABELLED, FolderSetConfig, Sample


class ArraysConfig(FolderSetConfig):
    """A folder of .npy files."""

    name: Literal["arrays"] = "arrays"

    def open(self) -> Arrays:
        return Arrays(self)


class Arrays:
    """The .npy files of a folder, sorted by name."""

    classes: tuple[str, ...] = ()

    def __init__(self, cfg: ArraysConfig) -> None:
        self.files = [str(path) for path in sorted(cfg.home.glob("*.npy"))]
        if not self.files:
            raise ValueError(f"{cfg.root!r} holds no .npy file; set data.root to the folder that holds the arrays")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Sample:
        """Return array `index`; UnreadableImage names a file that is none, or of another type."""
        try:
            values = np.load(self.files[index], allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UnreadableImage(f"{self.files[index]}: {error}") from error
        if values.ndim != 3 or values.dtype != np.uint8:
            raise UnreadableImage(f"{self.files[index]} is {values.dtype} of shape {values.shape}, not uint8 (C, H, W)")
        return Sample(torch.from_numpy(values), UNLABELLED)

    def where(self, index: int) -> str:
        """Return the path of array `index`."""
        return self.files[index]
