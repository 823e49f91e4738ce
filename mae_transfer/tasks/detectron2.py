"""Mask R-CNN with detectron2's heads, losses and samplers, with the interface of models.mask_rcnn.MaskRCNN.

detectron2 is imported here, on first use. Its data sampler and trainer are not used: order, augmentation and resume are
those of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mae_transfer.adapters.adapted import AdaptedBackbone
from mae_transfer.adapters.detectron2 import ABSENT
from mae_transfer.core.runs import Size
from mae_transfer.interfaces import Found, Objects
from mae_transfer.models.mask_rcnn import (
    BOX_SIDE,
    BOX_WEIGHTS,
    CANONICAL,
    FINEST,
    MASK_SIDE,
    RATIOS,
    Detector,
    HeadsConfig,
    mask_targets,
)

LOSSES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
    "loss_cls": "loss_class",
    "loss_box_reg": "loss_box",
}
NORMS = {None: "", "layer": "LN", "batch": "BN"}  # our names -> detectron2's


class Detectron2RCNN(Detector):
    """Pyramid -> detectron2's proposal network and RoI heads.

    It returns losses by name in training mode, and predictions in evaluation mode.
    """

    def __init__(self, pyramid: AdaptedBackbone, *, strides: Sequence[float], classes: int, heads: HeadsConfig) -> None:
        """Build the heads on a pyramid.

        Raises:
            ValueError: detectron2 is not installed (the message says how to install it), or it lacks these heads.
        """
        super().__init__()
        if heads.norm not in NORMS:
            raise ValueError(f"heads.norm = {heads.norm!r}: with engine='detectron2' it is one of {list(NORMS)}")
        self.d2 = _import_parts()
        self.pyramid = pyramid
        levels = list(pyramid.adapter.strides)
        channels = pyramid.adapter.channels
        shape = self.d2.ShapeSpec(channels=channels, height=BOX_SIDE, width=BOX_SIDE)
        self.rpn = _proposal_network(self.d2, channels, levels, strides, heads)
        self.roi_heads = _roi_heads(self.d2, shape, levels[:-1], strides[:-1], classes, heads)

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], objects: Sequence[Objects] | None = None
    ) -> Any:
        """Compute what MaskRCNN.forward does, with the same arguments."""
        features = {name: level.float() for name, level in self.pyramid(images).items()}
        listed = self.d2.ImageList(images, list(sizes))
        truth = None if objects is None else [self._truth(one, size) for one, size in zip(objects, sizes, strict=True)]
        with self.d2.EventStorage():  # detectron2's losses write statistics to it
            proposals, losses = self.rpn(listed, features, truth)
            predictions, roi_losses = self.roi_heads(listed, features, proposals, truth)
        if self.training:
            return {LOSSES.get(name, name): loss for name, loss in (losses | roi_losses).items()}
        return [_as_found(instances) for instances in predictions]

    def _truth(self, objects: Objects, size: tuple[int, int]) -> Any:
        instances = self.d2.Instances(size, gt_boxes=self.d2.Boxes(objects.boxes), gt_classes=objects.labels)
        if objects.masks is not None:
            instances.gt_masks = _Masks(objects.masks, size)
        return instances


class _Masks:
    """Runs of pixels instead of detectron2's BitMasks, which hold a full mask per sampled region: 0.5 GB per image."""

    def __init__(self, runs: Tensor, size: Size) -> None:
        self.runs, self.size = runs, size

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, chosen: Tensor) -> _Masks:
        return _Masks(self.runs[chosen], self.size)

    def crop_and_resize(self, boxes: Tensor, side: int) -> Tensor:
        """Return the part of each mask inside its box, (n, side, side) bool."""
        return mask_targets(self.runs, self.size, boxes, torch.arange(len(boxes), device=boxes.device), side).bool()


def _as_found(instances: Any) -> Found:
    masks = instances.pred_masks[:, 0] if instances.has("pred_masks") else None
    return Found(instances.pred_boxes.tensor, instances.scores, instances.pred_classes, masks)


