"""Outlines of objects as a COCO-format json has them: which are sound, without a mask being drawn. core/coco_rules.py says what comes of it.

pycocotools reads past the end of a run-length code that is cut off, and draws a polygon's edges pixel by pixel wherever they lead, so nothing is
given to it that was not checked here.

Legend: A objects, sizes are (A, 2) H, W; an outline is a list of polygons [x0, y0, x1, y1, ...] in pixels, or a run-length code {size, counts}.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from mae_transfer.core.defects import Defects

Json = dict[str, Any]
LARGEST = 1e9  # of a coordinate, before it is compared with its image
CHUNK = 4096  # objects whose coordinates lie side by side at a time
LONGEST = 7  # characters of one number in a compressed run-length code
PAIRS = "polygon of [x, y] pairs"
FLAT = "write each polygon as one list [x0, y0, x1, y1, ...]"
AGAIN = "encode the mask again, for instance with pycocotools.mask.encode"
LEFT_OUT = "left out"


def outlined(objects: list[Json], sizes: np.ndarray, found: Defects) -> tuple[np.ndarray, list[Json], np.ndarray]:
    """Return which objects have a sound outline (A,), those without their invalid polygons, and the extents x0, y0, x1, y1 of what is left."""
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
    there = [
        one if one["segmentation"] is outline else {**one, "segmentation": outline}
        for one, outline, good in zip(objects, outlines, kept.tolist(), strict=True)
        if good
    ]
    return kept, there, extents[kept]


def _polygons(
    places: list[int], objects: Sequence[Json], outlines: list[Any], sizes: np.ndarray, found: Defects
) -> tuple[list[int], np.ndarray]:
    """Return which of the objects at `places` have sound polygons, and their extents; invalid polygons are taken out of `outlines`."""
    values = _coordinates([outlines[k] for k in places])
    if values is None:
        places = [k for k in places if _cleaned(k, objects, outlines, found)]
        values = _coordinates([outlines[k] for k in places])
        assert values is not None
    if not places:
        return [], np.zeros((0, 4))
    lengths = np.array([len(polygon) // 2 for k in places for polygon in outlines[k]])
    counts = np.array([len(outlines[k]) for k in places])
    ends, owners = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
    low, high = (each.reduceat(each.reduceat(values, ends), owners) for each in (np.minimum, np.maximum))
    sides = sizes[places][:, ::-1]
    reach = sides.max(axis=1, keepdims=True)
    outside = ((low < -reach) | (high > 2 * reach) | (low >= sides) | (high <= 0)).any(axis=1)
    flat = ~outside & (low == high).any(axis=1)
    for k in np.flatnonzero(outside).tolist():
        extent = [*low[k].tolist(), *high[k].tolist()]
        remedy = "are its coordinates pixels of this image?"
        found.add("polygon outside its image", f"{_name(objects[places[k]])} (x0, y0, x1, y1 {extent})", remedy=remedy)
    found.add_all(
        "polygon without area", [_name(objects[places[k]]) for k in np.flatnonzero(flat).tolist()], policy=LEFT_OUT
    )
    good = ~outside & ~flat
    return [places[k] for k in np.flatnonzero(good).tolist()], np.concatenate([low, high], axis=1)[good]


def _coordinates(outlines: Sequence[list[Any]]) -> np.ndarray | None:
    """Return the points (n, 2) of all polygons; None where one is invalid."""
    polygons = list(chain.from_iterable(outlines))
    if not set(map(type, polygons)) <= {list} or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return None
    if not set(map(type, chain.from_iterable(polygons))) <= {int, float}:
        return None
    try:
        values = np.fromiter(chain.from_iterable(polygons), dtype=np.float64, count=sum(map(len, polygons)))
    except OverflowError:  # a whole number beyond all floats
        return None
    return values.reshape(-1, 2) if (np.abs(values) <= LARGEST).all() else None


def _cleaned(k: int, objects: Sequence[Json], outlines: list[Any], found: Defects) -> bool:
    """Take the invalid polygons out of outline k, as detectron2 does; return whether it is sound and any are left."""
    outline, where = outlines[k], _name(objects[k])
    if any(type(polygon) is not list for polygon in outline):
        found.add("polygon that is no list of numbers", where, remedy=FLAT)
    elif any(type(value) is list for polygon in outline for value in polygon) or (
        len(outline) > 2 and {len(polygon) for polygon in outline} == {2}
    ):
        found.add(PAIRS, where, remedy=FLAT)
    elif not all(
        type(value) in (int, float) and -LARGEST <= value <= LARGEST for polygon in outline for value in polygon
    ):
        found.add(
            "polygon with a coordinate that is no finite number",
            where,
            remedy="correct the number, or remove the object",
        )
    else:
        outlines[k] = [polygon for polygon in outline if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if len(outlines[k]) < len(outline):
            found.add("polygon of less than three points, or of an odd number of coordinates", where, policy=LEFT_OUT)
        if not outlines[k]:
            found.add("no valid outline", where, policy=LEFT_OUT)
        return bool(outlines[k])
    return False


def _codes(
    places: list[int], objects: Sequence[Json], outlines: list[Any], sizes: np.ndarray, found: Defects
) -> tuple[list[int], np.ndarray]:
    """Return which of the objects at `places` have sound run-length codes, and their extents."""
    sound = []
    for k in places:
        code, where = outlines[k], _name(objects[k])
        if not {"size", "counts"} <= code.keys():
            found.add("run-length code without size or counts", where, remedy=AGAIN)
        elif (
            type(code["size"]) is not list or set(map(type, code["size"])) != {int} or code["size"] != sizes[k].tolist()
        ):
            found.add(
                "run-length code of another size than the image",
                f"{where} ({str(code['size'])[:30]}, image {sizes[k].tolist()})",
                remedy=AGAIN,
            )
        elif type(code["counts"]) not in (str, list):
            found.add("broken run-length code", where, remedy=AGAIN)
        else:
            sound.append(k)
    runs = run_lengths([outlines[k]["counts"] for k in sound])
    good: list[int] = []
    for k, counts in zip(sound, runs, strict=True):
        if counts is None or counts.sum() != sizes[k].prod() or (counts[:1] < 0).any() or (counts[1:] < 1).any():
            found.add("broken run-length code", _name(objects[k]), remedy=AGAIN)
        elif not counts[1::2].sum():
            found.add("run-length code without a pixel", _name(objects[k]), policy=LEFT_OUT)
        else:
            good.append(k)
    by_place = dict(zip(sound, runs, strict=True))
    extents = [_extent(by_place[k], int(sizes[k, 0])) for k in good]
    return good, np.array(extents, dtype=np.float64).reshape(-1, 4)


def _extent(counts: np.ndarray | None, height: int) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of the pixels of a run-length code; its runs go down the columns."""
    assert counts is not None
    ends = np.cumsum(counts)
    first, last = ends[:-1:2], ends[1::2] - 1  # pixels of each run of ones
    whole = (
        first // height != last // height
    ).any()  # such a run holds the last row of a column and the first of the next
    rows = (0, height - 1) if whole else (int((first % height).min()), int((last % height).max()))
    return int(first[0]) // height, rows[0], int(last[-1]) // height + 1, rows[1] + 1


