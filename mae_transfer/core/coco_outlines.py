"""Check the outlines of objects in a COCO-format json, without rasterising masks, for core/coco_rules.py.

pycocotools must only receive outlines that were checked here: it reads past the end of a truncated run-length code, and
it draws a polygon's edges pixel by pixel, however far they lie outside the image.

Legend: A objects, sizes are (A, 2) H, W. An outline is a list of polygons [x0, y0, x1, y1, ...] in pixels, or a
run-length code {size, counts}.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from mae_transfer.core.defects import Defects

Json = dict[str, Any]
LARGEST = 1e9  # absolute value of a coordinate
CHUNK = 4096  # objects whose coordinates are checked together
LONGEST = 7  # characters of one number in a compressed run-length code
PAIRS = "polygon of [x, y] pairs"
FLAT = "write each polygon as one list [x0, y0, x1, y1, ...]"
AGAIN = "encode the mask again, for instance with pycocotools.mask.encode"
LEFT_OUT = "left out"


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


def run_lengths(codes: Sequence[str | list[Any]]) -> list[np.ndarray | None]:
    """Return the runs of each `counts` (compressed text or a list), int64; None if invalid. Sums are not checked."""
    runs: list[np.ndarray | None] = [None] * len(codes)
    for k, code in enumerate(codes):
        if isinstance(code, list) and set(map(type, code)) == {int} and all(0 <= value < 2**32 for value in code):
            runs[k] = np.array(code, dtype=np.int64)
    texts = {k: code for k, code in enumerate(codes) if isinstance(code, str) and _complete(code)}
    for k, values in zip(texts, _decompressed(texts.values()), strict=True):
        runs[k] = values
    return runs


def _complete(code: str) -> bool:
    """Return whether a text has only characters of a compressed code and does not end within a number."""
    return bool(code) and code.isascii() and min(code) >= "0" and max(code) <= "o" and not (ord(code[-1]) - 48) & 32


def _decompressed(codes: Iterable[str]) -> list[np.ndarray | None]:
    """Return the runs of each compressed code, as pycocotools' rleFrString does.

    A character holds 5 bits of a number. From the fourth number on, it is the difference to the number two before it.
    """
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
    series = 3 * owner + np.where(rank == 0, 0, 1 + rank % 2)  # numbers of one series are summed up
    order = np.argsort(series, kind="stable")
    sums, begins = np.cumsum(values[order]), np.searchsorted(series[order], series[order])
    counts = np.empty_like(values)
    counts[order] = sums - sums[begins] + values[order][begins]
    broken = np.zeros(len(texts), dtype=bool)
    broken[owner[lengths > LONGEST]] = True
    return [None if bad else one for one, bad in zip(np.split(counts, first[1:]), broken.tolist(), strict=True)]


def _name(one: Json) -> str:
    return f"object {one['id']}"
