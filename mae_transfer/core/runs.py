"""Masks of objects as runs of pixels.

Their memory depends on the length of the outlines, not on the size of the image: 1,000 objects of a 5000 x 4000 image
take a few megabytes instead of 20 GB.

Pixels are numbered down the columns, as in COCO's run-length codes: pixel (row, column) has the number column * H +
row. The runs of an object are numbers r0 <= r1 <= r2 ...; its pixels are r0 to r1, r2 to r3 and so on, ends excluded.

Legend: n objects of an image of H x W pixels; `runs` are (n, R) int32, R even, padded with empty runs at H * W. A size
is (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
LONGEST = 7  # characters of one number in a compressed run-length code
MOST_PIXELS = 2**31 - 1  # of an image, so that pixel numbers fit int32


def stack_runs(each: Sequence[np.ndarray], size: Size) -> Tensor:
    """Stack the runs of single objects, (R_k,) with R_k even, to (n, R) int32. ValueError for too large an image."""
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"an image of {size[1]} x {size[0]} pixels has more than {MOST_PIXELS}: cut it into tiles")
    runs = np.full((len(each), max(map(len, each), default=0)), size[0] * size[1], dtype=np.int32)
    for row, one in zip(runs, each, strict=True):
        row[: len(one)] = one
    return torch.from_numpy(runs)


def from_mask(mask: np.ndarray, size: Size, *, top: int = 0, left: int = 0) -> np.ndarray:
    """Return the runs (R,) int64 of one mask (h, w), non-zero = object, at (top, left) of an image of this size."""
    height, width = mask.shape
    bordered = np.zeros((width, height + 2), dtype=bool)
    bordered[:, 1:-1] = mask.T
    column, row = np.divmod(np.flatnonzero(bordered[:, 1:] != bordered[:, :-1]), height + 1)
    return _merge((left + column) * size[0] + top + row)


def from_masks(masks: Tensor) -> Tensor:
    """Return the runs of masks (n, H, W), non-zero = object."""
    size = (masks.shape[1], masks.shape[2])
    return stack_runs([from_mask(mask.numpy(), size) for mask in masks.cpu()], size)


def from_counts(codes: Sequence[str | list[int]], size: Size) -> Tensor:
    """Return the runs for the `counts` of COCO's run-length codes, compressed (text) or not (numbers).

    Raises:
        ValueError: a code is broken or has more pixels than the image.
    """
    each = []
    for code in codes:
        counts = run_lengths([code])[0]  # one at a time, because decoding takes 50 bytes per character
        if counts is None or counts.min() < 0 or counts.sum() > size[0] * size[1]:
            raise ValueError(
                f"a broken run-length code of an image of {size[1]} x {size[0]} pixels: write its outline again"
            )
        each.append(_merge(np.cumsum(counts)[: len(counts) // 2 * 2]))  # an odd number of counts ends with background
    return stack_runs(each, size)


def to_counts(runs: Tensor, size: Size) -> list[int]:
    """Return the runs of one object (R,) as counts of an uncompressed run-length code: outside, inside, outside ..."""
    ends = _merge(runs.numpy().astype(np.int64))
    counts: list[int] = np.diff(ends, prepend=0).tolist()
    rest = size[0] * size[1] - (int(ends[-1]) if len(ends) else 0)
    return [*counts, rest] if rest else counts


def select_pixels(runs: Tensor, size: Size, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Return the runs of masks[:, rows][:, :, columns] without rasterising masks.

    This covers nearest-neighbour resizing, cropping and flipping.

    Args:
        size: H, W.
        rows: (h,) old row of each new row, in ascending order (repeats allowed).
        columns: (w,) old column of each new column, in any order.
    """
    return stack_runs(
        [_select(_merge(one), size[0], rows, columns) for one in runs.numpy().astype(np.int64)],
        (len(rows), len(columns)),
    )


