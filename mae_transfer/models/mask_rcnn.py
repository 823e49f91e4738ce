"""Mask R-CNN on a pyramid, built from torchvision's parts.

The published numbers come from detectron2. Small subclasses remove most differences between the two;
docs/results/detect.md lists the remaining ones.

Legend: B images of H x W pixels, C channels of the pyramid, K classes (our label k is k + 1 here, because torchvision's
label 0 is the background), R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from mae_transfer.arithmetic import in_full
from mae_transfer.bounds import BelowOne, Count, Few, FewOrNone, MostDetections, Pixels, Width
from mae_transfer.config import Schema
from mae_transfer.core.runs import Size, rasterize
from mae_transfer.interfaces import Backbone, Found, Model, Objects

Targets = list[dict[str, Tensor]]


class HeadsConfig(Schema):
    """The heads, the same for every engine. The defaults are ViTDet's (2203.16527); norm "batch" makes them Li et al.'s
    (2111.11429)."""

    norm: str | None = "layer"
    """Norm after each convolution of the box and the mask head: an entry of adapters.NORMS; None: no norm."""
    rpn_convs: Few = 2
    """Convolutions of the proposal network before its two outputs."""
    box_convs: FewOrNone = 4
    """Convolutions of the box head."""
    box_width: Width = 1024
    """Width of the box head's linear layer."""
    mask_convs: Few = 4
    """Convolutions of the mask head before its upsampling."""
    masks: bool = True
    """Whether there is a mask head; without it the model is Faster R-CNN, trained on boxes only."""
    anchors: tuple[Pixels, ...] = (32, 64, 128, 256, 512)
    """Side of the square anchors of each level, pixels. Each level also has anchors of the same area with a height to
    width ratio of 1/2 and of 2."""
    rpn_batch: Count = 256
    """Anchors per image sampled for the loss of the proposal network; at most half of them on objects."""
    roi_batch: Count = 512
    """Regions per image sampled for the loss of the heads; at most a quarter of them on objects."""
    pre_nms_topk: tuple[Count, Count] = (2000, 1000)
    """Proposals per level before non-maximum suppression, in training and in evaluation."""
    post_nms_topk: tuple[Count, Count] = (1000, 1000)
    """Proposals per image after non-maximum suppression, in training and in evaluation."""
    score_threshold: BelowOne = 0.05
    """Lowest score of a detection."""
    detections: MostDetections = 100
    """Most detections per image. Evaluation uses the same limit, but at least COCO's 100."""


RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
BOX_SIDE, MASK_SIDE = 7, 14  # side of a pooled region in cells
FINEST = 2  # level of p2
CANONICAL = 56  # a region of 56 times p2's stride is pooled from p4 (FPN, 1612.03144: 224 pixels for a stride of 4)
DRAWN = 16  # number of an image's masks that are drawn at once: 80 MB at 1024 x 1024


class Detector(Model):
    """A pyramid with the heads of a detector."""

    pyramid: Model  # images -> name -> map

    @property
    def encoder(self) -> Backbone:
        return self.pyramid.encoder

    def compile(self, *, backend: Any = "inductor") -> None:
        """Compile the pyramid only; later shapes depend on the detections."""
        self.pyramid.compile(backend=backend)


class MaskRCNN(Detector):
    """Pyramid -> proposals -> boxes, classes and masks. Returns losses by name in training mode, else detections."""

    def __init__(
        self,
        pyramid: Model,
        *,
        channels: int,
        strides: Sequence[float],
        classes: int,
        heads: HeadsConfig,
        norm: Callable[[int], nn.Module] | None,
    ) -> None:
        """Create the heads of a pyramid.

        Args:
            pyramid: images (B, 3, H, W) -> name -> (B, C, H / stride, W / stride), finest first.
            channels: C.
            strides: of its levels, pixels, each twice the previous one (3.5, 7 ... for a patch of 14). Regions are
                pooled from all levels except the last.
            classes: K.
            heads: options of the heads.
            norm: channels -> the norm layer of `heads.norm`.
        """
        super().__init__()
        if len(strides) != len(heads.anchors):
            raise ValueError(
                f"{len(heads.anchors)} sizes of anchors {heads.anchors} for {len(strides)} levels: "
                "set one size per level (is p6=True missing?)"
            )
        self.pyramid = pyramid
        self.rpn = _Proposals(
            _Anchors(tuple((side,) for side in heads.anchors), (RATIOS,) * len(strides), strides=strides),
            RPNHead(channels, len(RATIOS), conv_depth=heads.rpn_convs),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=heads.rpn_batch, positive_fraction=0.5,
            pre_nms_top_n=dict(zip(("training", "testing"), heads.pre_nms_topk, strict=True)),
            post_nms_top_n=dict(zip(("training", "testing"), heads.post_nms_topk, strict=True)), nms_thresh=0.7,
        )  # fmt: skip
        self.rpn.min_size = torch.finfo(torch.float32).tiny  # drops only empty proposals
        self.roi_heads = _Regions(channels, strides[:-1], classes, heads, norm)
        in_full(self.rpn.head, "cls_logits", "bbox_pred")
        in_full(self.roi_heads, *self.roi_heads.last_layers())

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], objects: Sequence[Objects] | None = None
    ) -> Any:
        """Return losses by name (in training mode, which needs `objects`), or a Found per image.

        Args:
            images: (B, 3, H, W) normalised, padded with zeros.
            sizes: height and width of each image without its padding.
            objects: the objects of each image; masks as runs (core.runs) of its size without padding.
        """
        # bfloat16 is too coarse for boxes: steps of 2 pixels at 256.
        features = {name: level.float() for name, level in self.pyramid(images).items()}
        targets = None if objects is None else [_target(one) for one in objects]
        proposals, losses = self.rpn(ImageList(images, list(sizes)), features, targets)
        found, more = self.roi_heads(features, proposals, list(sizes), targets)
        return losses | more if self.training else found


