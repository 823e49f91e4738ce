"""Folders of image files: ImageNet's layout root/split/class/*.jpg, or any folder of unlabelled images.

The root may also be a pack of such a folder (packs.py).

File names are stored in one block of bytes. Loader workers would copy a million Python strings, because reference
counts write to shared memory pages.
"""

from __future__ import annotations

import copy
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Literal, Self

import numpy as np
from PIL import Image

from mae_transfer.bounds import Between
from mae_transfer.data.decode import decode, decode_late, read_file
from mae_transfer.data.reports import report_on_main
from mae_transfer.data.sources import UNLABELLED, FolderSetConfig, Sample, Subset, select_part

NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that PIL recognises but cannot decode by itself
MOST_HELD_OUT = 2048  # images; more would not make the evaluation loss noticeably more precise


class FolderConfig(FolderSetConfig):
    """A folder of image files, or a pack of one."""

    name: Literal["folder"] = "folder"
    split: str | None = None
    """Subfolder to read ("train", "val"). None: root itself."""
    labelled: bool = True
    """True: the subfolders are the classes, numbered in sorted order, each searched at any depth. False: use every
    image at any depth, without labels."""

    @property
    def searched(self) -> Path:
        """The folder whose files are listed, or the pack."""
        return self.home / self.split if self.split else self.home

    def open(self) -> Folder:
        if self.home.is_file():
            from mae_transfer.data.packs import PackedFolder

            return PackedFolder(self)
        return Folder(self)


class Folder:
    """Image files in a fixed order: sorted by class, then by path. Images are decoded when read and not cached."""

    def __init__(self, cfg: FolderConfig) -> None:
        """List the files. ValueError names the folder that is missing or empty, and the remedy."""
        self.folder = _split_folder(cfg.home, cfg.split)
        ignored = IgnoredFiles()
        self.classes = tuple(_class_names(self.folder, ignored)) if cfg.labelled else ()
        groups = []
        for name in self.classes or ("",):
            within = IgnoredFiles()
            groups.append(list(list_images(os.fsencode(self.folder / name), within)))
            if not groups[-1]:
                raise no_images(self.folder / name, within)
            ignored.update(within)
        if ignored:
            report_on_main(f"{self.folder}: ignored {ignored}")
        names = [name for group in groups for name in group]
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names])
        self._labels = np.repeat(
            np.arange(len(groups)) if cfg.labelled else UNLABELLED, [len(group) for group in groups]
        )
        self._decode = decode

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> Sample:
        """Return image `index`, (3, H, W) uint8, with its label. UnreadableImage names a broken file."""
        return Sample(self._decode(self.file(index), where=self.where(index)), int(self._labels[index]))

    def file(self, index: int) -> bytes:
        """Return the file of image `index`. UnreadableImage or OSError name one that cannot be read."""
        return read_file(self.where(index))

    def decoded_late(self, *, leave: bool = False) -> Self:
        """Return this folder with images that `decode_late` decodes."""
        late = copy.copy(self)
        late._decode = functools.partial(decode_late, leave=leave)
        return late

    def labels(self) -> np.ndarray:
        """Return the label of every image, (N,) int64."""
        return self._labels

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])


class PhotosConfig(FolderSetConfig):
    """The training or validation part of a folder of unlabelled images.

    If root/train/ and root/val/ exist, they are the two parts. Otherwise all images at any depth are used, of
    root/train/ or of root (class folders, one flat folder, nested folders): a small fixed part is "val", the rest
    "train".
    """

    name: Literal["photos"] = "photos"
    split: Literal["train", "val"] = "train"
    """The part: "train" or "val". They share no image."""
    held_out: Between = 0.02
    """Share of the images used as "val" if there is no such folder, at most 2,048 images."""

    @property
    def searched(self) -> Path:
        """The folder whose files are listed, or the pack."""
        has_train, has_val = (_has_folder(self.home, name) for name in ("train", "val"))
        return self.home / (self.split if has_val else "train") if has_train else self.home

    def open(self) -> Photos:
        return Photos(self)


