"""Masks of objects as runs of pixels. Their memory grows with the length of the outlines, not with the image: 1,000 objects
of a 5000 x 4000 image take a few megabytes instead of 20 GB.

Pixels are numbered down the columns, as in COCO's run-length codes: pixel (row, column) is number column * H + row. The runs
of an object are numbers r0 <= r1 <= r2 ...: its pixels are r0 to r1, r2 to r3 and so on, ends excluded.

Legend: n objects of an image of H x W pixels; `runs` are (n, R) int32, R even, padded with empty runs at H * W; a size is (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.coco_outlines import run_lengths

Size = tuple[int, int]
MOST_PIXELS = 2**31 - 1  # of an image, so that their numbers fit int32


def stacked(each: Sequence[np.ndarray], size: Size) -> Tensor:
    """Return the runs of single objects, (R_k,) with R_k even, as (n, R) int32; ValueError for an image of too many pixels."""
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"an image of {size[1]} x {size[0]} pixels has more than {MOST_PIXELS}: cut it into tiles")
    runs = np.full((len(each), max(map(len, each), default=0)), size[0] * size[1], dtype=np.int32)
    for row, one in zip(runs, each, strict=True):
        row[: len(one)] = one
    return torch.from_numpy(runs)


def from_mask(mask: np.ndarray, size: Size, *, top: int = 0, left: int = 0) -> np.ndarray:
    """Return the runs of one mask (h, w), non-zero = object, at (top, left) of an image of this size; (R,) int64."""
    height, width = mask.shape
    bordered = np.zeros((width, height + 2), dtype=bool)
    bordered[:, 1:-1] = mask.T
    column, row = np.divmod(np.flatnonzero(bordered[:, 1:] != bordered[:, :-1]), height + 1)
    return _merged((left + column) * size[0] + top + row)


def from_masks(masks: Tensor) -> Tensor:
    """Return the runs of masks (n, H, W), non-zero = object."""
    size = (masks.shape[1], masks.shape[2])
    return stacked([from_mask(mask.numpy(), size) for mask in masks.cpu()], size)


def from_counts(codes: Sequence[str | list[int]], size: Size) -> Tensor:
    """Return the runs of the `counts` of COCO's run-length codes, compressed (text) or not (numbers).

    Raises ValueError where one is broken or has more pixels than the image.
    """
    each = []
    for code in codes:
        counts = run_lengths([code])[0]  # one at a time: together they would take 50 bytes for each character
        if counts is None or counts.min() < 0 or counts.sum() > size[0] * size[1]:
            raise ValueError(
                f"a broken run-length code of an image of {size[1]} x {size[0]} pixels: write its outline again"
            )
        each.append(_merged(np.cumsum(counts)[: len(counts) // 2 * 2]))  # an odd number ends with background
    return stacked(each, size)


def to_counts(runs: Tensor, size: Size) -> list[int]:
    """Return one object's runs (R,) as the numbers of an uncompressed run-length code: pixels outside, inside, outside ..."""
    ends = _merged(runs.numpy().astype(np.int64))
    counts: list[int] = np.diff(ends, prepend=0).tolist()
    rest = size[0] * size[1] - (int(ends[-1]) if len(ends) else 0)
    return [*counts, rest] if rest else counts


def taken(runs: Tensor, size: Size, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Return the runs of masks[:, rows][:, :, columns]; no mask is drawn. Resizing by nearest, cropping and mirroring are such choices.

    Args:
        size: H, W.
        rows: (h,) which row each new one is, never falling.
        columns: (w,) the same of the columns, in any order.
    """
    return stacked(
        [_taken(_merged(one), size[0], rows, columns) for one in runs.numpy().astype(np.int64)],
        (len(rows), len(columns)),
    )


def extents(runs: Tensor, size: Size) -> Tensor:
    """Return the boxes around the pixels of each object, (n, 4) float32 x0, y0, x1, y1 to the far edge; zeros without pixels."""
    height, width = size
    runs = F.pad(runs, (0, 2), value=height * width)  # an empty run for each, so that there is one
    first, last = runs[:, 0::2], runs[:, 1::2] - 1
    there, whole = (
        first <= last,
        first // height < last // height,
    )  # a run over several columns has the first and last row
    left = torch.where(there, first // height, width).amin(1)
    right = torch.where(there, last // height + 1, 0).amax(1)
    top = torch.where(there, (first % height) * ~whole, height).amin(1)
    bottom = torch.where(there, torch.where(whole, height, last % height + 1), 0).amax(1)
    return torch.stack([left, top, right, bottom], dim=1).float() * filled(runs)[:, None]


def filled(runs: Tensor) -> Tensor:
    """Return whether each object has a pixel, (n,) bool."""
    return (runs[:, 0::2] < runs[:, 1::2]).any(dim=1)


def dense(runs: Tensor, size: Size) -> Tensor:
    """Return the masks (n, H, W) uint8, 1 = object, on the device of the runs, which is never waited for."""
    height, width = size
    flips = torch.zeros(len(runs), height * width + 1, dtype=torch.uint8, device=runs.device)
    flips.scatter_add_(1, runs.long(), torch.ones_like(runs, dtype=torch.uint8))
    inside = flips[:, :-1].cumsum(1, dtype=torch.uint8) & 1  # whatever overflows: only whether it is odd counts
    return inside.view(len(runs), width, height).transpose(1, 2)


def _merged(ends: np.ndarray) -> np.ndarray:
    """Return the runs (R,) without empty ones, those joined that touch."""
    first, last = ends[0::2], ends[1::2]
    there = first < last
    first, last = first[there], last[there]
    apart = first[1:] > last[:-1]
    return np.stack(
        [first[np.append(True, apart)[: len(first)]], last[np.append(apart, True)[: len(last)]]], axis=1
    ).ravel()


def _taken(ends: np.ndarray, height: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the runs of one object of images of H rows, where these rows and columns are taken."""
    first, last = ends[0::2], ends[1::2] - 1
    start, stop = first // height, last // height
    spans = stop - start + 1  # columns that a run touches; it is cut into as many pieces
    run = np.repeat(np.arange(len(first)), spans)
    column = start[run] + _counted(spans)
    top = np.searchsorted(rows, np.where(column == start[run], first[run] % height, 0))
    bottom = np.searchsorted(rows, np.where(column == stop[run], last[run] % height + 1, height))
    left = top < bottom
    column, top, bottom = column[left], top[left], bottom[left]
    begin, end = (
        np.searchsorted(column, columns, side=side) for side in ("left", "right")
    )  # pieces of each new column's old one
    piece = np.repeat(begin, end - begin) + _counted(end - begin)
    new = np.repeat(np.arange(len(columns)), end - begin) * len(rows)
    return _merged(np.stack([new + top[piece], new + bottom[piece]], axis=1).ravel())


def _counted(counts: np.ndarray) -> np.ndarray:
    """Return 0..c - 1 for each count c, one after the other."""
    ends = np.cumsum(counts)
    places: np.ndarray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return places
