"""The benchmarks `detect` (steps of ViTDet's Mask R-CNN, ours and detectron2's) and `coco` (two COCO evaluators).

Legend: B batch, S pixels per side, K classes, n objects of an image.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mae_transfer.adapters import AdaptedBackbone, SimpleFPNConfig
from mae_transfer.adapters.levels import NORMS
from mae_transfer.bench.harness import Comparison, Contestant
from mae_transfer.bench.options import Workload
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.core.runs import from_masks, rasterize, select_pixels
from mae_transfer.data.coco import encode_runs
from mae_transfer.data.objects import SceneBatch
from mae_transfer.interfaces import Objects
from mae_transfer.metrics.coco import Backend, CocoMetric, Detections, Kind
from mae_transfer.models.attention import PositionBias, set_position_bias
from mae_transfer.models.mask_rcnn import HeadsConfig, MaskRCNN
from mae_transfer.models.vit import SIZES, ViT, ViTConfig
from mae_transfer.tasks.detect import padded
from mae_transfer.tasks.detectron2 import Detectron2RCNN

CLASSES = 80
OBJECTS = 7  # per image, the average of COCO
OURS = "mae_transfer"
CHANNELS = "mae_transfer, positions as channels"
FLEX = "mae_transfer, FlexAttention"  # where it has no kernel (eagerly, on a CPU), it runs as OURS
HEADS = "mae_transfer, detectron2's heads"
PEER = "detectron2's ViTDet"
BACKENDS: tuple[Backend, ...] = ("pycocotools", "faster-coco-eval")
KINDS: tuple[Kind, ...] = ("bbox", "segm")
GLOBAL = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 32: (7, 15, 23, 31)}  # depth -> global blocks


def build_ours(engine: str, work: Workload, *, bias: PositionBias = "tensor") -> Contestant:
    """Build our step with the heads of torchvision or detectron2. Only the model is compiled, as in the task."""
    cfg = ViTConfig.model_validate({
        "size": work.size, "patch": work.patch, "image_size": work.image, "class_token": False,
        "final_norm": False, "positions": "learned", "windows": 14, "global_blocks": GLOBAL[SIZES[work.size][1]],
        "relative_positions": "decomposed", "antialias": False, "drop_path": 0.1,
    })  # fmt: skip
    vit = ViT(cfg)
    set_position_bias(vit, bias, device=torch.device(work.device), compiled=True)
    adapter, heads = SimpleFPNConfig().build(vit.maps()), HeadsConfig()
    strides, pyramid = list(adapter.strides.values()), AdaptedBackbone(vit, adapter)
    model: nn.Module
    if engine == "detectron2":
        model = Detectron2RCNN(pyramid, strides=strides, classes=CLASSES, heads=heads)
    else:
        model = MaskRCNN(
            pyramid, channels=adapter.channels, strides=strides, classes=CLASSES, heads=heads, norm=NORMS["layer"]
        )
    images, objects = _draw_batch(work)
    batch = SceneBatch(images, ((work.image, work.image),) * work.batch, tuple(objects), torch.arange(work.batch))

    def loss() -> Tensor:
        return torch.stack(list(model(padded(batch, IMAGENET), batch.sizes, batch.objects).values())).sum()

    return Contestant(model, loss, blocks=True)


def build_vitdet(work: Workload) -> Contestant:
    """Build the same step with detectron2 only, assembled as in its configs/common/models/mask_rcnn_vitdet.py.

    Its input has the format of detectron2's mapper.
    """
    from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
    from detectron2.modeling import ViT as ViTDet
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    dim, depth, heads = SIZES[work.size]
    windowed = [i for i in range(depth) if i not in GLOBAL[depth]]
    net = ViTDet(
        img_size=work.image, patch_size=work.patch, embed_dim=dim, depth=depth, num_heads=heads,
        drop_path_rate=0.1, window_size=14, mlp_ratio=4, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), window_block_indexes=windowed, residual_block_indexes=[],
        use_rel_pos=True, out_feature="last_feat", pretrain_img_size=work.image, pretrain_use_cls_token=False,
    )  # fmt: skip
    scales = (4.0, 2.0, 1.0, 0.5)
    pyramid = SimpleFeaturePyramid(
        net, "last_feat", 256, scales, top_block=LastLevelMaxPool(), norm="LN", square_pad=work.image
    )
    detector = build_ours("detectron2", work).model  # its heads are detectron2's
    mean, std = ([255 * value for value in values] for values in IMAGENET)
    model = GeneralizedRCNN(
        backbone=pyramid, proposal_generator=detector.rpn, roi_heads=detector.roi_heads, pixel_mean=mean,
        pixel_std=std, input_format="RGB",
    )  # fmt: skip
    given, size = [], (work.image, work.image)
    for image, one in zip(*_draw_batch(work), strict=True):
        assert one.masks is not None
        masks = BitMasks(rasterize(one.masks, size).bool())
        instances = Instances(size, gt_boxes=Boxes(one.boxes), gt_classes=one.labels, gt_masks=masks)
        given.append({"image": image, "instances": instances, "height": work.image, "width": work.image})

    def loss() -> Tensor:
        with EventStorage():
            return torch.stack(list(model(given).values())).sum()

    return Contestant(model, loss, compiled=pyramid)


def _draw_batch(work: Workload) -> tuple[Tensor, list[Objects]]:
    """Return images (B, 3, S, S) uint8 of noise, and elliptic objects for each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (work.batch, 3, work.image, work.image), dtype=torch.uint8, generator=generator)
    return images.to(work.device), [_draw_ellipses(work, generator) for _ in range(work.batch)]


