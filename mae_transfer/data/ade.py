"""Images with a map of classes: ADE20K's layout, images/SPLIT/*.jpg beside annotations/SPLIT/*.png, for any data set that is laid out like that.

Legend: H x W pixels, C classes; a map holds a class per pixel, or IGNORED where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mae_transfer.bounds import Count, Probability, Whole
from mae_transfer.data.decode import decode_file
from mae_transfer.data.defects import Defect, Defects
from mae_transfer.data.labelled import part_of
from mae_transfer.data.listing import PassedOver, image_suffixes, is_image
from mae_transfer.data.map_values import MAP_SUFFIXES, coding_of, read_map
from mae_transfer.data.notes import report_on_main
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
    """Images with class maps, sorted by name, in folders of any depth.

    Args:
        root: the data set's folder, with images/ and annotations/.
        split: subfolder of both: "training" or "validation".
        classes: their names in the order of the maps' values; None: those of root's classes.txt or objectInfo150.txt (ADE20K's own list of 150).
        reduce_zero_label: a map's 0 is no class but void, ignored, and 1 is the first class (ADE20K, CamVid as it is laid out here). False: 0 is.
        values: the stored value of each class, where they are no row of numbers: (0, 255) for masks. reduce_zero_label then says nothing.
        image_suffix: how names of images end ("_leftImg8bit.png"), after what names the pair; None: in any suffix that the decoder reads.
        map_suffix: the same of maps ("_mask.png"); None: .png, .tif, .tiff, .bmp or .gif.
        allow_absent: go on where a class has no pixel in any map of this set; its figures are then left out of the means.
        first: take only so many images, by their names.
        part: take only those between two shares of a fixed random order: (0.0, 0.9) to train on where (0.9, 1.0) is held out.
    Raises:
        ValueError: names the folder that is missing or empty, the images without a map, files that differ in their suffix alone, or what is wrong
            with the list of classes. What is wrong with single files data/ade_check.py finds before a run starts, and `read` says.
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "training",
        classes: Sequence[str] | None = None,
        reduce_zero_label: bool = True,
        values: Sequence[Whole] | None = None,
        image_suffix: str | None = None,
        map_suffix: str | None = None,
        allow_absent: bool = False,
        first: Count | None = None,
        part: tuple[Probability, Probability] = (0.0, 1.0),
    ) -> None:
        self.classes = class_names(Path(root).expanduser(), classes)
        self.coding = coding_of(
            len(self.classes), reduce_zero_label=reduce_zero_label, values=None if values is None else tuple(values)
        )
        self.allow_absent = allow_absent
        self.images, self.maps = folders(root, split)
        pairs, found = pairs_in(self.images, self.maps, image_suffix=image_suffix, map_suffix=map_suffix)
        if defects := [str(defect) for defect in found if not defect.policy]:
            raise ValueError(
                f"{self.images}, {self.maps}: {'; '.join(defects)} (tools/prepare_data.py check lists every defect)"
            )
        if first is not None and first < 1:
            raise ValueError(f"first={first}: how many images should be taken?")
        chosen = [pairs[index] for index in part_of(len(pairs), part)[:first]]
        self._names = np.array(chosen, dtype=np.bytes_).reshape(
            -1, 2
        )  # (n, 2) image and map: one block, whatever the number of names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Mapped:
        """Return image `index` with its map; UnreadableImage names a file that cannot be decoded, or whose values or size are impossible."""
        image, path = decode_file(self.where(index)), self.map_of(index)
        stored = read_map(path, size=(image.shape[1], image.shape[2]))
        return Mapped(image, torch.from_numpy(self.coding.labels(stored, path)))

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.images / os.fsdecode(self._names[index, 0]))

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Return the names of all images and maps, from their folders."""
        return [(bytes(image), bytes(drawn)) for image, drawn in self._names]

    def map_of(self, index: int) -> Path:
        """Return the path of the map of image `index`."""
        return self.maps / os.fsdecode(self._names[index, 1])


def class_names(root: Path, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names given, or those that lie with the data set; ValueError where there are none, one twice, or more than a map can tell apart."""
    if classes is None:
        named, official = root / CLASSES_FILE, root / OFFICIAL_FILE
        if named.is_file():
            classes = [line.strip() for line in _lines(named) if line.strip()]
        elif official.is_file():
            classes = [line.rpartition("\t")[2].strip() for line in _lines(official)[1:] if line.strip()]
        else:
            raise ValueError(
                f"no class list: set `classes`, or put {CLASSES_FILE} (a name per line) or ADE20K's {OFFICIAL_FILE} into {str(root)!r}"
            )
    if not 2 <= len(classes) <= IGNORED:
        raise ValueError(
            f"{len(classes)} classes: labels of 8 bits tell 2 to {IGNORED} of them apart (with one alone every pixel would be right)"
        )
    if twice := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise ValueError(f"classes of the same name: {twice}; results are kept by name")
    return tuple(classes)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text that people write with any editor: with a byte-order mark or without; ValueError where it is no UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it in that encoding"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not in UTF-8 (it holds zero bytes, as UTF-16 does): save it in that encoding")
    return text.splitlines()


