"""Folders of image files: ImageNet's layout root/split/class/*.jpg, or any folder of unlabelled images.

File names are stored in one block of bytes. Loader workers would copy a million Python strings, because reference
counts write to shared memory pages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mae_transfer.data.decode import decode_file
from mae_transfer.data.listing import Ignored, is_image
from mae_transfer.data.reports import report_on_main
from mae_transfer.data.source import UNLABELLED, Sample


class Folder:
    """Image files in a fixed order: sorted by class, then by path. Images are decoded when read and not cached.

    Args:
        root: folder of the data set.
        split: subfolder to read ("train", "val"). None: root itself.
        labelled: True: the subfolders are the classes, numbered in sorted order, each searched at any depth. False: use
            every image at any depth, without labels.

    Raises:
        ValueError: names the folder that is missing or empty, and the remedy.
    """

    def __init__(self, *, root: str, split: str | None = None, labelled: bool = True) -> None:
        self.folder = _split_folder(Path(root).expanduser(), split)
        ignored = Ignored()
        self.classes = tuple(_class_names(self.folder, ignored)) if labelled else ()
        groups = []
        for name in self.classes or ("",):
            within = Ignored()
            groups.append(list(_scan(os.fsencode(self.folder / name), within)))
            if not groups[-1]:
                others = f", only {within}" if within else ""
                raise ValueError(f"{self.folder / name} contains no decodable image{others}: add images or remove it")
            ignored.update(within)
        if ignored:
            report_on_main(f"{self.folder}: ignored {ignored}")
        names = [name for group in groups for name in group]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names])
        self._labels = np.repeat(np.arange(len(groups)) if labelled else UNLABELLED, [len(group) for group in groups])

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> Sample:
        """Return image `index`, (3, H, W) uint8, with its label. UnreadableImage names a broken file."""
        path = self.where(index)
        return Sample(decode_file(path), int(self._labels[index]))

    def labels(self) -> np.ndarray:
        """Return the label of every image, (N,) int64."""
        return self._labels

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])


def _split_folder(root: Path, split: str | None) -> Path:
    if not root.is_dir():
        raise ValueError(f"data root {str(root)!r} is not a folder; set data.root to the folder with the images")
    folder = root / split if split else root
    if not folder.is_dir():
        found = ", ".join(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())) or "none"
        raise ValueError(
            f"{str(root)!r} has no split {split!r}; its subfolders: {found} (split=None reads the folder itself)"
        )
    return folder


def _class_names(folder: Path, ignored: Ignored) -> list[str]:
    with os.scandir(folder) as entries:
        seen = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    names = [entry.name for entry in seen if entry.is_dir()]
    if not names:
        raise ValueError(f"{str(folder)!r} has no class folders; for a folder of unlabelled images set labelled=False")
    for entry in seen:
        if not entry.is_dir():
            ignored.add(os.fsencode(entry.name), "outside class folders")
    return names


def _scan(folder: bytes, ignored: Ignored) -> Iterator[bytes]:
    """Yield the sorted paths of the image files below a folder.

    Links are followed. Hidden files, such as the ._ files of macOS, are left out.
    """
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir():
            yield from _scan(entry.path, ignored)
        elif is_image(entry, ignored):
            yield entry.path
