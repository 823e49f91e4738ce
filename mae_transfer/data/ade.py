"""Images with a map of classes: ADE20K's layout, images/SPLIT/*.jpg beside annotations/SPLIT/*.png, for any data set that is laid out like that.

Legend: H x W pixels, C classes; a map holds a class per pixel, or IGNORED where there is none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.bounds import Count, Probability
from mae_transfer.data.decode import UnreadableImage, decode_file
from mae_transfer.data.labelled import part_of
from mae_transfer.data.listing import image_suffixes
from mae_transfer.interfaces import IGNORED

CLASSES_FILE = "classes.txt"  # a name per line; written with the generated shapes, or by the user
OFFICIAL_FILE = "objectInfo150.txt"  # of ADE20K's archive: a table whose last column is the name, "door, double door"


class Mapped(NamedTuple):
    """One image as it is stored, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    labels: Tensor  # (H, W) uint8: class 0..C-1, or IGNORED


class MapSource(Protocol):
    """A set of images with class maps. It is sent to the loader's workers, so it must pickle and should be small."""

    classes: tuple[str, ...]  # names by class

    def __len__(self) -> int: ...

    def read(self, index: int) -> Mapped:
        """Return image `index` with its map; UnreadableImage names a file that cannot be used."""
        ...

    def where(self, index: int) -> str:
        """Return what image `index` is called in messages: its path."""
        ...


