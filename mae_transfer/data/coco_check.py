"""Find all defects of a COCO-format data set: of its json, by the rules of data/coco_rules.py, and of its images.

Legend: H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mae_transfer.data.coco import Coco, ObjectSource, load_json, locate
from mae_transfer.data.coco_rules import examine
from mae_transfer.data.decode import size_of
from mae_transfer.data.reports import Defect, Defects, refused, report, watched

READERS = 8  # files opened at a time


def check_coco(
    root: str,
    *,
    split: str = "train2017",
    annotations: str | None = None,
    images: str | None = None,
    masks: bool = True,
) -> list[Defect]:
    """Return every defect of a split, or an empty list. The arguments are those of data.coco.Coco.

    Images are opened to read their size, not decoded. Use masks=False for a set that is used for boxes only.
    """
    try:
        file, folder = locate(root, split, annotations, images)
        content = load_json(file)
    except ValueError as error:
        return [Defect("unusable data set", 1, (str(error),))]
    found = examine(content, masks=masks)
    listed = [(folder / image["file_name"], (image["height"], image["width"])) for image in found.images]
    return [*found.defects, *_files(listed)]


def check_images(sets: Mapping[str, ObjectSource], *, skip: int = 0) -> None:
    """Check the size of every image of the sets that a run has opened. Generated sets are not checked.

    Args:
        sets: the sets by their purpose, for messages.
        skip: accept and report up to this many unreadable files per set.

    Raises:
        ValueError: an image is missing, unreadable, or differs in size from the json.
    """
    for what, source in sets.items():
        if isinstance(source, Coco):
            defects = _files([(Path(source.where(index)), source.size(index)) for index in range(len(source))])
            if sum(defect.number for defect in defects) > skip:
                refused(defects, where=f"the {what} set, {source.folder}")
            for defect in defects:
                report(f"the {what} set, {source.folder}: {defect}")


def _files(images: Sequence[tuple[Path, tuple[int, int]]]) -> list[Defect]:
    """Return the defects of images with given sizes (H, W). Threads hide the latency of network file systems."""
    found = Defects()
    with ThreadPoolExecutor(READERS) as readers:
        results = readers.map(lambda image: size_of(image[0]), images)
        for (path, stated), size in zip(images, watched(results, what="images", total=len(images)), strict=True):
            if isinstance(size, str):
                found.add(size, path.name)
            elif size != stated:
                sizes = f"{size[1]} x {size[0]}, json: {stated[1]} x {stated[0]}"
                found.add("image whose size differs from the json", f"{path.name} ({sizes})")
    return found.collected()
