"""Pictures of segmentations: image | truth | prediction, with a legend of the classes that occur.

Legend: H x W pixels, C classes. A map holds one class per pixel, or IGNORED.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from mae_transfer.disk import atomic_write
from mae_transfer.interfaces import IGNORED

MIX = 0.6  # opacity of a class's colour
GOLDEN = 0.618034  # step in hue between two classes, so that neighbours in the list differ clearly
MOST_NAMES = 24  # in a legend: the classes with the most pixels
LONGEST = 20  # characters of a name in a legend


class SegmentationPicture(NamedTuple):
    """One image with its true and its predicted map, on the host."""

    image: Tensor  # (3, H, W) uint8 RGB
    truth: Tensor  # (H, W): class or IGNORED
    predicted: Tensor  # (H, W): class
    name: str


def palette(classes: int) -> np.ndarray:
    """Return a colour per class, (C, 3) in [0, 1], the same in every run: tab20, then hues by the golden ratio."""
    first = np.asarray(colormaps["tab20"](range(20)))[:, :3]
    hues = [
        colorsys.hsv_to_rgb(k * GOLDEN % 1, (0.9, 0.55, 0.75)[k // 3 % 3], (1.0, 0.95, 0.6)[k % 3])
        for k in range(len(first), classes)
    ]
    order = [*range(0, len(first), 2), *range(1, len(first), 2)]  # the strong colours, then the pale ones
    return np.concatenate([first[order], np.array(hues).reshape(-1, 3)])[:classes]


def paint(image: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8 with its map drawn over it, (H, W, 3) in [0, 1]. Ignored pixels are black."""
    known = np.minimum(labels, len(colours))
    over = np.concatenate([colours, np.zeros((1, 3))])[known]
    mixed = (1 - MIX) * image / 255 + MIX * over
    return np.where((known == len(colours))[..., None], 0.0, mixed)


def short(name: str) -> str:
    """Shorten a class name for a legend: the first of ADE20K's synonyms ("car, auto, automobile"), truncated."""
    first = name.partition(",")[0]
    return first if len(first) <= LONGEST else first[: LONGEST - 1] + "…"


def save_segmentation(path: Path, shown: SegmentationPicture, classes: Sequence[str]) -> None:
    """Write a PNG of an image, its truth and its prediction. The legend names the classes with the most pixels."""
    image = shown.image.permute(1, 2, 0).numpy()
    maps = [labels.numpy() for labels in (shown.truth, shown.predicted)]
    colours = palette(len(classes))
    height, width = maps[0].shape
    figure = Figure(figsize=(12, 4 * height / width + 1.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, drawn, title in zip(
        panels,
        (image, *(paint(image, labels, colours) for labels in maps)),
        (shown.name, "truth", "prediction"),
        strict=True,
    ):
        axes.imshow(drawn, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    pixels = sum(np.bincount(labels[labels != IGNORED].ravel(), minlength=len(classes)) for labels in maps)
    present = [int(k) for k in np.argsort(-np.asarray(pixels), kind="stable")[:MOST_NAMES] if np.asarray(pixels)[k]]
    patches = [Patch(color=tuple(colours[k]), label=short(classes[k])) for k in present]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
