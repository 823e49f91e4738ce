"""Rules for COCO-format json files, used by the data check, training and evaluation.

A defect either stops every run, or has a policy. Policies are applied, counted and reported in the same way by
training, evaluation and the check. Types are strict: numbers must be json numbers, and not NaN or infinite.

pycocotools must only receive outlines that were checked here: it reads past the end of a truncated run-length code, and
it draws a polygon's edges pixel by pixel, however far they lie outside the image. No mask is rasterised for the check.

Legend: A objects, H x W pixels of an image; sizes are (A, 2) H, W. A box is [x, y, width, height] in pixels, as in
COCO; an extent is x0, y0, x1, y1. An outline is a list of polygons [x0, y0, x1, y1, ...] in pixels, or a run-length
code {size, counts}.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mae_transfer.core.runs import run_lengths
from mae_transfer.data.reports import Defect, Defects, stopping

Json = dict[str, Any]
IDS = 2**53  # all json readers represent smaller whole numbers exactly
LARGEST = 1e9  # absolute value of a coordinate
AREAS = 1e10  # COCO's evaluation silently ignores larger objects
OUTSIDE = 1.0  # pixels by which a box may exceed the image, since COCO's boxes are rounded
TOUCHES = 1.0  # pixels of distance between a box and its outline that rounding can cause
# A box is taken for x0, y0, x1, y1 if its IoU with the outline is at least the first value when read in this way, and
# below the second when read as x, y, width, height.
CORNERS = (0.9, 0.5)
CHUNK = 4096  # objects whose coordinates are checked together
LEFT_OUT, CLIPPED, COMPUTED = "left out", "clipped to the image", "computed from outline or box"
# remedies
WHOLE = "write whole numbers of at least 0, not text or fractions"
PATH = "write the path of the file relative to the image folder"
BOX = "write [x, y, width, height]"
FLAT = "write each polygon as one list [x0, y0, x1, y1, ...]"
AGAIN = "encode the mask again, for instance with pycocotools.mask.encode"
TYPES: Mapping[str, tuple[type, str, str]] = {  # of the values of a key, in words, and the remedy
    **dict.fromkeys(("id", "image_id", "category_id", "height", "width"), (int, "a whole number of at least 0", WHOLE)),
    "file_name": (str, "text", PATH),
    "name": (str, "text", "write the category's name"),
    "bbox": (list, "a list", BOX),
}


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
    images = _check_images(content["images"], found)
    categories = _check_entries(content["categories"], ("id", "name"), "category", found)
    _check_unique(categories, "id", "category id", "give each category its own id", found)
    _check_unique(categories, "name", "category name", "merge the categories, or rename one", found)
    objects = _check_entries(content["annotations"], ("id", "image_id", "category_id", "bbox"), "object", found)
    _check_unique(objects, "id", "object id", "renumber the objects", found)
    for key, entries in (("image", content["images"]), ("category", content["categories"])):
        listed = {entry["id"] for entry in entries if type(entry) is dict and type(entry.get("id")) is int}
        for one in (one for one in objects if one[f"{key}_id"] not in listed):
            remedy = f"list the {key}, or remove the object"
            found.add(f"unknown {key} id", f"object {one['id']} ({key} {one[f'{key}_id']})", remedy=remedy)
    objects = _check_flags(objects, found)
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    objects = _check_boxes([one for one in objects if one["image_id"] in sizes], sizes, found, masks=masks)
    if not stopping(found.collected()) and all(one.get("iscrowd", 0) for one in objects):
        total = len(content["annotations"])
        crowds = f"{total} objects: {len(objects)} crowd regions, {total - len(objects)} left out"
        remedy = "annotate objects with iscrowd 0"
        if masks and not any(one.get("segmentation") for one in content["annotations"]):
            remedy = (
                "no object has an outline: to use boxes only, set masks=False and heads.masks=False (check: --boxes)"
            )
        found.add("no object to train on or to evaluate", crowds, remedy=remedy)
    return Examined(images, categories, objects, found.collected())


def _check_images(entries: Sequence[Any], found: Defects) -> list[Json]:
    images, usable = _check_entries(entries, ("id", "file_name", "height", "width"), "image", found), []
    limit = Image.MAX_IMAGE_PIXELS or 2**31
    for image in images:
        decodable, named = 0 < image["height"] * image["width"] <= limit, _is_path(image["file_name"])
        if not decodable:
            where = f"image {image['id']} ({image['width']} x {image['height']})"
            found.add("image with no pixels, or with too many to decode", where, remedy="write the size of its file")
        if not named:
            found.add("image whose file_name is not a path", f"image {image['id']}", remedy=PATH)
        usable += [image] if decodable and named else []
    _check_unique(images, "id", "image id", "give each image its own id", found)
    _check_unique(images, "file_name", "file name", "list each file once", found)
    if not entries:
        found.add("no image is listed", "images []", remedy="check that it is the right file")
    return usable


def _is_path(name: str) -> bool:
    """Return whether a file can have this name."""
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _check_entries(entries: Sequence[Any], keys: tuple[str, ...], what: str, found: Defects) -> list[Json]:
    """Return the entries that have all keys with the right types, and note the others."""
    if set(map(type, entries)) <= {dict} and all(_is_typed(key, [entry.get(key) for entry in entries]) for key in keys):
        return list(entries)
    complete = []
    for position, entry in enumerate(entries):
        missing = [key for key in keys if type(entry) is not dict or key not in entry]
        wrong = [key for key in keys if key not in missing and not _is_typed(key, [entry[key]])]
        name = f"{what} {entry['id']}" if "id" in keys and "id" not in {*missing, *wrong} else f"entry {position}"
        for key in wrong:
            _, expected, remedy = TYPES[key]
            found.add(f"{what} whose {key} is not {expected}", f"{name} ({str(entry[key])[:30]!r})", remedy=remedy)
        if missing:
            found.add(f"{what} without {', '.join(missing)}", name, remedy="add the keys, or remove the entry")
        elif not wrong:
            complete.append(entry)
    return complete


def _is_typed(key: str, values: Sequence[Any]) -> bool:
    """Return whether all values of a key have its type, and whole numbers are from 0 to IDS."""
    kind = TYPES[key][0]
    if not set(map(type, values)) <= {kind}:
        return False
    return kind is not int or not values or (min(values) >= 0 and max(values) < IDS)


def _check_unique(entries: Sequence[Json], key: str, what: str, remedy: str, found: Defects) -> None:
    values = [entry[key] for entry in entries]
    if len(set(values)) < len(values):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        found.add_all(f"{what} that occurs more than once", repeated, remedy=remedy)


def _check_flags(objects: list[Json], found: Defects) -> list[Json]:
    """Return the objects with valid `iscrowd` and `area`, and note the others. An area of zero is removed."""
    crowds, areas = [one.get("iscrowd", 0) for one in objects], [one.get("area", 1) for one in objects]
    typed = set(map(type, crowds)) <= {int, bool} and set(map(type, areas)) <= {int, float}
    if typed and set(crowds) <= {0, 1} and all(0 < area <= AREAS for area in areas):
        return objects
    kept = []
    for one, crowd, area in zip(objects, crowds, areas, strict=True):
        measured = type(area) in (int, float) and 0 <= area <= AREAS
        flagged = type(crowd) in (int, bool) and crowd in (0, 1)
        where = f"object {one['id']}"
        if not measured:
            remedy = "write the area in pixels, or remove the key to have it computed"
            found.add("area that is not a number of at least 0", f"{where} ({str(area)[:30]})", remedy=remedy)
        if not flagged:
            shown = f"{where} ({str(crowd)[:30]!r})"
            found.add("iscrowd that is neither 0 nor 1", shown, remedy="write the number 0 or 1")
        if measured and flagged:
            if area == 0:
                found.add("area of zero", where, policy=COMPUTED)
            kept.append({key: value for key, value in one.items() if key != "area" or value > 0})
    return kept


def _check_boxes(
    objects: list[Json], sizes: Mapping[int, tuple[int, int]], found: Defects, *, masks: bool
) -> list[Json]:
    """Return the objects with valid boxes (and outlines, with `masks`), and note the others.

    Boxes that exceed their image are clipped.
    """
    boxes = _read_boxes([one["bbox"] for one in objects])
    wrong = np.isnan(boxes).any(axis=1)
    _note(found, wrong, objects, "box that is not four finite numbers", remedy=BOX)
    objects, boxes = _select(~wrong, objects, boxes)
    sides = np.array([sizes[one["image_id"]][::-1] for one in objects], dtype=np.float64).reshape(-1, 2)  # W, H
    wrong, over = _compare_with_images(objects, boxes, sides, found)
    objects, boxes, sides, over = _select(~wrong, objects, boxes, sides, over)
    if masks:
        kept, objects, extents = check_outlines(objects, sides.astype(np.int64)[:, ::-1], found)
        boxes, sides, over = boxes[kept], sides[kept], over[kept]
        wrong = _compare_with_outlines(objects, boxes, extents, found)
        objects, boxes, sides, over = _select(~wrong, objects, boxes, sides, over)
    low, high = np.clip(boxes[:, :2], 0, sides), np.clip(boxes[:, :2] + boxes[:, 2:], 0, sides)
    clipped = np.concatenate([low, high - low], axis=1)
    for k in np.flatnonzero(over).tolist():
        objects[k] = {**objects[k], "bbox": clipped[k].tolist()}
    return objects


def _read_boxes(boxes: Sequence[list[Any]]) -> np.ndarray:
    """Return the boxes (A, 4); NaN for a box that is not four finite numbers."""
    if set(map(len, boxes)) <= {4} and (values := _numbers(chain.from_iterable(boxes))) is not None:
        return values.reshape(-1, 4)
    rows = [_numbers(box) if len(box) == 4 else None for box in boxes]
    return np.array([np.full(4, np.nan) if row is None else row for row in rows]).reshape(-1, 4)


def _numbers(values: Iterable[Any]) -> np.ndarray | None:
    """Return the values as float64; None if one is not a finite number, or too large."""
    values = list(values)
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:  # a whole number that no float can hold
        return None
    return numbers if (np.abs(numbers) <= LARGEST).all() else None


def _select(wanted: np.ndarray, objects: list[Json], *arrays: np.ndarray) -> Any:
    """Return the objects and the rows of arrays that `wanted` (A,) marks."""
    return [objects[k] for k in np.flatnonzero(wanted).tolist()], *(array[wanted] for array in arrays)


def _note(
    found: Defects, where: np.ndarray, objects: Sequence[Json], kind: str, *, remedy: str = "", policy: str = ""
) -> None:
    """Note a defect of the boxes of the objects that `where` (A,) marks."""
    for k in np.flatnonzero(where).tolist():
        shown = f"object {objects[k]['id']} (box {str(objects[k]['bbox'])[:60]})"
        found.add(kind, shown, remedy=remedy, policy=policy)


def _compare_with_images(
    objects: Sequence[Json], boxes: np.ndarray, sides: np.ndarray, found: Defects
) -> tuple[np.ndarray, np.ndarray]:
    """Return which boxes (A, 4) are unusable, and which exceed their images of `sides` (A, 2) W, H. Both are noted."""
    low, extent = boxes[:, :2], boxes[:, 2:]
    high, reach = low + extent, sides.max(axis=1, keepdims=True)
    negative = np.asarray((extent < 0).any(axis=1))
    empty = ~negative & (extent == 0).any(axis=1)
    beyond = ((low >= sides) | (high <= 0) | (low < -reach) | (high > 2 * reach)).any(axis=1)
    over = ((low < -OUTSIDE) | (high > sides + OUTSIDE)).any(axis=1) & ~empty & ~negative
    fits = ((extent > low) & (low >= -OUTSIDE) & (extent <= sides + OUTSIDE)).all(axis=1)  # as x0, y0, x1, y1
    corners: np.ndarray = over & bool(np.all(empty | fits))
    beyond &= ~negative & ~empty & ~corners
    over &= ~beyond & ~corners
    _note(found, negative, objects, "box of negative width or height", remedy=BOX)
    _note(found, corners, objects, "box written as x0, y0, x1, y1", remedy=BOX)
    _note(found, beyond, objects, "box outside its image", remedy="correct or remove it")
    _note(found, over, objects, "box that exceeds its image", policy=CLIPPED)
    _note(found, empty, objects, "box without area", policy=LEFT_OUT)
    return empty | negative | corners | beyond, over


def _compare_with_outlines(
    objects: Sequence[Json], boxes: np.ndarray, extents: np.ndarray, found: Defects
) -> np.ndarray:
    """Return which boxes (A, 4) contradict the extents (A, 4) of their outlines."""
    given = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = (_iou(boxes, extents) >= CORNERS[0]) & (_iou(given, extents) < CORNERS[1])
    gap = (extents[:, :2] > given[:, 2:] + TOUCHES) | (extents[:, 2:] < given[:, :2] - TOUCHES)
    distant = gap.any(axis=1) & ~corners
    _note(found, corners, objects, "box written as x0, y0, x1, y1", remedy=BOX)
    remedy = "check that boxes and outlines are in pixels of the same image"
    _note(found, distant, objects, "box that does not touch its outline", remedy=remedy)
    return np.asarray(corners | distant)


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over union (A,) of extents, row by row."""
    shared = np.clip(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0, None).prod(axis=1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (one, other)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-9))


