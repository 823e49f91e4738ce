"""Rules for COCO-format json files, used by the data check, training and evaluation.

A defect either stops every run, or has a policy. Policies are applied, counted and reported in the same way by
training, evaluation and the check. Types are strict: numbers must be json numbers, and not NaN or infinite.

Legend: A objects, H x W pixels of an image. A box is [x, y, width, height] in pixels, as in COCO.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mae_transfer.core.runs import run_lengths
from mae_transfer.data.reports import Defect, Defects

Json = dict[str, Any]
IDS = 2**53  # all json readers represent smaller whole numbers exactly
LARGEST = 1e9  # absolute value of the numbers of a box
AREAS = 1e10  # COCO's evaluation silently ignores larger objects
OUTSIDE = 1.0  # pixels by which a box may exceed the image, since COCO's boxes are rounded
TOUCHES = 1.0  # pixels of distance between a box and its outline that rounding can cause
# A box is taken for x0, y0, x1, y1 if its IoU with the outline is at least the first value when read in this way, and
# below the second when read as x, y, width, height.
CORNERS = (0.9, 0.5)
PAIRS = "polygon of [x, y] pairs"
FLAT = "write each polygon as one list [x0, y0, x1, y1, ...]"
AGAIN = "encode the mask again, for instance with pycocotools.mask.encode"
CHUNK = 4096  # objects whose coordinates are checked together
LEFT_OUT, CLIPPED, COMPUTED = "left out", "clipped to the image", "computed from outline or box"
WHOLE = "write whole numbers of at least 0, not text or fractions"
TYPES: Mapping[str, tuple[Collection[type], str]] = {
    "id": ((int,), WHOLE), "image_id": ((int,), WHOLE), "category_id": ((int,), WHOLE),
    "height": ((int,), WHOLE), "width": ((int,), WHOLE),
    "file_name": ((str,), "write the path of the file relative to the image folder"),
    "name": ((str,), "write the category's name"),
    "bbox": ((list,), "write [x, y, width, height]"),
}  # fmt: skip


class Examined(NamedTuple):
    """The usable content of a json, and its defects."""

    images: list[Json]
    categories: list[Json]
    objects: list[Json]  # after applying the policies
    defects: list[Defect]


def examine(content: Mapping[str, Any], *, masks: bool) -> Examined:
    """Return the usable entries of the lists `images`, `categories` and `annotations`, and every defect.

    masks: whether outlines are used. If so, objects without a valid outline are left out.
    """
    found = Defects()
    images, categories = _images(content["images"], found), _categories(content["categories"], found)
    objects = _complete(content["annotations"], ("id", "image_id", "category_id", "bbox"), "object", found)
    _repeated([one["id"] for one in objects], "object id", "renumber the objects", found)
    for key, entries in (("image", content["images"]), ("category", content["categories"])):
        listed = {entry["id"] for entry in entries if type(entry) is dict and type(entry.get("id")) is int}
        for one in (one for one in objects if one[f"{key}_id"] not in listed):
            remedy = f"list the {key}, or remove the object"
            found.add(f"unknown {key} id", f"object {one['id']} ({key} {one[f'{key}_id']})", remedy=remedy)
    objects = _check_flags(objects, found)
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    objects = _checked([one for one in objects if one["image_id"] in sizes], sizes, found, masks=masks)
    if not any(not defect.policy for defect in found.collected()) and not any(
        not one.get("iscrowd", 0) for one in objects
    ):
        total = len(content["annotations"])
        crowds = f"{total} objects: {len(objects)} crowd regions, {total - len(objects)} left out"
        remedy = "annotate objects with iscrowd 0"
        if masks and not any(one.get("segmentation") for one in content["annotations"]):
            remedy = (
                "no object has an outline: to use boxes only, set masks=False and heads.masks=False (check: --boxes)"
            )
        found.add("no object to train on or to evaluate", crowds, remedy=remedy)
    return Examined(images, categories, objects, found.collected())


def _images(entries: Sequence[Any], found: Defects) -> list[Json]:
    images = _complete(entries, ("id", "file_name", "height", "width"), "image", found)
    limit = Image.MAX_IMAGE_PIXELS or 2**31
    for image in images:
        if not 0 < image["height"] * image["width"] <= limit:
            where = f"image {image['id']} ({image['width']} x {image['height']})"
            found.add("image with no pixels, or with too many to decode", where, remedy="write the size of its file")
        if not _path(image["file_name"]):
            found.add("image whose file_name is not a path", f"image {image['id']}", remedy=TYPES["file_name"][1])
    _repeated([image["id"] for image in images], "image id", "give each image its own id", found)
    _repeated([image["file_name"] for image in images], "file name", "list each file once", found)
    if not entries:
        found.add("no image is listed", "images []", remedy="check that it is the right file")
    return [image for image in images if 0 < image["height"] * image["width"] <= limit and _path(image["file_name"])]


def _path(name: str) -> bool:
    """Return whether a file can have this name."""
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _categories(entries: Sequence[Any], found: Defects) -> list[Json]:
    categories = _complete(entries, ("id", "name"), "category", found)
    _repeated([category["id"] for category in categories], "category id", "give each category its own id", found)
    _repeated(
        [category["name"] for category in categories], "category name", "merge the categories, or rename one", found
    )
    return categories


def _complete(entries: Sequence[Any], keys: tuple[str, ...], what: str, found: Defects) -> list[Json]:
    """Return the entries that have all keys with the right types, and note the others."""
    if set(map(type, entries)) <= {dict} and all(_typed(key, [entry.get(key) for entry in entries]) for key in keys):
        return list(entries)
    complete = []
    for position, entry in enumerate(entries):
        missing = [key for key in keys if type(entry) is not dict or key not in entry]
        wrong = [key for key in keys if key not in missing and not _typed(key, [entry[key]])]
        name = f"{what} {entry['id']}" if "id" in keys and "id" not in {*missing, *wrong} else f"entry {position}"
        for key in wrong:
            types, remedy = TYPES[key]
            expected = {int: "a whole number of at least 0", str: "text", list: "a list"}[next(iter(types))]
            found.add(f"{what} whose {key} is not {expected}", f"{name} ({str(entry[key])[:30]!r})", remedy=remedy)
        if missing:
            found.add(f"{what} without {', '.join(missing)}", name, remedy="add the keys, or remove the entry")
        elif not wrong:
            complete.append(entry)
    return complete


def _typed(key: str, values: Sequence[Any]) -> bool:
    """Return whether all values of a key have its type, and whole numbers are from 0 to IDS."""
    types = TYPES[key][0]
    if not set(map(type, values)) <= set(types):
        return False
    return not values or types != (int,) or (min(values) >= 0 and max(values) < IDS)


def _repeated(values: Sequence[Any], what: str, remedy: str, found: Defects) -> None:
    if len(set(values)) < len(values):
        counts = Counter(values)
        found.add_all(
            f"{what} that occurs more than once",
            [value for value, count in counts.items() if count > 1],
            remedy=remedy,
        )


def _check_flags(objects: list[Json], found: Defects) -> list[Json]:
    """Return the objects with valid `iscrowd` and `area`, and note the others. An area of zero is removed."""
    crowds, areas = [one.get("iscrowd", 0) for one in objects], [one.get("area", 1) for one in objects]
    typed = set(map(type, crowds)) <= {int, bool} and set(map(type, areas)) <= {int, float}
    if typed and set(crowds) <= {0, 1} and all(0 < area <= AREAS for area in areas):
        return objects
    kept = []
    for one, crowd, area in zip(objects, crowds, areas, strict=True):
        valid = _number(area, AREAS) and area >= 0, type(crowd) in (int, bool) and crowd in (0, 1)
        where = f"object {one['id']}"
        if not valid[0]:
            remedy = "write the area in pixels, or remove the key to have it computed"
            found.add("area that is not a number of at least 0", f"{where} ({str(area)[:30]})", remedy=remedy)
        if not valid[1]:
            found.add(
                "iscrowd that is neither 0 nor 1", f"{where} ({str(crowd)[:30]!r})", remedy="write the number 0 or 1"
            )
        if all(valid) and area == 0:
            found.add("area of zero", where, policy=COMPUTED)
        if all(valid):
            kept.append({key: value for key, value in one.items() if key != "area" or value > 0})
    return kept


def _number(value: Any, largest: float) -> bool:
    """Return whether a value is a finite number with an absolute value of at most `largest`."""
    return type(value) in (int, float) and -largest <= value <= largest


def _checked(objects: list[Json], sizes: Mapping[int, tuple[int, int]], found: Defects, *, masks: bool) -> list[Json]:
    """Return the objects with valid boxes (and outlines, with `masks`), and note the others.

    Boxes that exceed their image are clipped.
    """
    boxes = _numbers([one["bbox"] for one in objects])
    wrong = np.isnan(boxes).any(axis=1)
    _note(found, wrong, objects, "box that is not four finite numbers", remedy="write [x, y, width, height]")
    objects, boxes = _selected(objects, ~wrong), boxes[~wrong]
    sides = np.array([sizes[one["image_id"]][::-1] for one in objects], dtype=np.float64).reshape(-1, 2)  # W, H
    empty, wrong, over = _boxes(objects, boxes, sides, found)
    kept = ~empty & ~wrong
    objects, boxes, sides, over = _selected(objects, kept), boxes[kept], sides[kept], over[kept]
    if masks:
        kept, objects, extents = outlined(objects, sides.astype(np.int64)[:, ::-1], found)
        boxes, sides, over = boxes[kept], sides[kept], over[kept]
        wrong = _contradicting(objects, boxes, extents, found)
        objects, boxes, sides, over = _selected(objects, ~wrong), boxes[~wrong], sides[~wrong], over[~wrong]
    low, high = np.clip(boxes[:, :2], 0, sides), np.clip(boxes[:, :2] + boxes[:, 2:], 0, sides)
    clipped = dict(
        zip(np.flatnonzero(over).tolist(), np.concatenate([low, high - low], axis=1)[over].tolist(), strict=True)
    )
    return (
        [{**one, "bbox": clipped[k]} if k in clipped else one for k, one in enumerate(objects)] if clipped else objects
    )


def _numbers(boxes: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return the boxes (A, 4); NaN for a box that is not four finite numbers."""
    if set(map(len, boxes)) <= {4} and set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        try:
            values = np.array(boxes, dtype=np.float64).reshape(-1, 4)
            if (np.abs(values) <= LARGEST).all():
                return values
        except OverflowError:  # a whole number that no float can hold
            pass
    valid = [len(box) == 4 and all(_number(value, LARGEST) for value in box) for box in boxes]
    return np.array(
        [box if good else [np.nan] * 4 for box, good in zip(boxes, valid, strict=True)], dtype=np.float64
    ).reshape(-1, 4)