class Ade:
    """Images with class maps, sorted by name.

    Args:
        root: the data set's folder, with images/ and annotations/.
        split: subfolder of both: "training" or "validation".
        classes: their names in the order of the maps' values; None: those of root's classes.txt or objectInfo150.txt (ADE20K's own list of 150).
        reduce_zero_label: a map's 0 is no class but void, ignored, and 1 is the first class (ADE20K, CamVid as it is laid out here). False: 0 is.
        first: take only so many images, by their names.
        part: take only those between two shares of a fixed random order: (0.0, 0.9) to train on where (0.9, 1.0) is held out.
    Raises:
        ValueError: names the folder that is missing or empty, the image without a map, files that differ in their suffix alone, or what is wrong with
            the list of classes.
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "training",
        classes: Sequence[str] | None = None,
        reduce_zero_label: bool = True,
        first: Count | None = None,
        part: tuple[Probability, Probability] = (0.0, 1.0),
    ) -> None:
        self.classes = class_names(Path(root), classes)
        self.reduce_zero_label = reduce_zero_label
        self.images, self.maps = folders(root, split)
        images, drawn = names_in(self.images, image_suffixes()), names_in(self.maps, (b".png",))
        if defect := _unpaired(images, drawn):
            raise ValueError(f"{self.images}, {self.maps}: {defect} (tools/prepare_data.py check lists every defect)")
        if first is not None and first < 1:
            raise ValueError(f"first={first}: how many images should be taken?")
        stems = sorted(images)
        pairs = [(images[stems[index]][0], drawn[stems[index]][0]) for index in part_of(len(stems), part)[:first]]
        self._names = np.array(pairs, dtype=np.bytes_)  # (n, 2) image and map: one block, whatever the number of names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Mapped:
        """Return image `index` with its map; UnreadableImage names a file that cannot be decoded, or whose values or size are impossible."""
        image, path = self._decoded(index), self.map_of(index)
        labels = torch.from_numpy(reduced(read_map(path), reduce_zero_label=self.reduce_zero_label))
        if labels.shape != image.shape[1:]:
            raise UnreadableImage(f"{path} is {labels.shape[1]} x {labels.shape[0]}, its image {image.shape[2]} x {image.shape[1]} pixels")
        beyond = labels[labels != IGNORED]
        if len(beyond) and int(beyond.max()) >= len(self.classes):
            raise UnreadableImage(
                f"{path} holds class {int(beyond.max())}, but there are {len(self.classes)} (reduce_zero_label={self.reduce_zero_label})"
            )
        return Mapped(image, labels)

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.images / os.fsdecode(self._names[index, 0]))

    def map_of(self, index: int) -> Path:
        """Return the path of the map of image `index`."""
        return self.maps / os.fsdecode(self._names[index, 1])

    def _decoded(self, index: int) -> Tensor:
        path = self.where(index)
        return decode_file(path)


def class_names(root: Path, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names given, or those that lie with the data set; ValueError where there are none, one twice, or more than a map can tell apart."""
    if classes is None:
        named, official = root / CLASSES_FILE, root / OFFICIAL_FILE
        if named.is_file():
            classes = [line.strip() for line in named.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif official.is_file():
            classes = [line.rpartition("\t")[2].strip() for line in official.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        else:
            raise ValueError(f"no class list: set `classes`, or put {CLASSES_FILE} (a name per line) or ADE20K's {OFFICIAL_FILE} into {str(root)!r}")
    if not 2 <= len(classes) <= IGNORED:
        raise ValueError(f"{len(classes)} classes: a map of 8 bits tells 2 to {IGNORED} of them apart (with one alone every pixel would be right)")
    if twice := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise ValueError(f"classes of the same name: {twice}; results are kept by name")
    return tuple(classes)


def folders(root: str, split: str) -> tuple[Path, Path]:
    """Return the folders of images and maps of a split; ValueError where one is missing."""
    found = Path(root) / "images" / split, Path(root) / "annotations" / split
    for folder in found:
        if not folder.is_dir():
            raise ValueError(f"no folder {str(folder)!r}; a data set in ADE20K's layout has images/{split} and annotations/{split} (set data.root)")
    return found


def names_in(folder: Path, suffixes: tuple[bytes, ...]) -> dict[str, list[bytes]]:
    """Return the file names of a folder by their stem, sorted, without hidden ones; more than one where the suffix alone differs."""
    with os.scandir(os.fsencode(folder)) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(suffixes) and not entry.name.startswith(b"."))
    found: dict[str, list[bytes]] = {}
    for name in names:
        found.setdefault(os.fsdecode(name.rpartition(b".")[0]), []).append(name)
    return found


def alike(names: Mapping[str, list[bytes]]) -> list[str]:
    """Return the files of `names_in` that cannot be told apart by their stem, "a.jpg, a.png" each."""
    return [os.fsdecode(b", ".join(names[stem])) for stem in sorted(names) if len(names[stem]) > 1]


def _unpaired(images: Mapping[str, list[bytes]], drawn: Mapping[str, list[bytes]]) -> str | None:
    """Return why images and maps are not one to one, None where they are; maps without an image do no harm."""
    lone, double = sorted(images.keys() - drawn.keys()), alike(images) + alike(drawn)
    if double:
        return f"{len(double)} names stand for several files, {double[0]} for instance"
    if lone:
        return f"{len(lone)} images have no map, {lone[0]} for instance"
    return None if images else "no image"


def read_map(path: Path) -> np.ndarray:
    """Return the values of a map as they are stored, (H, W) uint8; UnreadableImage where it is no grey or palette image of 8 bits."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            if image.mode not in ("L", "P"):
                raise UnreadableImage(
                    f"{path} has mode {image.mode}: a map holds one value of 8 bits per pixel, its class (an RGB picture shows colours)"
                )
            return np.array(image)
    except UnreadableImage:
        raise
    except Exception as error:  # PIL's plugins raise nearly anything on broken files
        raise UnreadableImage(f"{path} cannot be decoded: {error}") from error


def reduced(values: np.ndarray, *, reduce_zero_label: bool) -> np.ndarray:
    """Return the classes of a map's values: with reduce_zero_label 0 becomes IGNORED and k becomes k - 1 (IGNORED stays), as in mmseg."""
    if not reduce_zero_label:
        return values
    return np.where((values == 0) | (values == IGNORED), IGNORED, values - 1).astype(np.uint8)