def run_lengths(codes: Sequence[str | list[Any]]) -> list[np.ndarray | None]:
    """Return the runs of each `counts`, compressed text or a list, int64; None where it is neither. No sum is checked."""
    runs: list[np.ndarray | None] = [None] * len(codes)
    for k, code in enumerate(codes):
        if isinstance(code, list) and set(map(type, code)) == {int} and all(0 <= value < 2**32 for value in code):
            runs[k] = np.array(code, dtype=np.int64)
    texts = {k: code for k, code in enumerate(codes) if isinstance(code, str) and _whole(code)}
    for k, values in zip(texts, _decompressed(texts.values()), strict=True):
        runs[k] = values
    return runs


def _whole(code: str) -> bool:
    """Return whether a text consists of the characters of a compressed code alone and does not end within a number."""
    return bool(code) and code.isascii() and min(code) >= "0" and max(code) <= "o" and not (ord(code[-1]) - 48) & 32


def _decompressed(codes: Iterable[str]) -> list[np.ndarray | None]:
    """Return the runs of each code: numbers of 5 bits a character, from the fourth on differences to the last but one (pycocotools' rleFrString)."""
    texts = list(codes)
    if not texts:
        return []
    data = np.frombuffer("".join(texts).encode(), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((data & 32) == 0)  # last character of each number
    lengths = np.diff(ends, prepend=-1)
    starts = ends - lengths + 1
    digit = np.minimum(np.arange(len(data)) - np.repeat(starts, lengths), LONGEST)
    values = np.add.reduceat((data & 31) << 5 * digit, starts) - np.where(
        data[ends] & 16, 1 << 5 * np.minimum(lengths, LONGEST), 0
    )
    owner = np.searchsorted(np.cumsum([len(text) for text in texts]), ends, side="right")
    first = np.searchsorted(owner, np.arange(len(texts)))
    rank = np.arange(len(owner)) - first[owner]
    series = 3 * owner + np.where(rank == 0, 0, 1 + rank % 2)  # the numbers that add up
    order = np.argsort(series, kind="stable")
    sums, begins = np.cumsum(values[order]), np.searchsorted(series[order], series[order])
    counts = np.empty_like(values)
    counts[order] = sums - sums[begins] + values[order][begins]
    broken = np.zeros(len(texts), dtype=bool)
    broken[owner[lengths > LONGEST]] = True
    return [None if bad else one for one, bad in zip(np.split(counts, first[1:]), broken.tolist(), strict=True)]


def _name(one: Json) -> str:
    return f"object {one['id']}"