def extents(runs: Tensor, size: Size) -> Tensor:
    """Return tight boxes, (n, 4) float32 x0, y0, x1, y1 with exclusive ends; zeros for an object without pixels."""
    height, width = size
    runs = F.pad(runs, (0, 2), value=height * width)  # adds an empty run, so that every object has a run
    first, last = runs[:, 0::2], runs[:, 1::2] - 1
    present = first <= last
    crosses = first // height < last // height  # a run over several columns contains the first and last row
    left = torch.where(present, first // height, width).amin(1)
    right = torch.where(present, last // height + 1, 0).amax(1)
    top = torch.where(present, (first % height) * ~crosses, height).amin(1)
    bottom = torch.where(present, torch.where(crosses, height, last % height + 1), 0).amax(1)
    return torch.stack([left, top, right, bottom], dim=1).float() * has_pixels(runs)[:, None]


def has_pixels(runs: Tensor) -> Tensor:
    """Return whether each object has a pixel, (n,) bool."""
    return (runs[:, 0::2] < runs[:, 1::2]).any(dim=1)


def rasterize(runs: Tensor, size: Size) -> Tensor:
    """Return the masks (n, H, W) uint8, 1 = object, on the device of the runs, without host synchronisation."""
    height, width = size
    flips = torch.zeros(len(runs), height * width + 1, dtype=torch.uint8, device=runs.device)
    flips.scatter_add_(1, runs.long(), torch.ones_like(runs, dtype=torch.uint8))
    inside = flips[:, :-1].cumsum(1, dtype=torch.uint8) & 1  # only the parity matters, so overflow is harmless
    return inside.view(len(runs), width, height).transpose(1, 2)


def _merge(ends: np.ndarray) -> np.ndarray:
    """Remove empty runs and join adjacent ones, (R,)."""
    first, last = ends[0::2], ends[1::2]
    filled_runs = first < last
    first, last = first[filled_runs], last[filled_runs]
    apart = first[1:] > last[:-1]
    return np.stack(
        [first[np.append(True, apart)[: len(first)]], last[np.append(apart, True)[: len(last)]]], axis=1
    ).ravel()


def _select(ends: np.ndarray, height: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the runs of one object after selecting rows and columns of an image with H rows."""
    first, last = ends[0::2], ends[1::2] - 1
    start, stop = first // height, last // height
    spans = stop - start + 1  # columns of a run; the run is cut into one piece per column
    run = np.repeat(np.arange(len(first)), spans)
    column = start[run] + _ranges(spans)
    top = np.searchsorted(rows, np.where(column == start[run], first[run] % height, 0))
    bottom = np.searchsorted(rows, np.where(column == stop[run], last[run] % height + 1, height))
    kept = top < bottom
    column, top, bottom = column[kept], top[kept], bottom[kept]
    # pieces begin[k] to end[k] belong to the old column of new column k
    begin, end = (np.searchsorted(column, columns, side=side) for side in ("left", "right"))
    piece = np.repeat(begin, end - begin) + _ranges(end - begin)
    new = np.repeat(np.arange(len(columns)), end - begin) * len(rows)
    return _merge(np.stack([new + top[piece], new + bottom[piece]], axis=1).ravel())


def _ranges(counts: np.ndarray) -> np.ndarray:
    """Return 0..c - 1 for each count c, concatenated."""
    ends = np.cumsum(counts)
    numbers: np.ndarray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return numbers


def paste_masks(masks: Tensor, boxes: Tensor, size: Size, *, threshold: float = 0.5) -> Tensor:
    """Return the masks of the image as runs of pixels, (n, R).

    A mask is sampled bilinearly at each pixel's centre, with 0 outside, and compared with the threshold. This is
    detectron2's rule. torchvision rounds the boxes first, which costs small objects up to a tenth of their IoU. To save
    memory, masks are drawn one at a time and only within their boxes.

    Args:
        masks: (n, M, M) in [0, 1], on the CPU like the boxes.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image.
        size: H, W.
        threshold: minimum value of an object's pixels.
    """
    return stack_runs(
        [
            from_mask(drawn, size, top=top, left=left)
            for drawn, top, left in _draw_in_boxes(masks, boxes, size, threshold)
        ],
        size,
    )


def _draw_in_boxes(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield each mask within its box, (h, w) bool, with its first row and column in the image."""
    for mask, (x0, y0, x1, y1) in zip(masks.float(), boxes.tolist(), strict=True):
        left, u = _centres(x0, x1, size[1])
        top, v = _centres(y0, y1, size[0])
        drawn = np.zeros((len(v), len(u)), dtype=bool)
        if drawn.size:
            grid = torch.stack([u.expand(len(v), -1), v[:, None].expand(-1, len(u))], dim=-1)
            drawn = (F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= threshold).numpy()
        yield drawn, top, left


def _centres(low: float, high: float, length: int) -> tuple[int, Tensor]:
    """Return the first pixel that a box can touch on an axis, and the pixel centres relative to the box (-1 to 1)."""
    first, last = max(0, math.floor(low) - 1), min(length, math.ceil(high) + 1)
    centres = torch.arange(first, max(first, last), dtype=torch.float32) + 0.5
    return first, (centres - low) / max(high - low, 1e-9) * 2 - 1


def run_lengths(codes: Sequence[str | list[Any]]) -> list[np.ndarray | None]:
    """Return the runs of each `counts` (compressed text or a list), int64; None if invalid. Sums are not checked."""
    runs: list[np.ndarray | None] = [None] * len(codes)
    for k, code in enumerate(codes):
        if isinstance(code, list) and set(map(type, code)) == {int} and all(0 <= value < 2**32 for value in code):
            runs[k] = np.array(code, dtype=np.int64)
    texts = {k: code for k, code in enumerate(codes) if isinstance(code, str) and _is_complete(code)}
    for k, values in zip(texts, _decompress(list(texts.values())), strict=True):
        runs[k] = values
    return runs


def _is_complete(code: str) -> bool:
    """Return whether a text has only characters of a compressed code and does not end within a number."""
    return code != "" and code.isascii() and min(code) >= "0" and max(code) <= "o" and not (ord(code[-1]) - 48) & 32


def _decompress(texts: list[str]) -> list[np.ndarray | None]:
    """Return the runs of each compressed code, as pycocotools' rleFrString does; None for a number that is too long.

    A character holds 5 bits of a number. From the fourth number on, it is the difference to the number two before it.
    """
    if not texts:
        return []
    data = np.frombuffer("".join(texts).encode(), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((data & 32) == 0)  # last character of each number
    lengths = np.diff(ends, prepend=-1)
    starts = ends - lengths + 1
    digit = np.minimum(np.arange(len(data)) - np.repeat(starts, lengths), LONGEST)
    negative = np.where(data[ends] & 16, 1 << 5 * np.minimum(lengths, LONGEST), 0)
    values = np.add.reduceat((data & 31) << 5 * digit, starts) - negative
    owner = np.searchsorted(np.cumsum([len(text) for text in texts]), ends, side="right")
    first = np.searchsorted(owner, np.arange(len(texts)))
    rank = np.arange(len(owner)) - first[owner]
    series = 3 * owner + np.where(rank == 0, 0, 1 + rank % 2)  # numbers of one series are summed up
    order = np.argsort(series, kind="stable")
    sums, begins = np.cumsum(values[order]), np.searchsorted(series[order], series[order])
    counts = np.empty_like(values)
    counts[order] = sums - sums[begins] + values[order][begins]
    broken = np.bincount(owner, lengths > LONGEST) > 0
    return [None if bad else one for one, bad in zip(np.split(counts, first[1:]), broken, strict=True)]