def folders(root: str, split: str) -> tuple[Path, Path]:
    """Return the folders of images and maps of a split; ValueError where one is missing."""
    home = Path(root).expanduser()
    found = home / "images" / split, home / "annotations" / split
    for folder in found:
        if not folder.is_dir():
            raise ValueError(
                f"no folder {str(folder)!r}; a data set in ADE20K's layout has images/{split} and annotations/{split} (set data.root)"
            )
    return found


def pairs_in(
    images: Path, maps: Path, *, image_suffix: str | None = None, map_suffix: str | None = None
) -> tuple[list[tuple[bytes, bytes]], list[Defect]]:
    """Return the names of images and maps that belong together, sorted, and what is wrong with the others; what is passed over is reported once."""
    pictures, drawn = _names(images, image_suffix, image_suffixes()), _names(maps, map_suffix, MAP_SUFFIXES)
    found = Defects()
    lone = sorted(pictures.keys() - drawn.keys())
    ending = _ending(lone[0], drawn) if lone else None
    hint = f"do maps end in {ending!r}? Then set map_suffix={ending!r}" if ending else ""
    found.add_all("image without a map", [os.fsdecode(pictures[stem][0]) for stem in lone], remedy=hint)
    found.add_all(
        "map without an image",
        [os.fsdecode(drawn[stem][0]) for stem in sorted(drawn.keys() - pictures.keys())],
        policy="not used",
    )
    found.add_all("files that differ in their suffix alone", [*_alike(pictures), *_alike(drawn)])
    if not pictures:
        found.add("no image", images)
    return [(pictures[stem][0], drawn[stem][0]) for stem in sorted(pictures.keys() & drawn.keys())], found.collected()


def _names(folder: Path, suffix: str | None, suffixes: tuple[bytes, ...]) -> dict[str, list[bytes]]:
    """Return the files below a folder, as paths from it, by what stands before their suffix, without hidden ones."""
    taken = (os.fsencode(suffix.removeprefix("*").lower()),) if suffix is not None else suffixes
    passed, found = PassedOver(), dict[str, list[bytes]]()
    for name in _files(os.fsencode(folder), b"", taken, passed):
        stem = name[: -len(taken[0])] if suffix is not None else name.rpartition(b".")[0]
        found.setdefault(os.fsdecode(stem), []).append(name)
    if passed and suffix is None:
        report_on_main(f"{folder}: passed over {passed}")
    return found


def _files(folder: bytes, below: bytes, suffixes: tuple[bytes, ...], passed: PassedOver) -> list[bytes]:
    with os.scandir(folder) as entries:
        seen = sorted((entry for entry in entries if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    found: list[bytes] = []
    for entry in seen:
        if entry.is_dir():
            found += _files(entry.path, below + entry.name + b"/", suffixes, passed)
        elif is_image(entry, passed, suffixes):
            found.append(below + entry.name)
    return found


def _alike(names: Mapping[str, list[bytes]]) -> list[str]:
    """Return the files of `_names` that cannot be told apart, "a.jpg, a.png" each."""
    return [os.fsdecode(b", ".join(names[stem])) for stem in sorted(names) if len(names[stem]) > 1]


def _ending(stem: str, drawn: Mapping[str, list[bytes]]) -> str | None:
    """Return what follows an image's name in a map's, "_mask.png"; None where no map begins like that."""
    names = (os.fsdecode(found[0]) for found in drawn.values())
    return next((name.removeprefix(stem) for name in sorted(names) if name.startswith(stem)), None)