def _target(objects: Objects) -> dict[str, Tensor]:
    target = {"boxes": objects.boxes, "labels": objects.labels + 1}
    return target if objects.masks is None else target | {"masks": objects.masks}


class _Anchors(AnchorGenerator):
    """Anchors of exact size at the exact strides of the levels; torchvision rounds sizes and infers strides."""

    def __init__(self, sizes: Any, ratios: Any, *, strides: Sequence[float]) -> None:
        super().__init__(sizes, ratios)
        self.strides = tuple(strides)

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: Any = torch.float32, device: Any = None
    ) -> Tensor:
        sides, ratios = (torch.as_tensor(values, dtype=dtype, device=device) for values in (scales, aspect_ratios))
        heights, widths = ((ratios.sqrt() ** power)[:, None] * sides for power in (1, -1))
        return torch.stack([-widths, -heights, widths, heights], dim=-1).flatten(0, 1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors] * len(image_list.image_sizes)


class _Proposals(RegionProposalNetwork):
    """Proposals with detectron2's losses: L1 for boxes, both divided by the sample size, not by the sampled anchors."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (indices(torch.cat(masks)) for masks in self.fg_bg_sampler(labels))
        sampled, truth, targets = torch.cat([positive, negative]), torch.cat(labels), torch.cat(regression_targets)
        count = self.fg_bg_sampler.batch_size_per_image * len(labels)
        objects = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], truth[sampled], reduction="sum")
        boxes = F.l1_loss(pred_bbox_deltas[positive], targets[positive], reduction="sum")
        return objects / count, boxes / count


class _RoIPooler(nn.Module):
    """RoIAlign with the half-pixel shift (`aligned`) and an adaptive number of samples, from a level by region size."""

    def __init__(self, strides: Sequence[float], side: int) -> None:
        super().__init__()
        self.strides, self.side = tuple(strides), side
        self.level = LevelMapper(FINEST, FINEST + len(strides) - 1, canonical_scale=CANONICAL * strides[0])

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return the regions (R, C, side, side) of boxes (r, 4) per image."""
        levels = self.level(boxes)
        images = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
        regions = torch.cat([images, torch.cat(boxes)], dim=1)
        groups = [indices(levels == level) for level in range(len(self.strides))]
        pooled = [
            roi_align(feature, regions[group], self.side, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
            for feature, stride, group in zip(features, self.strides, groups, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(groups).argsort()]


class _Regions(RoIHeads):
    """The box and the mask head with detectron2's initialisation, losses and targets."""

    def __init__(
        self,
        width: int,
        strides: Sequence[float],
        classes: int,
        heads: HeadsConfig,
        norm: Callable[[int], nn.Module] | None,
    ) -> None:
        shape, convs = (width, BOX_SIDE, BOX_SIDE), [width] * heads.box_convs
        super().__init__(
            None,
            FastRCNNConvFCHead(shape, convs, [heads.box_width], norm_layer=norm),
            FastRCNNPredictor(heads.box_width, classes + 1),
            fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=heads.roi_batch, positive_fraction=0.25,
            bbox_reg_weights=BOX_WEIGHTS, score_thresh=heads.score_threshold, nms_thresh=0.5,
            detections_per_img=heads.detections,
        )  # fmt: skip
        self.box_pooler = _RoIPooler(strides, BOX_SIDE)
        if heads.masks:
            self.mask_pooler = _RoIPooler(strides, MASK_SIDE)
            self.mask_head = MaskRCNNHeads(width, [width] * heads.mask_convs, 1, norm_layer=norm)
            self.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
        _initialise(self)

    def has_mask(self) -> bool:
        return self.mask_head is not None

    def last_layers(self) -> list[str]:
        """Return the names of the layers that output scores, box offsets and mask logits."""
        masks = ["mask_predictor.mask_fcn_logits"] if self.has_mask() else []
        return ["box_predictor.cls_score", "box_predictor.bbox_pred", *masks]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Any = None,
    ) -> Any:
        levels = list(features.values())[: len(self.box_pooler.strides)]
        if self.training:
            return [], self._losses(levels, proposals, targets, image_shapes)
        logits, deltas = self._boxes(levels, proposals)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks: Any = [None] * len(boxes)
        if self.has_mask():
            masks = self._masks(levels, boxes, torch.cat(labels)).sigmoid().split([len(box) for box in boxes])
        each = zip(boxes, scores, labels, masks, strict=True)
        return [Found(box, score, label - 1, mask) for box, score, label, mask in each], {}

    def _boxes(self, levels: list[Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K + 1) and box offsets (R, (K + 1) * 4)."""
        found: tuple[Tensor, Tensor] = self.box_predictor(self.box_head(self.box_pooler(levels, proposals)))
        return found

    def _masks(self, levels: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Return the mask logits of each region's class, (R, 28, 28)."""
        logits = self.mask_predictor(self.mask_head(self.mask_pooler(levels, boxes)))
        own: Tensor = logits[torch.arange(len(labels), device=labels.device), labels]
        return own

    def _losses(
        self, levels: list[Tensor], proposals: list[Tensor], targets: Targets, sizes: list[Size]
    ) -> dict[str, Tensor]:
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        logits, deltas = self._boxes(levels, proposals)
        losses = box_losses(logits, deltas, torch.cat(labels), torch.cat(list(box_targets)))
        if self.has_mask():
            positive = [indices(label > 0) for label in labels]
            boxes = [box[k] for box, k in zip(proposals, positive, strict=True)]
            classes = torch.cat([label[k] for label, k in zip(labels, positive, strict=True)])
            scores = self._masks(levels, boxes, classes)
            side = scores.shape[-1]
            truth = [
                mask_targets(target["masks"], size, box, owner[k], side)
                for target, size, box, owner, k in zip(targets, sizes, boxes, matched, positive, strict=True)
            ]
            each = F.binary_cross_entropy_with_logits(scores, torch.cat(truth), reduction="sum")
            losses["loss_mask"] = each / max(scores.numel(), 1)
        return losses


def indices(chosen: Tensor) -> Tensor:
    """Return the indices of the true elements of a vector.

    The shape of the result depends on values, so this call waits for the device. No other code of a step does.
    """
    return torch.where(chosen)[0]


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return the cross-entropy over all regions and the L1 distance of boxes on objects, both divided by the regions.

    Both are 0 without regions.

    Args:
        logits: (R, K + 1).
        deltas: (R, (K + 1) * 4), offsets for every class.
        labels: (R,), 0 = background.
        targets: (R, 4), the true offsets.
    """
    count = max(len(labels), 1)
    positive = indices(labels > 0)
    boxes = deltas.view(*logits.shape, 4)[positive, labels[positive]]
    return {
        "loss_class": F.cross_entropy(logits, labels, reduction="sum") / count,
        "loss_box": F.l1_loss(boxes, targets[positive], reduction="sum") / count,
    }


def mask_targets(runs: Tensor, size: Size, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
    """Return the masks of objects `matched` (r,) within boxes (r, 4) as (r, side, side); 1: at least half is object.

    runs: (n, R) of an image of this size. At most DRAWN masks are drawn at once, for any number of objects and regions.
    """
    if len(runs) > DRAWN:
        each = torch.arange(DRAWN, device=runs.device)
        parts = zip(matched.split(DRAWN), boxes.split(DRAWN), strict=True)
        return torch.cat([mask_targets(runs[some], size, box, each[: len(some)], side) for some, box in parts])
    masks = rasterize(runs, size)[:, None].to(boxes.dtype, memory_format=torch.contiguous_format)
    regions = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    cut: Tensor = roi_align(masks, regions, side, sampling_ratio=0, aligned=True)[:, 0]
    return (cut >= 0.5).to(boxes)


def _initialise(regions: _Regions) -> None:
    """Initialise as detectron2 the layers for which torchvision's initialisation differs."""
    for layer in regions.box_head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
    last = [(regions.box_predictor.cls_score, 0.01), (regions.box_predictor.bbox_pred, 0.001)]
    if regions.has_mask():
        last.append((regions.mask_predictor.mask_fcn_logits, 0.001))
        nn.init.zeros_(regions.mask_predictor.conv5_mask.bias)
    for layer, std in last:
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
