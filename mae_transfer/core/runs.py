"""Masks of objects as runs of pixels.

Their memory depends on the length of the outlines, not on the size of the image: 1,000 objects of a 5000 x 4000 image
take a few megabytes instead of 20 GB.

Pixels are numbered down the columns, as in COCO's run-length codes: pixel (row, column) has the number column * H +
row. The runs of an object are numbers r0 <= r1 <= r2 ...; its pixels are r0 to r1, r2 to r3 and so on, ends excluded.

Legend: n objects of an image of H x W pixels; `runs` are (n, R) int32, R even, padded with empty runs at H * W. A size
is (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.coco_outlines import run_lengths

Size = tuple[int, int]
MOST_PIXELS = 2**31 - 1  # of an image, so that pixel numbers fit int32


def stacked(each: Sequence[np.ndarray], size: Size) -> Tensor:
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
    return stacked([from_mask(mask.numpy(), size) for mask in masks.cpu()], size)


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
    return stacked(each, size)


def to_counts(runs: Tensor, size: Size) -> list[int]:
    """Return the runs of one object (R,) as counts of an uncompressed run-length code: outside, inside, outside ..."""
    ends = _merge(runs.numpy().astype(np.int64))
    counts: list[int] = np.diff(ends, prepend=0).tolist()
    rest = size[0] * size[1] - (int(ends[-1]) if len(ends) else 0)
    return [*counts, rest] if rest else counts


def taken(runs: Tensor, size: Size, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Return the runs of masks[:, rows][:, :, columns] without rasterising masks.

    This covers nearest-neighbour resizing, cropping and flipping.

    Args:
        size: H, W.
        rows: (h,) old row of each new row, in ascending order (repeats allowed).
        columns: (w,) old column of each new column, in any order.
    """
    return stacked(
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
    return torch.stack([left, top, right, bottom], dim=1).float() * filled(runs)[:, None]


def filled(runs: Tensor) -> Tensor:
    """Return whether each object has a pixel, (n,) bool."""
    return (runs[:, 0::2] < runs[:, 1::2]).any(dim=1)


def dense(runs: Tensor, size: Size) -> Tensor:
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
