"""Every defect of a COCO-format data set at once: of the json, of its images, of each object.

Legend: H x W pixels of an image; a box is [x, y, width, height] in pixels, as COCO has it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mae_transfer.data import outlines
from mae_transfer.data.coco import Json, load_json, locate
from mae_transfer.data.decode import size_of
from mae_transfer.data.defects import Defect, Defects, watched

OUTSIDE = 1.0  # pixels that a box may reach over the edge: COCO's own are rounded
READERS = 8  # files opened at a time


class Known(NamedTuple):
    """What an object may refer to."""

    sizes: dict[Hashable, tuple[int, int] | None]  # H, W by image id; None where the json gives none
    categories: set[Hashable]


def check_coco(root: str, *, split: str = "train2017", annotations: str | None = None, images: str | None = None) -> list[Defect]:
    """Return every defect of a split: json and folder are found as data.coco.Coco finds them; empty: there is none.

    Images are opened for their size, not decoded. Objects without any outline are no defect where no object has one (a set of boxes).
    """
    found = Defects()
    try:
        file, folder = locate(root, split, annotations, images)
        content = load_json(file)
    except ValueError as error:
        return [Defect("unusable data set", 1, (str(error),))]
    known = Known(_images(content["images"], found), _categories(content["categories"], found))
    _files(content["images"], folder, found)
    _objects(content["annotations"], known, found)
    return found.collected()


def _images(images: list[Any], found: Defects) -> dict[Hashable, tuple[int, int] | None]:
    sizes: dict[Hashable, tuple[int, int] | None] = {}
    for image in _complete(images, ("id", "file_name"), "image", found):
        height, width = image.get("height"), image.get("width")
        sizes[image["id"]] = None
        if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
            sizes[image["id"]] = (height, width)
        else:
            found.add("image without height and width", f"image {image['id']}")
    _repeated((image["id"] for image in _dicts(images) if "id" in image), "image id", found)
    _repeated((image["file_name"] for image in _dicts(images) if "file_name" in image), "file name", found)
    return sizes


def _categories(categories: list[Any], found: Defects) -> set[Hashable]:
    complete = _complete(categories, ("id", "name"), "category", found)
    _repeated((category["id"] for category in complete), "category id", found)
    _repeated((category["name"] for category in complete), "category name", found)
    return {category["id"] for category in complete}


def _files(images: list[Any], folder: Path, found: Defects) -> None:
    """Open every image; several at a time, for a network's sake."""
    complete = [image for image in _dicts(images) if "file_name" in image]
    with ThreadPoolExecutor(READERS) as readers:
        results = readers.map(lambda image: size_of(folder / str(image["file_name"])), complete)
        for image, size in zip(complete, watched(results, what="images", total=len(complete)), strict=True):
            if isinstance(size, str):
                found.add(size, image["file_name"])
            elif {"height", "width"} <= image.keys() and size != (image["height"], image["width"]):
                stated = f"{image['width']} x {image['height']}"
                found.add("image of another size than the json says", f"{image['file_name']} ({size[1]} x {size[0]}, json: {stated})")


def _objects(objects: list[Any], known: Known, found: Defects) -> None:
    complete = _complete(objects, ("id", "image_id", "category_id", "bbox"), "object", found)
    _repeated((one["id"] for one in complete), "object id", found)
    outlined = any("segmentation" in one for one in complete)
    for one in watched(complete, what="objects", total=len(complete)):
        where = f"object {one['id']}"
        size = known.sizes.get(one["image_id"])
        if one["image_id"] not in known.sizes:
            found.add("unknown image id", f"{where} (image {one['image_id']})")
        if one["category_id"] not in known.categories:
            found.add("unknown category id", f"{where} (category {one['category_id']})")
        if wrong := _box(one["bbox"], size):
            found.add(wrong, f"{where} (box {one['bbox']})")
        if outlined and (wrong := outlines.defect(one.get("segmentation"), size)):
            found.add(wrong, where)
        if isinstance(one.get("area"), int | float) and not one["area"] > 0:
            found.add("area that is not above zero", where)


def _box(box: Any, size: tuple[int, int] | None) -> str | None:
    """Return what is wrong with a box, or None."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return "box that is not four numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "box without area"
    if size and (min(x, y) < -OUTSIDE or x + width > size[1] + OUTSIDE or y + height > size[0] + OUTSIDE):
        return "box outside its image"
    return None


def _complete(entries: list[Any], keys: tuple[str, ...], what: str, found: Defects) -> list[Json]:
    """Return the entries that have all keys and whole numbers for ids, and note the others."""
    complete = []
    for place, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        wrong = [key for key in keys if key not in missing and key.endswith("id") and not isinstance(entry[key], int)]
        if missing:
            found.add(f"{what} without {', '.join(missing)}", f"entry {place}")
        elif wrong:
            found.add(f"{what} whose {', '.join(wrong)} is no whole number", f"entry {place}")
        else:
            complete.append(entry)
    return complete


def _dicts(entries: list[Any]) -> list[Json]:
    return [entry for entry in entries if isinstance(entry, dict)]


def _repeated(values: Iterable[Any], what: str, found: Defects) -> None:
    counts = Counter(map(str, values))
    found.add_all(f"{what} that is there more than once", [value for value, count in counts.items() if count > 1])
