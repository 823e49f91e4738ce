"""The benchmark `masks`: cost of the masks of many objects in a training sample and in evaluation, on random data.

Legend: n objects of an image of H x W pixels.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mae_transfer.config import members
from mae_transfer.data import Key
from mae_transfer.data.coco import Coco, CocoConfig
from mae_transfer.data.objects import AnySceneTransform, Scenes
from mae_transfer.interfaces import Found
from mae_transfer.metrics.coco import CocoMetric
from mae_transfer.tasks.detect import in_stored

Json = dict[str, Any]
CORNERS = 32  # corners of a polygon
SIDE = 28  # side of a predicted mask
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # units of ru_maxrss per MiB


def run(args: argparse.Namespace) -> list[Json]:
    """Return a record for each transform of a training sample, and one for pasting and encoding detections."""
    size, rng = (args.height, args.width), np.random.default_rng(0)
    polygons = [_polygon(rng, size, args.radius) for _ in range(args.objects)]
    with tempfile.TemporaryDirectory() as folder:
        source = _written(Path(folder), polygons, size)
        records = []
        for name, transform in members(AnySceneTransform).items():
            samples = Scenes(source=source, seed=0, transform=transform(), square=None, divisor=32, training=True)
            records.append(_timed(f"training sample, {name}", partial(_sample, samples), args))
        found, metric = _found(polygons), CocoMetric(source.ground_truth())
        return [
            *records,
            _timed(
                "evaluation of an image", lambda _: metric.empty().update([1], [in_stored(found, size, size)]), args
            ),
        ]


def _sample(samples: Scenes, epoch: int) -> None:
    samples[[Key(epoch, 0, 0)]]


def _timed(name: str, work: Callable[[int], object], args: argparse.Namespace) -> Json:
    seconds = []
    for k in range(args.rounds):
        start = time.perf_counter()
        work(k)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT / 2**10  # of the process so far, with libraries
    size = f"{args.width} x {args.height}"
    return {"name": name, "objects": args.objects, "size": size, "seconds": min(seconds), "peak_gib": peak}


def _polygon(rng: np.random.Generator, size: tuple[int, int], radius: float) -> np.ndarray:
    """Return a star as x, y (CORNERS, 2), clipped to the image."""
    angles, far = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False), radius * rng.uniform(0.4, 1.6)
    centre = rng.uniform(0, 1, 2) * (size[1], size[0])
    spokes = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (far * rng.uniform(0.6, 1.0, (CORNERS, 1)))
    points: np.ndarray = (centre + spokes).clip(0, (size[1], size[0])).round(2)
    return points


def _written(root: Path, polygons: list[np.ndarray], size: tuple[int, int]) -> Coco:
    """Write an image with these objects in COCO's layout, and open it."""
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((size[1], size[0])).save(root / "train2017" / "1.jpg")
    objects = []
    for k, points in enumerate(polygons, start=1):
        x0, y0, x1, y1 = (float(v) for v in (*points.min(axis=0), *points.max(axis=0)))
        box = [x0, y0, max(x1 - x0, 1.0), max(y1 - y0, 1.0)]
        described = {"id": k, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]}
        objects.append({**described, "segmentation": [points.ravel().tolist()]})
    image = {"id": 1, "file_name": "1.jpg", "height": size[0], "width": size[1]}
    content = {"images": [image], "categories": [{"id": 1, "name": "star"}], "annotations": objects}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")
    return CocoConfig(root=str(root)).open()


def _found(polygons: list[np.ndarray]) -> Found:
    """Return a detection with a soft disc as mask for each object."""
    boxes = torch.tensor(
        np.array([[*points.min(axis=0), *points.max(axis=0)] for points in polygons]), dtype=torch.float32
    )
    axis = torch.linspace(-1, 1, SIDE)
    disc = torch.sigmoid(8 * (1 - axis[:, None] ** 2 - axis**2))
    count = len(polygons)
    return Found(
        boxes, torch.linspace(1, 0.1, count), torch.zeros(count, dtype=torch.int64), disc.expand(count, -1, -1)
    )
