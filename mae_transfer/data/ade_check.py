"""Every defect of a data set in ADE20K's layout at once: pairs, sizes, and the values of each map."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mae_transfer.data.ade import alike, class_names, folders, names_in, read_map, reduced
from mae_transfer.data.coco_check import READERS
from mae_transfer.data.decode import UnreadableImage, size_of
from mae_transfer.data.defects import Defect, Defects, watched
from mae_transfer.data.listing import image_suffixes
from mae_transfer.interfaces import IGNORED


def check_ade(root: str, *, split: str = "training", classes: Sequence[str] | None = None, reduce_zero_label: bool = True) -> list[Defect]:
    """Return every defect of a split, the arguments being those of data.ade.Ade; empty: there is none. Maps are decoded, images only opened."""
    found = Defects()
    try:
        count, (images, maps) = len(class_names(Path(root), classes)), folders(root, split)
    except ValueError as error:
        return [Defect("unusable data set", 1, (str(error),))]
    pictures, drawn = names_in(images, image_suffixes()), names_in(maps, (b".png",))
    found.add_all("image without a map", [os.fsdecode(pictures[stem][0]) for stem in sorted(pictures.keys() - drawn.keys())])
    found.add_all("map without an image", [os.fsdecode(drawn[stem][0]) for stem in sorted(drawn.keys() - pictures.keys())])
    found.add_all("files that differ in their suffix alone", [*alike(pictures), *alike(drawn)])
    if not pictures:
        found.add("no image", images)
    pairs = [(images / os.fsdecode(pictures[stem][0]), maps / os.fsdecode(drawn[stem][0])) for stem in sorted(pictures.keys() & drawn.keys())]
    with ThreadPoolExecutor(READERS) as readers:
        wrong = readers.map(lambda pair: list(_defects(*pair, classes=count, reduce_zero_label=reduce_zero_label)), pairs)
        for kinds in watched(wrong, what=split, total=len(pairs)):
            for kind, where in kinds:
                found.add(kind, where)
    return found.collected()


def _defects(image: Path, drawn: Path, *, classes: int, reduce_zero_label: bool) -> Iterator[tuple[str, str]]:
    """Yield (kind, where) of everything that is wrong with one pair."""
    size = size_of(image)
    if isinstance(size, str):
        yield size, image.name
    try:
        labels = reduced(read_map(drawn), reduce_zero_label=reduce_zero_label)
    except UnreadableImage as error:
        yield ("map with colours instead of classes, or of more than 8 bits" if "has mode" in str(error) else "unreadable map"), drawn.name
        return
    if not isinstance(size, str) and labels.shape != size:
        yield "map of another size than its image", f"{drawn.name} ({labels.shape[1]} x {labels.shape[0]}, image {size[1]} x {size[0]})"
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORED + 1)[:IGNORED])
    if not len(present):
        yield "empty map: no pixel has a class", drawn.name
    elif present[-1] >= classes:
        yield f"label beyond the {classes} classes", f"{drawn.name} (class {present[-1]})"