def _boxes(
    objects: Sequence[Json], boxes: np.ndarray, sides: np.ndarray, found: Defects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which boxes (A, 4) are empty, which are invalid, and which exceed their images of `sides` (A, 2) W, H."""
    low, extent = boxes[:, :2], boxes[:, 2:]
    high, reach = low + extent, sides.max(axis=1, keepdims=True)
    negative = np.asarray((extent < 0).any(axis=1))
    empty = ~negative & (extent == 0).any(axis=1)
    beyond = ((low >= sides) | (high <= 0) | (low < -reach) | (high > 2 * reach)).any(axis=1)
    over = ((low < -OUTSIDE) | (high > sides + OUTSIDE)).any(axis=1) & ~empty & ~negative
    fits = ((extent > low) & (low >= -OUTSIDE) & (extent <= sides + OUTSIDE)).all(axis=1)  # as x0, y0, x1, y1
    corners: np.ndarray = over & bool(np.all(empty | fits))
    _note(
        found, negative, objects, "box of negative width or height", remedy="write [x, y, width, height]", boxes=boxes
    )
    _note(found, corners, objects, "box written as x0, y0, x1, y1", remedy="write [x, y, width, height]", boxes=boxes)
    beyond &= ~negative & ~empty & ~corners
    _note(found, beyond, objects, "box outside its image", remedy="correct or remove it", boxes=boxes)
    over &= ~beyond & ~corners
    _note(found, over, objects, "box that exceeds its image", policy=CLIPPED, boxes=boxes)
    _note(found, empty, objects, "box without area", policy=LEFT_OUT, boxes=boxes)
    return empty, negative | corners | beyond, over


def _contradicting(objects: Sequence[Json], boxes: np.ndarray, extents: np.ndarray, found: Defects) -> np.ndarray:
    """Return which boxes (A, 4) contradict the extents (A, 4) x0, y0, x1, y1 of their outlines."""
    given = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = (_iou(boxes, extents) >= CORNERS[0]) & (_iou(given, extents) < CORNERS[1])
    apart = ((extents[:, :2] > given[:, 2:] + TOUCHES) | (extents[:, 2:] < given[:, :2] - TOUCHES)).any(
        axis=1
    ) & ~corners
    _note(found, corners, objects, "box written as x0, y0, x1, y1", remedy="write [x, y, width, height]", boxes=boxes)
    remedy = "check that boxes and outlines are in pixels of the same image"
    _note(found, apart, objects, "box that does not touch its outline", remedy=remedy, boxes=boxes)
    return corners | apart


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over union (A,) of boxes x0, y0, x1, y1, row by row."""
    shared = np.clip(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0, None).prod(axis=1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (one, other)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-9))


