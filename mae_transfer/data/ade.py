"""Images with class maps in ADE20K's layout: images/SPLIT/*.jpg beside annotations/SPLIT/*.png.

Legend: H x W pixels, C classes. A map holds one class per pixel. A stored value is a whole number from 0 to 65535. A
label is a class 0..C-1, or IGNORED for pixels without a class.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.bounds import Count, Probability, Whole
from mae_transfer.data.decode import UnreadableImage, decode_file, load, open_image, orientation, read_file, upright
from mae_transfer.data.folders import IgnoredFiles, image_suffixes, list_images
from mae_transfer.data.reports import Defect, Defects, report_on_main
from mae_transfer.data.sources import FolderSetConfig, select_part
from mae_transfer.interfaces import IGNORED

CLASSES_FILE = "classes.txt"  # one name per line; written by the user, or with the generated shapes
OFFICIAL_FILE = "objectInfo150.txt"  # from ADE20K's archive: a table whose last column is the name, "door, double door"
MAP_SUFFIXES = (b".png", b".tif", b".tiff", b".bmp", b".gif")
FORMATS = ("PNG", "TIFF", "BMP", "GIF")
VALUES = 1 << 16  # number of 16-bit values
VOID = (IGNORED, VALUES - 1)  # the largest 8-bit and 16-bit values mean "no class"
BEYOND = -1  # label of a value that has no meaning
BITS, INTERPRETATION = 258, 262  # tags of a TIFF: bits per sample, photometric interpretation (0: white is zero)


class MappedImage(NamedTuple):
    """One stored image, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    labels: Tensor  # (H, W) uint8: class 0..C-1, or IGNORED


class MapSource(Protocol):
    """A set of images with class maps. Loader workers receive a pickled copy, so it should be small."""

    classes: tuple[str, ...]  # names by class

    def __len__(self) -> int: ...

    def read(self, index: int) -> MappedImage:
        """Return image `index` with its map. UnreadableImage names a file that cannot be used."""
        ...

    def where(self, index: int) -> str:
        """Return the path of image `index`, for messages."""
        ...


class AdeConfig(FolderSetConfig):
    """Images with class maps: images/SPLIT/*.jpg beside annotations/SPLIT/*.png."""

    name: Literal["ade"] = "ade"
    split: str = "training"
    """Subfolder of images/ and annotations/: "training" or "validation"."""
    classes: Sequence[str] | None = None
    """Class names in the order of the maps' values. None: read them from classes.txt or objectInfo150.txt (ADE20K's own
    list of 150) in `root`."""
    reduce_zero_label: bool = True
    """True: 0 is void (ignored) and 1 is the first class, as in ADE20K and in CamVid as this project lays it out.
    False: 0 is the first class."""
    values: Sequence[Whole] | None = None
    """Stored value of each class, if they are not consecutive: (0, 255) for masks. They replace reduce_zero_label."""
    image_suffix: str | None = None
    """Ending of image names ("_leftImg8bit.png"). The part before it pairs images and maps. None: every suffix that the
    decoder reads."""
    map_suffix: str | None = None
    """The same for maps ("_mask.png"). None: .png, .tif, .tiff, .bmp or .gif."""
    allow_absent: bool = False
    """Accept classes without a pixel in any map of this set and leave them out of the means."""
    first: Count | None = None
    """Use only this many images, in the order of their names."""
    part: tuple[Probability, Probability] = (0.0, 1.0)
    """Use only the images between two fractions of a fixed random order, for instance (0.0, 0.9) for training and
    (0.9, 1.0) for the hold-out."""

    def open(self) -> Ade:
        return Ade(self)


class Ade:
    """Images with class maps, sorted by name, in folders of any depth."""

    def __init__(self, cfg: AdeConfig) -> None:
        """List the files.

        Broken ones are found by data/checks.py before a run starts, and reported by `read`.

        Raises:
            ValueError: names a missing or empty folder, images without a map, files that differ only in their suffix,
                or the error in the list of classes.
        """
        self.classes, self.coding, self.images, self.maps = find_layout(cfg)
        self.allow_absent = cfg.allow_absent
        pairs, found = find_pairs(cfg, self.images, self.maps)
        if defects := [str(defect) for defect in found if not defect.policy]:
            raise ValueError(
                f"{self.images}, {self.maps}: {'; '.join(defects)} (tools/prepare_data.py check lists every defect)"
            )
        chosen = [pairs[index] for index in select_part(len(pairs), cfg.part)[: cfg.first]]
        # (n, 2) names of image and map, in one block of memory: workers would copy a list of strings
        self._names = np.array(chosen, dtype=np.bytes_).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> MappedImage:
        """Return image `index` with its map. UnreadableImage names a broken file, or one of invalid size or values."""
        image, path = decode_file(self.where(index)), self.map_of(index)
        stored = read_map(path, size=(image.shape[1], image.shape[2]))
        return MappedImage(image, torch.from_numpy(self.coding.labels(stored, path)))

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.images / os.fsdecode(self._names[index, 0]))

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Return the paths of all images and maps, relative to their folders."""
        return [(bytes(image), bytes(label_map)) for image, label_map in self._names]

    def map_of(self, index: int) -> Path:
        """Return the path of the map of image `index`."""
        return self.maps / os.fsdecode(self._names[index, 1])


def class_names(root: Path, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the class names: those given, or those in the data set's folder.

    Raises:
        ValueError: there are no names, a name occurs twice, or the number of classes is not supported.
    """
    if classes is None:
        named, official = root / CLASSES_FILE, root / OFFICIAL_FILE
        if named.is_file():
            classes = [line.strip() for line in _read_lines(named) if line.strip()]
        elif official.is_file():
            classes = [line.rpartition("\t")[2].strip() for line in _read_lines(official)[1:] if line.strip()]
        else:
            raise ValueError(
                f"no class list: set `classes`, or put {CLASSES_FILE} (a name per line) or ADE20K's {OFFICIAL_FILE} "
                f"into {str(root)!r}"
            )
    if not 2 <= len(classes) <= IGNORED:
        raise ValueError(
            f"{len(classes)} classes: give 2 to {IGNORED} (labels have 8 bits; with one class every pixel is correct)"
        )
    if twice := sorted({name for name in classes if list(classes).count(name) > 1}):
        raise ValueError(f"class names occur more than once: {twice}; results are stored by name, so rename them")
    return tuple(classes)


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file, without a byte-order mark. ValueError for other encodings."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it in that encoding"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not in UTF-8 (it holds zero bytes, as UTF-16 does): save it in that encoding")
    return text.splitlines()


