"""A folder of the user's own images for pretraining, however it is organised."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mae_transfer.bounds import Between
from mae_transfer.data.folder import Folder
from mae_transfer.data.labelled import part_of
from mae_transfer.data.reports import report_on_main
from mae_transfer.data.source import Sample

MOST_HELD_OUT = 2048  # images; more would not make the evaluation loss noticeably more precise


class Photos:
    """The training or validation part of a folder of unlabelled images.

    If root/train/ and root/val/ exist, they are the two parts. Otherwise all images at any depth are used, of
    root/train/ or of root (class folders, one flat folder, nested folders): a small fixed part is "val", the rest
    "train".

    Args:
        root: the folder.
        split: "train" or "val". They share no image.
        held_out: share of the images used as "val" if there is no such folder, at most 2,048 images.

    Raises:
        ValueError: names the folder that is missing, empty or holds a single image, and the remedy.
    """

    def __init__(self, *, root: str, split: Literal["train", "val"] = "train", held_out: Between = 0.02) -> None:
        folder = Path(root).expanduser()
        has_train, has_val = (folder / "train").is_dir(), (folder / "val").is_dir()
        self.classes: tuple[str, ...] = ()
        if has_train and has_val:
            self.source = Folder(root=root, split=split, labelled=False)
            self.indices = np.arange(len(self.source))
            return
        self.source = Folder(root=root, split="train" if has_train else None, labelled=False)
        count = len(self.source)
        if count < 2:
            raise ValueError(
                f"{self.source.folder} contains one image: pretraining needs at least one to train and one to evaluate"
            )
        held = min(max(1, round(held_out * count)), MOST_HELD_OUT, count - 1)
        border = 1 - held / count
        self.indices = np.asarray(part_of(count, (0.0, border) if split == "train" else (border, 1.0)))
        report_on_main(
            f"{self.source.folder}: no validation folder, so {held} of {count} images are held out for evaluation"
        )

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return image `index`, unlabelled. UnreadableImage names a file that cannot be decoded."""
        return self.source.read(self.indices[index].item())

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        return self.source.where(self.indices[index].item())
