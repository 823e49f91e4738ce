"""Convert outlines of COCO's json to runs of pixels (core.runs) and back with pycocotools, without rasterising masks.

Legend: n objects of one image, H x W pixels, R ends of runs. An outline is a list of polygons [x0, y0, x1, y1, ...] in
pixels, or a run-length code {size, counts}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mae_transfer.core.runs import Size, from_counts, to_counts


def runs(outlines: Sequence[Any], size: Size) -> Tensor:
    """Return the masks of valid outlines as runs of pixels, (n, R) int32."""
    return from_counts([_counts(outline, size) for outline in outlines], size)


def code(runs: Tensor, size: Size) -> dict[str, Any]:
    """Return the runs of one object (R,) as a compressed run-length code for json."""
    from pycocotools import mask

    encoded = mask.frPyObjects({"size": list(size), "counts": to_counts(runs, size)}, *size)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _counts(outline: Any, size: Size) -> str | list[int]:
    """Return the counts of an outline as one run-length code."""
    from pycocotools import mask

    if isinstance(outline, list):  # pycocotools reads four numbers as a box, so shorter polygons are invalid
        return str(mask.merge(mask.frPyObjects(outline, *size))["counts"], "ascii")
    counts: str | list[int] = outline["counts"]
    return counts