class Photos(Subset):
    """The training or validation part of a folder of unlabelled images."""

    def __init__(self, cfg: PhotosConfig) -> None:
        """List the files. ValueError names the folder that is missing, empty or holds one image, and the remedy."""
        has_train, has_val = (_has_folder(cfg.home, name) for name in ("train", "val"))
        if has_train and has_val:
            folder = FolderConfig(root=cfg.root, split=cfg.split, labelled=False).open()
            super().__init__(folder, range(len(folder)))
            return
        folder = FolderConfig(root=cfg.root, split="train" if has_train else None, labelled=False).open()
        count = len(folder)
        if count < 2:
            raise ValueError(
                f"{folder.folder} contains one image: pretraining needs at least one to train and one to evaluate"
            )
        held = min(max(1, round(cfg.held_out * count)), MOST_HELD_OUT, count - 1)
        border = 1 - held / count
        super().__init__(folder, select_part(count, (0.0, border) if cfg.split == "train" else (border, 1.0)))
        report_on_main(
            f"{folder.folder}: no validation folder, so {held} of {count} images are held out for evaluation"
        )


class IgnoredFiles:
    """The unused files of a folder: the number of each kind, and one example of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, name: bytes, why: str = "") -> None:
        """Count a file by its suffix and by the reason for ignoring it."""
        kind = " ".join(filter(None, (PurePath(os.fsdecode(name)).suffix.lower() or "no suffix", why)))
        self.counts[kind] += 1
        self.examples.setdefault(kind, os.fsdecode(name))

    def update(self, other: IgnoredFiles) -> None:
        """Add the counts of another folder."""
        self.counts.update(other.counts)
        self.examples = {**other.examples, **self.examples}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        kinds = [f"{count} x {kind}, {self.examples[kind]}" for kind, count in self.counts.most_common(5)]
        more = len(self.counts) - len(kinds)
        return f"{self.counts.total()} files ({'; '.join(kinds)}{f'; and {more} kinds more' if more else ''})"


def list_images(folder: bytes, ignored: IgnoredFiles, suffixes: tuple[bytes, ...] = ()) -> Iterator[bytes]:
    """Yield the sorted paths of the image files below a folder, by their suffix.

    Links are followed. Hidden files, such as the ._ files of macOS, are left out. Pipes and devices are ignored,
    because reading them may block forever. Dead links are reported when they are read.

    Args:
        ignored: counts the other files.
        suffixes: lower-case suffixes to accept; empty: all that the decoder reads.
    """
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir():
            yield from list_images(entry.path, ignored, suffixes)
        elif not entry.name.lower().endswith(suffixes or image_suffixes()):
            ignored.add(entry.name)
        elif not entry.is_file() and not entry.is_symlink():
            ignored.add(entry.name, "that is not a regular file")
        else:
            yield entry.path


@functools.cache
def image_suffixes() -> tuple[bytes, ...]:
    """Return the lower-case suffixes of the formats that the installed PIL decodes."""
    formats = Image.registered_extensions().items()
    return tuple(sorted(suffix.encode() for suffix, name in formats if name in Image.OPEN and name not in NO_PIXELS))


def _split_folder(root: Path, split: str | None) -> Path:
    if not root.is_dir():
        raise ValueError(
            f"data root {str(root)!r} is not a folder; set data.root to the folder with the images, or to a pack of it"
        )
    folder = root / split if split else root
    if not folder.is_dir():
        raise no_split(root, split, sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    return folder


def _has_folder(root: Path, name: str) -> bool:
    if root.is_file():
        from mae_transfer.data.packs import open_pack

        return name in open_pack(root).folders
    return (root / name).is_dir()


def no_split(root: Path, split: str | None, found: Sequence[str]) -> ValueError:
    """Return the error for a split that a root does not have; `found`: its subfolders."""
    return ValueError(
        f"{str(root)!r} has no split {split!r}; its subfolders: {', '.join(found) or 'none'}. To pretrain on all "
        "images of a folder, set data.train.name=photos and data.val.name=photos, which hold some of them out. "
        "split=None reads the folder itself"
    )


def no_classes(folder: Path) -> ValueError:
    """Return the error for a folder of labelled images without class folders."""
    return ValueError(f"{str(folder)!r} has no class folders; for a folder of unlabelled images set labelled=False")


def no_images(folder: Path, ignored: IgnoredFiles | None = None) -> ValueError:
    """Return the error for a folder without images; `ignored`: its other files."""
    others = f", only {ignored}" if ignored else ""
    return ValueError(f"{folder} contains no decodable image{others}: add images or remove it")


def _class_names(folder: Path, ignored: IgnoredFiles) -> list[str]:
    with os.scandir(folder) as entries:
        seen = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    names = [entry.name for entry in seen if entry.is_dir()]
    if not names:
        raise no_classes(folder)
    for entry in seen:
        if not entry.is_dir():
            ignored.add(os.fsencode(entry.name), "outside class folders")
    return names