def find_layout(cfg: AdeConfig) -> tuple[tuple[str, ...], Coding, Path, Path]:
    """Return the class names, the meaning of stored values, and the folders of images and maps.

    Raises:
        ValueError: a folder or the list of classes is missing, or the values do not fit the classes.
    """
    classes = class_names(cfg.home, cfg.classes)
    if cfg.values is not None:
        values = tuple(cfg.values)
        if len(values) != len(classes) or len(set(values)) != len(classes):
            raise ValueError(
                f"values={values}: give each of the {len(classes)} classes its own value, in the order of `classes`"
            )
        if max(values) >= VALUES:
            raise ValueError(f"values={values}: give values from 0 to {VALUES - 1}")
    coding = Coding(len(classes), cfg.reduce_zero_label, None if cfg.values is None else values)
    images, maps = (cfg.home / folder / cfg.split for folder in ("images", "annotations"))
    for found in (images, maps):
        if not found.is_dir():
            raise ValueError(
                f"no folder {str(found)!r}; set data.root to a folder in ADE20K's layout, with images/{cfg.split} and "
                f"annotations/{cfg.split}"
            )
    return classes, coding, images, maps


def find_pairs(cfg: AdeConfig, images: Path, maps: Path) -> tuple[list[tuple[bytes, bytes]], list[Defect]]:
    """Return the sorted pairs of image and map names, and the defects of the other files. Unused files are reported."""
    image_names, map_names = (
        _names(images, cfg.image_suffix, image_suffixes()),
        _names(maps, cfg.map_suffix, MAP_SUFFIXES),
    )
    found = Defects()
    unpaired = sorted(image_names.keys() - map_names.keys())
    ending = _ending(unpaired[0], map_names) if unpaired else None
    hint = f"if map names end in {ending!r}, set map_suffix={ending!r}" if ending else ""
    found.add_all("image without a map", [os.fsdecode(image_names[stem][0]) for stem in unpaired], remedy=hint)
    found.add_all(
        "map without an image",
        [os.fsdecode(map_names[stem][0]) for stem in sorted(map_names.keys() - image_names.keys())],
        policy="not used",
    )
    found.add_all("files that differ only in their suffix", [*_ambiguous(image_names), *_ambiguous(map_names)])
    if not image_names:
        found.add("no image", images)
    paired = sorted(image_names.keys() & map_names.keys())
    return [(image_names[stem][0], map_names[stem][0]) for stem in paired], found.collected()


def _names(folder: Path, suffix: str | None, suffixes: tuple[bytes, ...]) -> dict[str, list[bytes]]:
    """Return the relative paths of all files below a folder, by path without suffix. Hidden files are left out."""
    taken = (os.fsencode(suffix.removeprefix("*").lower()),) if suffix is not None else suffixes
    ignored, found = IgnoredFiles(), dict[str, list[bytes]]()
    for path in list_images(os.fsencode(folder), ignored, taken):
        name = os.path.relpath(path, os.fsencode(folder))
        stem = name[: -len(taken[0])] if suffix is not None else name.rpartition(b".")[0]
        found.setdefault(os.fsdecode(stem), []).append(name)
    if ignored and suffix is None:
        report_on_main(f"{folder}: ignored {ignored}")
    return found


def _ambiguous(names: Mapping[str, list[bytes]]) -> list[str]:
    """Return the files that share a name without suffix, each as "a.jpg, a.png"."""
    return [os.fsdecode(b", ".join(names[stem])) for stem in sorted(names) if len(names[stem]) > 1]


