"""Outlines of objects as COCO's json has them -> masks, by pycocotools.

Legend: n objects of one image, H x W pixels. An outline is a list of polygons [x0, y0, x1, y1, ...] in pixels, or a run-length code {size, counts}.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def defect(outline: Any, size: tuple[int, int] | None = None) -> str | None:
    """Return what is wrong with an outline, or None; size: H, W that a run-length code must have."""
    if isinstance(outline, dict):
        if not {"size", "counts"} <= outline.keys():
            return "run-length code without size or counts"
        return "run-length code of another size than the image" if size is not None and outline["size"] != list(size) else None
    if not isinstance(outline, list) or not outline:
        return "no outline"
    for polygon in outline:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return "polygon of an odd number of coordinates"
        if len(polygon) < 6:
            return f"polygon of {len(polygon) // 2} points"
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in polygon):
            return "polygon with a coordinate that is no number"
    return None


def valid(outline: Any) -> Any | None:
    """Return the outline without its invalid polygons, as detectron2 does; None where nothing is left."""
    if isinstance(outline, list):
        return [polygon for polygon in outline if isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6] or None
    return outline if defect(outline) is None else None


def encode(outline: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return a valid outline as one compressed run-length code of an (H, W) image."""
    from pycocotools import mask

    if isinstance(outline, list):  # pycocotools takes four numbers for a box, which is why short polygons are not valid
        return dict(mask.merge(mask.frPyObjects(outline, *size)))
    return dict(outline) if isinstance(outline["counts"], str | bytes) else dict(mask.frPyObjects(outline, *size))


def masks(outlines: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Return the masks of valid outlines, (n, H, W) uint8."""
    from pycocotools import mask

    if not outlines:
        return np.zeros((0, *size), dtype=np.uint8)
    return np.ascontiguousarray(mask.decode([encode(outline, size) for outline in outlines]).transpose(2, 0, 1))


def code(mask_of_object: np.ndarray) -> dict[str, Any]:
    """Return a mask (H, W), non-zero = object, as a run-length code that json can write."""
    from pycocotools import mask

    encoded = mask.encode(np.asfortranarray(mask_of_object != 0).astype(np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
