"""Evaluates the same predictions on any number of gloo processes, with a padding sampler.

Usage: python coco_iou_ranks.py OUT.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from mae_transfer.core.runs import select_pixels
from mae_transfer.data.coco import encode_runs
from mae_transfer.data.dense_shapes import ShapesMapsConfig, ShapesObjectsConfig
from mae_transfer.engine.dist import session
from mae_transfer.metrics.coco import CocoMetric, Detections
from mae_transfer.metrics.iou import IouMetric

IMAGES = 7

scenes, maps = ShapesObjectsConfig(size=64, length=IMAGES).open(), ShapesMapsConfig(size=64, length=IMAGES).open()


def moved(index: int) -> Detections:
    """The truth, moved by a few pixels, with scores of their own."""
    rng = np.random.default_rng(index)
    objects = scenes.objects(index)
    assert objects.masks is not None
    step = int(rng.integers(0, 4))
    size = height, width = scenes.size(index)
    codes = [
        encode_runs(runs, size)
        for runs in select_pixels(objects.masks, size, np.arange(height), np.roll(np.arange(width), step))
    ]
    scores = torch.from_numpy(rng.random(len(objects.labels)))
    return Detections(objects.boxes + step, scores, objects.labels, codes)


with session("cpu") as dist:
    coco, iou = CocoMetric(scenes.ground_truth(), backend="pycocotools"), IouMetric(maps.classes)
    padded = [
        k % IMAGES for k in range(-(-IMAGES // dist.world) * dist.world)
    ]  # DistributedSampler's way: the first ones again
    for index in padded[dist.rank :: dist.world]:
        coco.update([index + 1], [moved(index)])
    for index in range(dist.rank, IMAGES, dist.world):
        labels = maps.read(index).labels
        iou.update(labels.roll(index, dims=0).long(), labels)
    out = Path(sys.argv[1])
    figures = coco.compute(save=out.with_suffix(".predictions.json"), group=dist.side) | iou.compute(per_class=True)
    out.with_suffix(f".{dist.rank}.json").write_text(json.dumps(figures))