def check_outlines(
    objects: Sequence[Json], sizes: np.ndarray, found: Defects
) -> tuple[np.ndarray, list[Json], np.ndarray]:
    """Check the outlines of objects and note their defects.

    Returns:
        which objects have a valid outline, (A,) bool; these objects, without invalid polygons; the extents of their
        outlines.
    """
    outlines: list[Any] = [one.get("segmentation") for one in objects]
    names = [f"object {one['id']}" for one in objects]
    extents = np.full((len(objects), 4), np.nan)
    for start in range(0, len(objects), CHUNK):
        polygons, codes = [], []
        for k in range(start, min(start + CHUNK, len(objects))):
            if outlines[k] is None or outlines[k] == []:
                found.add("no outline", names[k], policy=LEFT_OUT)
            elif type(outlines[k]) is list:
                polygons.append(k)
            elif type(outlines[k]) is dict:
                codes.append(k)
            else:
                found.add("outline that is neither polygons nor a run-length code", names[k], remedy=FLAT)
        _check_polygons(polygons, names, outlines, sizes, extents, found)
        _check_codes(codes, names, outlines, sizes, extents, found)
    kept = ~np.isnan(extents[:, 0])
    valid = [
        one if one["segmentation"] is outlines[k] else {**one, "segmentation": outlines[k]}
        for k, one in enumerate(objects)
        if kept[k]
    ]
    return kept, valid, extents[kept]