def _selected(objects: list[Json], wanted: np.ndarray) -> list[Json]:
    return objects if wanted.all() else [objects[k] for k in np.flatnonzero(wanted).tolist()]


def _note(
    found: Defects,
    where: np.ndarray,
    objects: Sequence[Json],
    kind: str,
    *,
    remedy: str = "",
    policy: str = "",
    boxes: np.ndarray | None = None,
) -> None:
    """Note a defect of the objects that `where` (A,) marks."""
    for k in np.flatnonzero(where).tolist():
        shown = objects[k]["bbox"] if boxes is None else boxes[k].tolist()
        found.add(kind, f"object {objects[k]['id']} (box {str(shown)[:60]})", remedy=remedy, policy=policy)


def outlined(objects: list[Json], sizes: np.ndarray, found: Defects) -> tuple[np.ndarray, list[Json], np.ndarray]:
    """Check the outlines of objects and note their defects.

    Returns:
        which objects have a valid outline, (A,) bool; these objects, without invalid polygons; the extents x0, y0, x1,
        y1 of their outlines.
    """
    kept, extents = np.zeros(len(objects), dtype=bool), np.zeros((len(objects), 4))
    outlines: list[Any] = [one.get("segmentation") for one in objects]
    for start in range(0, len(objects), CHUNK):
        part = range(start, min(start + CHUNK, len(objects)))
        for k in part:
            if outlines[k] is None or outlines[k] == []:
                found.add("no outline", _name(objects[k]), policy=LEFT_OUT)
            elif type(outlines[k]) not in (list, dict):
                found.add("outline that is neither polygons nor a run-length code", _name(objects[k]), remedy=FLAT)
        polygons = [k for k in part if type(outlines[k]) is list and outlines[k]]
        codes = [k for k in part if type(outlines[k]) is dict]
        for these, those in (
            _polygons(polygons, objects, outlines, sizes, found),
            _codes(codes, objects, outlines, sizes, found),
        ):
            kept[these], extents[these] = True, those
    outlined_objects = [
        one if one["segmentation"] is outline else {**one, "segmentation": outline}
        for one, outline, good in zip(objects, outlines, kept.tolist(), strict=True)
        if good
    ]
    return kept, outlined_objects, extents[kept]


