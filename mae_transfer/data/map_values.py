"""Read class maps and convert their stored values to labels, for training, evaluation and the data check.

Legend: H x W pixels, C classes. A stored value is a whole number from 0 to 65535. A label is a class 0..C-1 or IGNORED.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.data.decode import UnreadableImage, load, opened_image, orientation, read_file, upright
from mae_transfer.interfaces import IGNORED

MAP_SUFFIXES = (b".png", b".tif", b".tiff", b".bmp", b".gif")
FORMATS = ("PNG", "TIFF", "BMP", "GIF")
VALUES = 1 << 16  # number of 16-bit values
VOID = (IGNORED, VALUES - 1)  # the largest 8-bit and 16-bit values mean "no class"
BEYOND = -1  # label of a value that has no meaning
BITS, INTERPRETATION = 258, 262  # tags of a TIFF: bits per sample, photometric interpretation (0: white is zero)


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


def coding_of(classes: int, *, reduce_zero_label: bool, values: tuple[int, ...] | None) -> Coding:
    """Return the coding of a set. ValueError if `values` does not give each class its own value."""
    if values is not None:
        if len(values) != classes or len(set(values)) != classes:
            raise ValueError(
                f"values={values}: give each of the {classes} classes its own value, in the order of `classes`"
            )
        if min(values) < 0 or max(values) >= VALUES:
            raise ValueError(f"values={values}: give values from 0 to {VALUES - 1}")
    return Coding(classes, reduce_zero_label, values)


def read_map(path: Path, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the stored values of an upright map, (H, W) uint8 or int32.

    Args:
        size: height and width of its upright image; None: unknown.

    Raises:
        BrokenMap: the file does not hold one whole number per pixel, or its size differs from the image's.
        OSError: the file is missing.
    """
    try:
        stored = opened_image(read_file(path), functools.partial(_stored, path=path), where=str(path))
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