def _check_polygons(
    indices: list[int],
    names: Sequence[str],
    outlines: list[Any],
    sizes: np.ndarray,
    extents: np.ndarray,
    found: Defects,
) -> None:
    """Set the extents of objects with valid polygons, and note the others. Invalid polygons leave `outlines`."""
    values = _coordinates([outlines[k] for k in indices])
    if values is None:
        indices = [k for k in indices if _remove_invalid(k, names[k], outlines, found)]
        values = _coordinates([outlines[k] for k in indices])
        assert values is not None
    if not indices:
        return
    lengths = np.array([len(polygon) // 2 for k in indices for polygon in outlines[k]])
    counts = np.array([len(outlines[k]) for k in indices])
    starts, owners = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
    low, high = (each.reduceat(each.reduceat(values, starts), owners) for each in (np.minimum, np.maximum))
    sides = sizes[indices][:, ::-1]
    reach = sides.max(axis=1, keepdims=True)
    outside = ((low < -reach) | (high > 2 * reach) | (low >= sides) | (high <= 0)).any(axis=1)
    flat = ~outside & (low == high).any(axis=1)
    for k in np.flatnonzero(outside).tolist():
        where = f"{names[indices[k]]} (x0, y0, x1, y1 {[*low[k].tolist(), *high[k].tolist()]})"
        found.add("polygon outside its image", where, remedy="check that its coordinates are pixels of this image")
    for k in np.flatnonzero(flat).tolist():
        found.add("polygon without area", names[indices[k]], policy=LEFT_OUT)
    valid = ~outside & ~flat
    extents[np.array(indices)[valid]] = np.concatenate([low, high], axis=1)[valid]


def _coordinates(outlines: Sequence[list[Any]]) -> np.ndarray | None:
    """Return the points (n, 2) of all polygons; None if a polygon is invalid."""
    polygons = list(chain.from_iterable(outlines))
    if not set(map(type, polygons)) <= {list} or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return None
    values = _numbers(chain.from_iterable(polygons))
    return None if values is None else values.reshape(-1, 2)


def _remove_invalid(k: int, name: str, outlines: list[Any], found: Defects) -> bool:
    """Remove the invalid polygons of outline k, as detectron2 does. Return whether the outline is still valid."""
    outline = outlines[k]
    if any(type(polygon) is not list for polygon in outline):
        found.add("polygon that is not a list of numbers", name, remedy=FLAT)
    elif any(type(value) is list for polygon in outline for value in polygon) or (
        len(outline) > 2 and {len(polygon) for polygon in outline} == {2}
    ):
        found.add("polygon of [x, y] pairs", name, remedy=FLAT)
    elif _numbers(chain.from_iterable(outline)) is None:
        remedy = "correct the number, or remove the object"
        found.add("polygon with a coordinate that is not a finite number", name, remedy=remedy)
    else:
        outlines[k] = [polygon for polygon in outline if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if len(outlines[k]) < len(outline):
            found.add("polygon with fewer than three points or an odd number of coordinates", name, policy=LEFT_OUT)
        if not outlines[k]:
            found.add("no valid outline", name, policy=LEFT_OUT)
        return bool(outlines[k])
    return False


def _check_codes(
    indices: list[int],
    names: Sequence[str],
    outlines: list[Any],
    sizes: np.ndarray,
    extents: np.ndarray,
    found: Defects,
) -> None:
    """Set the extents of objects with valid run-length codes, and note the others."""
    readable = []
    for k in indices:
        code, size = outlines[k], sizes[k].tolist()
        if not {"size", "counts"} <= code.keys():
            found.add("run-length code without size or counts", names[k], remedy=AGAIN)
        elif type(code["size"]) is not list or set(map(type, code["size"])) != {int} or code["size"] != size:
            where = f"{names[k]} ({str(code['size'])[:30]}, image {size})"
            found.add("run-length code whose size differs from the image", where, remedy=AGAIN)
        elif type(code["counts"]) not in (str, list):
            found.add("broken run-length code", names[k], remedy=AGAIN)
        else:
            readable.append(k)
    for k, counts in zip(readable, run_lengths([outlines[k]["counts"] for k in readable]), strict=True):
        if counts is None or counts.sum() != sizes[k].prod() or (counts[:1] < 0).any() or (counts[1:] < 1).any():
            found.add("broken run-length code", names[k], remedy=AGAIN)
        elif not counts[1::2].sum():
            found.add("run-length code without a pixel", names[k], policy=LEFT_OUT)
        else:
            extents[k] = _extent(counts, int(sizes[k, 0]))


def _extent(counts: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Return the extent of a run-length code's pixels. Runs go down the columns."""
    ends = np.cumsum(counts)
    first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run of ones
    # a run over two columns contains the last row of one and the first row of the next
    crosses = (first // height != last // height).any()
    rows = (0, height - 1) if crosses else (int((first % height).min()), int((last % height).max()))
    return int(first[0]) // height, rows[0], int(last[-1]) // height + 1, rows[1] + 1
