"""Pictures of detections: annotated objects on the left, detected objects on the right.

Legend: H x W pixels, n objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mae_transfer.core.runs import from_counts, rasterize, select_pixels
from mae_transfer.disk import atomic_write
from mae_transfer.draw.segmentations import palette
from mae_transfer.interfaces import Objects

THRESHOLD = 0.3  # minimum score of objects that are drawn; if there are none, the best one is drawn
MIX = 0.45  # opacity of masks
SHARP = 1024  # pixels of a panel's longer side; larger images are drawn with every second, third ... pixel
MOST = 40  # objects drawn per image, best first


class DetectionPicture(NamedTuple):
    """One image with its annotated and its detected objects, in pixels of the image."""

    image: Tensor  # (3, H, W) uint8 RGB
    objects: Objects
    found: Any  # boxes (n, 4), scores (n,), labels (n,), masks as run-length codes or None: metrics.coco.Detections
    name: str


def save_detections(path: Path, shown: DetectionPicture, classes: Sequence[str]) -> None:
    """Write a PNG: annotated objects (crowd regions dashed) beside `choose_detections`, with their scores."""
    height, width = shown.image.shape[-2:]
    figure = Figure(figsize=(14, 7 * height / width + 0.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    truth, found = shown.objects, shown.found
    names = [
        classes[label] + (" (crowd)" if crowd else "")
        for label, crowd in zip(truth.labels.tolist(), truth.crowd.tolist(), strict=True)
    ]
    _panel(left, shown.image, truth, names, f"{shown.name}: {len(names)} objects", len(classes))
    kept, title = choose_detections(found.scores)
    masks = None if found.masks is None else from_counts([found.masks[k]["counts"] for k in kept], (height, width))
    best = found._replace(boxes=found.boxes[kept], labels=found.labels[kept], masks=masks)
    names = [f"{classes[int(found.labels[k])]} {float(found.scores[k]):.2f}" for k in kept]
    _panel(right, shown.image, best, names, title, len(classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def choose_detections(scores: Tensor) -> tuple[list[int], str]:
    """Return the detections to draw, best first, and a title. scores: (n,).

    A detector that has trained for a short time may be sure of nothing. Its best guess is drawn then.
    """
    order: list[int] = scores.argsort(descending=True).tolist()
    kept = [k for k in order if scores[k] >= THRESHOLD][:MOST]
    if kept or not order:
        return kept, f"found: {len(kept)} with a score of at least {THRESHOLD}"
    return order[:1], f"found: none with a score of at least {THRESHOLD}; the best one is shown"


def _panel(axes: Any, image: Tensor, objects: Any, names: Sequence[str], title: str, classes: int) -> None:
    colours = palette(classes)[objects.labels.cpu().numpy()]
    height, width = image.shape[-2:]
    rows, columns = (np.arange(0, length, max(1, max(height, width) // SHARP)) for length in (height, width))
    canvas = image[:, rows][:, :, columns].permute(1, 2, 0).numpy() / 255
    if objects.masks is not None:
        small = select_pixels(objects.masks, (height, width), rows, columns)
        for runs, colour in zip(small, colours, strict=True):
            mask = rasterize(runs[None], (len(rows), len(columns)))[0].numpy() != 0
            canvas[mask] = (1 - MIX) * canvas[mask] + MIX * colour
    axes.imshow(np.clip(canvas, 0, 1), interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for (x0, y0, x1, y1), colour, name in zip(objects.boxes.tolist(), colours, names, strict=True):
        style = "--" if name.endswith("(crowd)") else "-"
        axes.add_patch(
            Rectangle(
                (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2, linestyle=style
            )
        )
        label = {"facecolor": colour, "alpha": 0.8, "pad": 1, "edgecolor": "none"}
        axes.text(x0, y0, name, fontsize=10, color="black", verticalalignment="bottom", bbox=label, clip_on=True)
    axes.set_title(title, fontsize=14)
    axes.set_axis_off()
