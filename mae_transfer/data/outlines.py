"""Outlines of objects as COCO's json has them -> masks, by pycocotools.

Legend: n objects of one image, H x W pixels. An outline is a list of polygons [x0, y0, x1, y1, ...] in pixels, or a run-length code {size, counts}.
"""

from __future__ import annotations

from typing import Any

import numpy as np


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