def _ending(stem: str, map_names: Mapping[str, list[bytes]]) -> str | None:
    """Return the ending that a map's name adds to the image's, "_mask.png"; None if no map starts with that name."""
    names = (os.fsdecode(found[0]) for found in map_names.values())
    return next((name.removeprefix(stem) for name in sorted(names) if name.startswith(stem)), None)


class BrokenMap(UnreadableImage):
    """A map that cannot be used. It has the kind of defect (as the check lists it), the details and the remedy."""

    def __init__(self, path: Path, kind: str, seen: str = "", remedy: str = "") -> None:
        super().__init__(f"{path}: {kind}{f' ({seen})' if seen else ''}{f'; {remedy}' if remedy else ''}")
        self.kind, self.seen, self.remedy = kind, seen, remedy


class Coding(NamedTuple):
    """The meaning of the values in a set's maps."""

    classes: int
    reduce_zero_label: bool = True  # 0 is void and 1 the first class; False: 0 is the first class
    values: tuple[int, ...] | None = None  # the value of each class, if they are not consecutive: (0, 255)

    def labels(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Return the labels (H, W) uint8 of stored values (H, W). BrokenMap if a value has no meaning."""
        found = np.take(_table(self), stored)
        if found.size and found.min() == BEYOND:
            value = int(stored[found == BEYOND].max())
            raise BrokenMap(path, self.beyond, f"value {value}", self.remedy)
        labels: np.ndarray = found.astype(np.uint8)
        return labels

    def present(self, values: np.ndarray) -> np.ndarray:
        """Return which classes occur in stored values, (C,) bool."""
        labels = np.take(_table(self), values)
        return np.isin(np.arange(self.classes), labels)

    def value(self, label: int) -> int:
        """Return the stored value of a class."""
        return self.values[label] if self.values is not None else label + self.reduce_zero_label

    @property
    def beyond(self) -> str:
        """The kind of defect for a value without a meaning."""
        if self.values is not None:
            return f"value that is not among values={self.values}"
        return f"value beyond the {self.classes} classes"

    @property
    def remedy(self) -> str:
        if self.values is not None:
            return "list the value of each class in `values`, or write the maps again"
        first = "0 is void and 1 the first class" if self.reduce_zero_label else "0 is the first class"
        remedy = "list all classes, or give the value of each (values=(0, 255) for masks)"
        return f"{first} (reduce_zero_label={self.reduce_zero_label}): {remedy}"


@functools.cache
def _table(coding: Coding) -> np.ndarray:
    """Return the label of every value, (65536,) int16: a class, IGNORED or BEYOND."""
    table = np.full(VALUES, BEYOND, dtype=np.int16)
    table[list(VOID)] = IGNORED
    if coding.values is None and coding.reduce_zero_label:
        table[0] = IGNORED
    for label in range(coding.classes):
        if coding.values is not None or coding.value(label) not in VOID:
            table[coding.value(label)] = label
    return table


def read_map(path: Path, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the stored values of an upright map, (H, W) uint8 or int32.

    Args:
        size: height and width of its upright image; None: unknown.

    Raises:
        BrokenMap: the file does not hold one whole number per pixel, or its size differs from the image's.
        OSError: the file is missing.
    """
    try:
        stored = open_image(read_file(path), functools.partial(_stored, path=path), where=str(path))
    except BrokenMap:
        raise
    except UnreadableImage as error:
        raise BrokenMap(path, "unreadable map", str(error).removeprefix(f"{path}: ")) from error
    if size is not None and stored.shape != size:
        raise BrokenMap(
            path,
            "map whose size differs from its image",
            f"{stored.shape[1]} x {stored.shape[0]}, image {size[1]} x {size[0]}",
        )
    return stored.numpy()


def _stored(image: Image.Image, data: bytes, warned: list[str], *, path: Path) -> Tensor:
    if image.format not in FORMATS or image.info.get("compression") == "jpeg":
        remedy = "save it in a lossless format such as PNG"
        raise BrokenMap(path, f"map in another format than {', '.join(FORMATS)}", f"{image.format}", remedy)
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        remedy = "save it with one whole number per pixel, the class"
        raise BrokenMap(path, "map with colours instead of classes", f"mode {image.mode}", remedy)
    bits, inverted = _bits(image, data), hasattr(image, "tag_v2") and image.tag_v2.get(INTERPRETATION) == 0
    load(image, warned)
    values = np.array(image).astype(np.uint8 if image.mode in ("1", "L", "P") else np.int32)
    if image.mode == "1":
        values = 1 - values if inverted else values
    elif image.mode == "L":  # PIL scales fewer bits to 0..255, and inverts images in which white is zero
        values = (255 - values if inverted else values) // (255 // ((1 << bits) - 1))
    if values.size and (values.min() < 0 or values.max() >= VALUES):
        raise BrokenMap(path, "value outside 0 to 65535", f"value {values.min() if values.min() < 0 else values.max()}")
    return upright(torch.from_numpy(values), orientation(image, warned))


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the number of bits of a grey value."""
    if image.format == "PNG":
        return data[24]  # in IHDR, the first chunk
    if hasattr(image, "tag_v2"):
        return int(image.tag_v2.get(BITS, (1,))[0])
    return 8