def _proposal_network(
    d2: SimpleNamespace, width: int, levels: list[str], strides: Sequence[float], heads: HeadsConfig
) -> Any:
    anchors = d2.DefaultAnchorGenerator(
        sizes=[[side] for side in heads.anchors], aspect_ratios=list(RATIOS), strides=list(strides), offset=0.0
    )
    return d2.RPN(
        in_features=levels,
        head=d2.StandardRPNHead(in_channels=width, num_anchors=len(RATIOS), conv_dims=[-1] * heads.rpn_convs),
        anchor_generator=anchors,
        anchor_matcher=d2.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=d2.Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=heads.rpn_batch,
        positive_fraction=0.5,
        pre_nms_topk=heads.pre_nms_topk,
        post_nms_topk=heads.post_nms_topk,
        nms_thresh=0.7,
    )


def _roi_heads(
    d2: SimpleNamespace, shape: Any, levels: list[str], strides: Sequence[float], classes: int, heads: HeadsConfig
) -> Any:
    width, norm = shape.channels, NORMS[heads.norm]

    def pooler(side: int) -> Any:
        # ROIPooler accepts only powers of two, which choose the level; the true scales are set below
        powers = [0.5 ** (FINEST + k) for k in range(len(strides))]
        size = CANONICAL * strides[0]
        made = d2.ROIPooler(
            output_size=side, scales=powers, sampling_ratio=0, pooler_type="ROIAlignV2", canonical_box_size=size
        )
        for level, stride in zip(made.level_poolers, strides, strict=True):
            level.spatial_scale = 1 / stride
        return made

    masks: dict[str, Any] = {}
    if heads.masks:
        cut = d2.ShapeSpec(channels=width, height=MASK_SIDE, width=MASK_SIDE)
        head = d2.MaskRCNNConvUpsampleHead(
            cut, num_classes=classes, conv_dims=[width] * (heads.mask_convs + 1), conv_norm=norm
        )
        masks = {"mask_in_features": levels, "mask_pooler": pooler(MASK_SIDE), "mask_head": head}
    return d2.StandardROIHeads(
        num_classes=classes,
        batch_size_per_image=heads.roi_batch,
        positive_fraction=0.25,
        proposal_matcher=d2.Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=levels,
        box_pooler=pooler(BOX_SIDE),
        box_head=d2.FastRCNNConvFCHead(
            shape, conv_dims=[width] * heads.box_convs, fc_dims=[heads.box_width], conv_norm=norm
        ),
        box_predictor=d2.FastRCNNOutputLayers(
            d2.ShapeSpec(channels=heads.box_width),
            box2box_transform=d2.Box2BoxTransform(weights=BOX_WEIGHTS),
            num_classes=classes,
            test_score_thresh=heads.score_threshold,
            test_nms_thresh=0.5,
            test_topk_per_image=heads.detections,
        ),
        **masks,
    )


def _import_parts() -> SimpleNamespace:
    """Return the parts of detectron2 that are used here, by name; ValueError if it is not installed."""
    try:
        from detectron2 import layers, structures
        from detectron2.modeling import (
            anchor_generator,
            box_regression,
            matcher,
            poolers,
            proposal_generator,
            roi_heads,
        )
        from detectron2.modeling.proposal_generator import rpn
        from detectron2.utils import events
    except ImportError as error:
        raise ValueError(ABSENT) from error
    modules = (
        layers,
        structures,
        anchor_generator,
        box_regression,
        matcher,
        poolers,
        proposal_generator,
        rpn,
        roi_heads,
        events,
    )
    names = (
        "ShapeSpec", "ImageList", "Instances", "Boxes", "DefaultAnchorGenerator", "Box2BoxTransform", "Matcher",
        "ROIPooler", "RPN", "StandardRPNHead", "StandardROIHeads", "FastRCNNConvFCHead", "FastRCNNOutputLayers",
        "MaskRCNNConvUpsampleHead", "EventStorage",
    )  # fmt: skip
    return SimpleNamespace(
        **{name: next(getattr(module, name) for module in modules if hasattr(module, name)) for name in names}
    )
