"""The torchvision engine equals detectron2's proposal network and heads with copied weights, if detectron2 is there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mae_transfer.adapters import AdaptedBackbone, SimpleFPNConfig
from mae_transfer.adapters.levels import NORMS
from mae_transfer.core.normalize import normalize
from mae_transfer.core.runs import from_masks, paste_masks, rasterize
from mae_transfer.data import Key
from mae_transfer.data.dense_shapes import ShapesObjectsConfig
from mae_transfer.data.objects import LargeScaleJitter, SceneBatch, Scenes
from mae_transfer.models.mask_rcnn import HeadsConfig, MaskRCNN, box_losses, mask_targets
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.detectron2 import Detectron2RCNN

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.usefixtures("detectron2"),
    pytest.mark.filterwarnings("ignore"),
]  # detectron2's own imports warn

CLASSES, WIDTH = 10, 32


def pyramid() -> AdaptedBackbone:
    torch.manual_seed(0)
    vit = ViT(
        ViTConfig(size=None, dim=64, depth=4, heads=2, patch=16, image_size=96, class_token=False, final_norm=False)
    )
    return AdaptedBackbone(vit, SimpleFPNConfig(channels=WIDTH).build(vit.maps()))


def pair(norm: str | None, *, threshold: float = 0.0) -> tuple[MaskRCNN, Detectron2RCNN]:
    """Return both engines with the same weights, drawn wide enough that their outputs differ from place to place."""
    heads = HeadsConfig(norm=norm, box_width=64, roi_batch=64, score_threshold=threshold, post_nms_topk=(200, 100))
    shared = pyramid()
    strides = list(shared.adapter.strides.values())
    ours = MaskRCNN(
        shared, channels=WIDTH, strides=strides, classes=CLASSES, heads=heads, norm=NORMS[norm] if norm else None
    )
    theirs = Detectron2RCNN(shared, strides=strides, classes=CLASSES, heads=heads)
    torch.manual_seed(1)
    for name, parameter in [*ours.rpn.named_parameters(), *ours.roi_heads.named_parameters()]:
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05 if "pred" in name or "logits" in name or "cls" in name else 0.1)
    missing = theirs.load_state_dict(
        {theirs_name(k): reordered(k, v) for k, v in ours.state_dict().items()}, strict=False
    )
    assert not missing.unexpected_keys
    assert all("cell_anchors" in name or "num_batches" in name for name in missing.missing_keys), missing.missing_keys
    return ours, theirs


def theirs_name(name: str) -> str:
    for pattern, new in (
        (r"^rpn\.head\.conv\.(\d)\.0", lambda m: f"rpn.rpn_head.conv.conv{m[1]}"),
        (r"^rpn\.head\.cls_logits", lambda m: "rpn.rpn_head.objectness_logits"),
        (r"^rpn\.head\.bbox_pred", lambda m: "rpn.rpn_head.anchor_deltas"),
        (r"box_head\.(\d)\.0", lambda m: f"box_head.conv{int(m[1]) + 1}"),
        (r"box_head\.(\d)\.1", lambda m: f"box_head.conv{int(m[1]) + 1}.norm"),
        (r"box_head\.5", lambda m: "box_head.fc1"),
        (r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}"),
        (r"mask_head\.(\d)\.1", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.norm"),
        (r"mask_predictor\.conv5_mask", lambda m: "mask_head.deconv"),
        (r"mask_predictor\.mask_fcn_logits", lambda m: "mask_head.predictor"),
    ):
        name = re.sub(pattern, new, name)
    return name


def reordered(name: str, value: Tensor) -> Tensor:
    """Background is class 0 in torchvision, with its own boxes and masks, and the last class in detectron2, without."""
    if "cls_score" in name:
        return torch.cat([value[1:], value[:1]])
    if "roi_heads.box_predictor.bbox_pred" in name:
        return value[4:]
    return value[1:] if "mask_fcn_logits" in name else value


def batch(size: int = 96) -> SceneBatch:
    transform = LargeScaleJitter(size=size)
    scenes = Scenes(
        source=ShapesObjectsConfig(size=96, length=8).open(),
        seed=0,
        transform=transform,
        square=size,
        divisor=32,
        training=True,
    )
    found: SceneBatch = scenes[[Key(0, i, 0) for i in range(4)]].batch
    return found


@pytest.mark.parametrize(
    ("norm", "without"), [(None, ()), ("layer", ()), ("batch", ()), ("layer", (1,)), ("batch", (0, 1, 2, 3))]
)
def test_losses_equal_detectron2_s(norm: str | None, without: tuple[int, ...]) -> None:
    """without: images whose objects are taken away."""
    ours, theirs = pair(norm)
    scenes, losses = batch(), []
    kept = [one.apply(lambda part: part[:0]) if i in without else one for i, one in enumerate(scenes.objects)]
    scenes = replace(scenes, objects=tuple(kept))
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(3)  # both draw their samples in the same order
        losses.append(model(normalize(scenes.image), scenes.sizes, scenes.objects))
    for name, value in losses[0].items():
        torch.testing.assert_close(
            value, losses[1][name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("size", [96, 160])
@torch.no_grad()
def test_what_is_found_equals_what_detectron2_finds(size: int) -> None:
    ours, theirs = (model.eval() for model in pair("layer"))
    scenes = batch(size)
    for a, b in zip(*(model(normalize(scenes.image), scenes.sizes) for model in (ours, theirs)), strict=True):
        assert len(a.boxes) == len(b.boxes) > 10
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-6)
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.masks, b.masks, rtol=1e-4, atol=1e-5)


def test_pasting_and_mask_targets_equal_detectron2_s() -> None:
    from detectron2.layers import paste_masks_in_image
    from detectron2.structures import BitMasks

    torch.manual_seed(0)
    corner, extent = torch.rand(20, 2) * 60 - 5, torch.rand(20, 2) * 50 + 1
    boxes, soft = torch.cat([corner, corner + extent], dim=1), torch.rand(20, 28, 28)
    size = (64, 80)
    assert torch.equal(rasterize(paste_masks(soft, boxes, size), size).bool(), paste_masks_in_image(soft, boxes, size))
    masks = torch.rand(20, *size) > 0.3
    theirs = BitMasks(masks).crop_and_resize(boxes, 28)
    assert torch.equal(mask_targets(from_masks(masks), size, boxes, torch.arange(20), 28).bool(), theirs)


def test_head_losses_on_the_same_proposals_equal_detectron2_s() -> None:
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.roi_heads import FastRCNNOutputLayers
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    coder = Box2BoxTransform(weights=(10, 10, 5, 5))
    layers = FastRCNNOutputLayers(ShapeSpec(channels=8), box2box_transform=coder, num_classes=CLASSES)
    proposals, truth = (
        torch.cat([a := torch.rand(30, 2) * 50, a + torch.rand(30, 2) * 40 + 4], dim=1) for _ in range(2)
    )
    labels, logits, deltas = (
        torch.randint(0, CLASSES + 1, (30,)),
        torch.randn(30, CLASSES + 1),
        torch.randn(30, CLASSES * 4),
    )
    instances = Instances((100, 100), proposal_boxes=Boxes(proposals), gt_boxes=Boxes(truth), gt_classes=labels)
    with EventStorage():
        theirs = layers.losses((logits, deltas), [instances])
    first = torch.cat([logits[:, -1:], logits[:, :-1]], dim=1)
    ours = box_losses(
        first,
        torch.cat([torch.zeros(30, 4), deltas], dim=1),
        (labels + 1) % (CLASSES + 1),
        coder.get_deltas(proposals, truth),
    )
    torch.testing.assert_close(ours["loss_class"], theirs["loss_cls"])
    torch.testing.assert_close(ours["loss_box"], theirs["loss_box_reg"])


def test_average_precision_equals_that_of_detectron2_s_evaluator(tmp_path: Path) -> None:
    pytest.importorskip(
        "detectron2.evaluation.fast_eval_api",
        reason="this detectron2 was built without its C++ evaluator",
        exc_type=ImportError,
    )
    import json

    from detectron2.evaluation.fast_eval_api import COCOeval_opt
    from pycocotools.coco import COCO

    from mae_transfer.bench.detect import evaluators_input
    from mae_transfer.metrics.coco import FIGURES, CocoMetric

    truth, found = evaluators_input(8)
    metric = CocoMetric(truth)
    metric.update(range(1, 9), found)
    ours = metric.compute(save=tmp_path / "predictions.json")
    (tmp_path / "truth.json").write_text(json.dumps({"info": {}, **truth}))
    listed = COCO(str(tmp_path / "truth.json"))
    for kind in ("bbox", "segm"):
        entries = json.loads((tmp_path / "predictions.json").read_text())
        if kind == "segm":
            entries = [
                {key: value for key, value in entry.items() if key != "bbox"} for entry in entries
            ]  # as detectron2: sizes are the masks'
        judge = COCOeval_opt(listed, listed.loadRes(entries), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        theirs = dict(zip(FIGURES, judge.stats, strict=True))
        assert {name: ours[f"{kind}/{name}"] for name in FIGURES if theirs[name] >= 0} == pytest.approx(
            {name: value for name, value in theirs.items() if value >= 0}, abs=1e-9
        )