def _draw_ellipses(work: Workload, generator: torch.Generator) -> Objects:
    side = work.image
    extent = torch.rand(OBJECTS, 2, generator=generator) * side / 2 + side / 16
    corner = torch.rand(OBJECTS, 2, generator=generator) * (side - extent)
    boxes = torch.cat([corner, corner + extent], dim=1)
    centre, axes = (boxes[:, :2] + boxes[:, 2:]) / 2, extent / 2
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = ((x[None] - centre[:, 0, None, None]) / axes[:, 0, None, None]) ** 2 + (
        (y[None] - centre[:, 1, None, None]) / axes[:, 1, None, None]
    ) ** 2
    labels = torch.randint(CLASSES, (OBJECTS,), generator=generator)
    objects = Objects(boxes, labels, torch.zeros(OBJECTS, dtype=torch.bool), from_masks(masks <= 1))
    return objects.to(torch.device(work.device))


COMPARISON = Comparison(
    {
        OURS: partial(build_ours, "torchvision"),
        CHANNELS: partial(build_ours, "torchvision", bias="channels"),
        FLEX: partial(build_ours, "torchvision", bias="flex"),
        HEADS: partial(build_ours, "detectron2"),
        PEER: build_vitdet,
    },
    "ratio_to_detectron2",
    PEER,
)


def evaluators(*, images: int, rounds: int) -> list[dict[str, Any]]:
    """Time both evaluators on the same random predictions, alternating, and return one record each.

    `largest_difference` shows whether their figures are equal.
    """
    truth, found = evaluators_input(images)
    seconds: dict[tuple[Kind, Backend], list[float]] = {(kind, name): [] for kind in KINDS for name in BACKENDS}
    figures: dict[tuple[Kind, Backend], dict[str, float]] = {}
    for _ in range(rounds):
        for kind, backend in seconds:
            metric = CocoMetric(truth, kinds=(kind,), backend=backend)
            metric.update(range(1, images + 1), found)
            start = time.perf_counter()
            figures[kind, backend] = metric.compute()
            seconds[kind, backend].append(time.perf_counter() - start)
    return [
        {
            "name": backend,
            "kind": kind,
            "seconds": statistics.median(times),
            "ratio_to_pycocotools": statistics.median(seconds[kind, "pycocotools"]) / statistics.median(times),
            "largest_difference": max(
                abs(value - figures[kind, "pycocotools"][name]) for name, value in figures[kind, backend].items()
            ),
        }
        for (kind, backend), times in seconds.items()
    ]


def evaluators_input(images: int, *, side: int = 256, detections: int = 100) -> tuple[dict[str, Any], list[Detections]]:
    """Return a ground truth of ellipses; the detections of each image are these, slightly shifted, and random ones."""
    size, shifted = (side, side), np.roll(np.arange(side), 3)
    generator, work = torch.Generator().manual_seed(0), Workload(image=side)
    entries: list[dict[str, Any]] = []
    found: list[Detections] = []
    for image in range(1, images + 1):
        scene = _draw_ellipses(work, generator)
        assert scene.masks is not None
        areas = rasterize(scene.masks, size).sum(dim=(1, 2)).tolist()
        for box, label, area, runs in zip(scene.boxes.tolist(), scene.labels.tolist(), areas, scene.masks, strict=True):
            extent = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": image, "category_id": label + 1, "bbox": extent, "area": area, "iscrowd": 0}
            entries.append({"id": len(entries) + 1, **entry, "segmentation": encode_runs(runs, size)})
        others = [_draw_ellipses(work, generator) for _ in range(detections // OBJECTS)]
        noise = torch.randn(scene.boxes.shape, generator=generator) * 4
        moved = replace(
            scene, boxes=scene.boxes + noise, masks=select_pixels(scene.masks, size, np.arange(side), shifted)
        )
        boxes, labels = (torch.cat([getattr(one, part) for one in (moved, *others)]) for part in ("boxes", "labels"))
        codes = [encode_runs(runs, size) for one in (moved, *others) if one.masks is not None for runs in one.masks]
        found.append(Detections(boxes, torch.rand(len(boxes), generator=generator), labels, codes))
    listed = [{"id": k, "height": side, "width": side, "file_name": f"{k}.jpg"} for k in range(1, images + 1)]
    return {
        "images": listed,
        "annotations": entries,
        "categories": [{"id": k, "name": str(k)} for k in range(1, CLASSES + 1)],
    }, found