def _polygons(
    indices: list[int], objects: Sequence[Json], outlines: list[Any], sizes: np.ndarray, found: Defects
) -> tuple[list[int], np.ndarray]:
    """Return the indices of objects with valid polygons, and their extents. Invalid polygons leave `outlines`."""
    values = _coordinates([outlines[k] for k in indices])
    if values is None:
        indices = [k for k in indices if _cleaned(k, objects, outlines, found)]
        values = _coordinates([outlines[k] for k in indices])
        assert values is not None
    if not indices:
        return [], np.zeros((0, 4))
    lengths = np.array([len(polygon) // 2 for k in indices for polygon in outlines[k]])
    counts = np.array([len(outlines[k]) for k in indices])
    starts, owners = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
    low, high = (each.reduceat(each.reduceat(values, starts), owners) for each in (np.minimum, np.maximum))
    sides = sizes[indices][:, ::-1]
    reach = sides.max(axis=1, keepdims=True)
    outside = ((low < -reach) | (high > 2 * reach) | (low >= sides) | (high <= 0)).any(axis=1)
    flat = ~outside & (low == high).any(axis=1)
    for k in np.flatnonzero(outside).tolist():
        extent = [*low[k].tolist(), *high[k].tolist()]
        remedy = "check that its coordinates are pixels of this image"
        found.add("polygon outside its image", f"{_name(objects[indices[k]])} (x0, y0, x1, y1 {extent})", remedy=remedy)
    found.add_all(
        "polygon without area", [_name(objects[indices[k]]) for k in np.flatnonzero(flat).tolist()], policy=LEFT_OUT
    )
    good = ~outside & ~flat
    return [indices[k] for k in np.flatnonzero(good).tolist()], np.concatenate([low, high], axis=1)[good]


def _coordinates(outlines: Sequence[list[Any]]) -> np.ndarray | None:
    """Return the points (n, 2) of all polygons; None if a polygon is invalid."""
    polygons = list(chain.from_iterable(outlines))
    if not set(map(type, polygons)) <= {list} or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return None
    if not set(map(type, chain.from_iterable(polygons))) <= {int, float}:
        return None
    try:
        values = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=sum(map(len, polygons)))
    except OverflowError:  # a whole number that no float can hold
        return None
    return values.reshape(-1, 2) if (np.abs(values) <= LARGEST).all() else None


def _cleaned(k: int, objects: Sequence[Json], outlines: list[Any], found: Defects) -> bool:
    """Remove the invalid polygons of outline k, as detectron2 does. Return whether the outline is still valid."""
    outline, where = outlines[k], _name(objects[k])
    if any(type(polygon) is not list for polygon in outline):
        found.add("polygon that is not a list of numbers", where, remedy=FLAT)
    elif any(type(value) is list for polygon in outline for value in polygon) or (
        len(outline) > 2 and {len(polygon) for polygon in outline} == {2}
    ):
        found.add(PAIRS, where, remedy=FLAT)
    elif not all(
        type(value) in (int, float) and -LARGEST <= value <= LARGEST for polygon in outline for value in polygon
    ):
        found.add(
            "polygon with a coordinate that is not a finite number",
            where,
            remedy="correct the number, or remove the object",
        )
    else:
        outlines[k] = [polygon for polygon in outline if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if len(outlines[k]) < len(outline):
            found.add("polygon with fewer than three points or an odd number of coordinates", where, policy=LEFT_OUT)
        if not outlines[k]:
            found.add("no valid outline", where, policy=LEFT_OUT)
        return bool(outlines[k])
    return False


def _codes(
    indices: list[int], objects: Sequence[Json], outlines: list[Any], sizes: np.ndarray, found: Defects
) -> tuple[list[int], np.ndarray]:
    """Return the indices of objects with valid run-length codes, and their extents."""
    readable = []
    for k in indices:
        code, where = outlines[k], _name(objects[k])
        if not {"size", "counts"} <= code.keys():
            found.add("run-length code without size or counts", where, remedy=AGAIN)
        elif (
            type(code["size"]) is not list or set(map(type, code["size"])) != {int} or code["size"] != sizes[k].tolist()
        ):
            found.add(
                "run-length code whose size differs from the image",
                f"{where} ({str(code['size'])[:30]}, image {sizes[k].tolist()})",
                remedy=AGAIN,
            )
        elif type(code["counts"]) not in (str, list):
            found.add("broken run-length code", where, remedy=AGAIN)
        else:
            readable.append(k)
    runs = run_lengths([outlines[k]["counts"] for k in readable])
    good: list[int] = []
    for k, counts in zip(readable, runs, strict=True):
        if counts is None or counts.sum() != sizes[k].prod() or (counts[:1] < 0).any() or (counts[1:] < 1).any():
            found.add("broken run-length code", _name(objects[k]), remedy=AGAIN)
        elif not counts[1::2].sum():
            found.add("run-length code without a pixel", _name(objects[k]), policy=LEFT_OUT)
        else:
            good.append(k)
    by_index = dict(zip(readable, runs, strict=True))
    extents = [_extent(by_index[k], int(sizes[k, 0])) for k in good]
    return good, np.array(extents, dtype=np.float64).reshape(-1, 4)


def _extent(counts: np.ndarray | None, height: int) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of the pixels of a run-length code. Runs go down the columns."""
    assert counts is not None
    ends = np.cumsum(counts)
    first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run of ones
    # a run over two columns contains the last row of one and the first row of the next
    crosses = (first // height != last // height).any()
    rows = (0, height - 1) if crosses else (int((first % height).min()), int((last % height).max()))
    return int(first[0]) // height, rows[0], int(last[-1]) // height + 1, rows[1] + 1


def _name(one: Json) -> str:
    return f"object {one['id']}"
