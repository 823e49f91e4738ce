"""Mask R-CNN's own pieces against written-out formulas, empty batches and images, and its parameters' layers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mae_transfer.adapters import AdaptedBackbone, SimpleFPNConfig, TapFPNConfig
from mae_transfer.adapters.levels import NORMS
from mae_transfer.core.runs import from_masks, paste_masks, rasterize
from mae_transfer.engine.optim import Layers, param_groups
from mae_transfer.interfaces import Objects
from mae_transfer.models.mask_rcnn import HeadsConfig, MaskRCNN, box_losses, mask_targets
from mae_transfer.models.vit import ViT, ViTConfig

SMALL = HeadsConfig(box_convs=1, box_width=16, mask_convs=1, roi_batch=16, post_nms_topk=(50, 50), norm=None)


def detector(heads: HeadsConfig = SMALL, *, fpn_norm: str | None = None, classes: int = 5) -> MaskRCNN:
    torch.manual_seed(0)
    cfg = ViTConfig(
        size=None,
        dim=32,
        depth=4,
        heads=2,
        patch=16,
        image_size=64,
        class_token=False,
        final_norm=False,
        positions="learned",
    )
    vit = ViT(cfg)
    adapter = (
        TapFPNConfig(fpn=16, fpn_norm=fpn_norm, p6=True).build(vit.maps())
        if fpn_norm
        else SimpleFPNConfig(channels=16).build(vit.maps())
    )
    norm = NORMS[heads.norm] if heads.norm else None
    pyramid, strides = AdaptedBackbone(vit, adapter), list(adapter.strides.values())
    return MaskRCNN(pyramid, channels=16, strides=strides, classes=classes, heads=heads, norm=norm)


def objects(n: int = 2) -> Objects:
    boxes = torch.tensor([[4.0, 4, 40, 30], [20, 10, 60, 60]])[:n]
    masks = torch.zeros(n, 64, 64, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return Objects(boxes, torch.arange(n), torch.zeros(n, dtype=torch.bool), from_masks(masks))


def losses(model: MaskRCNN, *each: Objects) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model.train()(torch.randn(len(each), 3, 64, 64), [(64, 64)] * len(each), each)
    return found


def test_anchors_have_the_size_asked_for_at_the_strides_of_the_levels() -> None:
    model = detector()
    sides = model.rpn.anchor_generator.cell_anchors
    for side, cell in zip((32, 64, 128, 256, 512), sides, strict=True):
        width, height = (cell[:, 2:] - cell[:, :2]).T
        torch.testing.assert_close(width * height, torch.full((3,), float(side**2)))
        torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0]))
        torch.testing.assert_close(cell[:, :2], -cell[:, 2:])  # around 0, not rounded
    from torchvision.models.detection.image_list import ImageList

    levels = [torch.zeros(1, 16, n, n) for n in (40, 20, 10, 5, 3)]  # 160 pixels: p6 is 3 wide and not 160 / 64
    anchors = model.rpn.anchor_generator(ImageList(torch.zeros(1, 3, 160, 160), [(160, 160)]), levels)[0]
    centres = (anchors[-27:, :2] + anchors[-27:, 2:]) / 2
    assert centres.unique().tolist() == [0.0, 64.0, 128.0]


def test_losses_of_the_heads_are_their_formulas() -> None:
    logits, deltas = torch.randn(4, 3), torch.randn(4, 12)
    labels, goals = torch.tensor([0, 2, 1, 0]), torch.randn(4, 4)
    found = box_losses(logits, deltas, labels, goals)
    by_hand = -logits.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(found["loss_class"], by_hand)
    on_objects = (deltas[1, 8:12] - goals[1]).abs().sum() + (deltas[2, 4:8] - goals[2]).abs().sum()
    torch.testing.assert_close(found["loss_box"], on_objects / 4)
    empty = box_losses(logits[:0], deltas[:0], labels[:0], goals[:0])
    assert {name: value.item() for name, value in empty.items()} == {"loss_class": 0.0, "loss_box": 0.0}


def test_the_proposal_network_s_loss_is_divided_by_what_may_be_sampled() -> None:
    rpn = detector().rpn
    truth = [torch.tensor([1.0, 0, 0, -1]), torch.tensor([0.0, 0, 1, -1])]
    scores, deltas, goals = torch.randn(8, 1), torch.randn(8, 4), [torch.randn(4, 4), torch.randn(4, 4)]
    objectness, boxes = rpn.compute_loss(scores, deltas, truth, goals)
    used = torch.tensor([0, 1, 2, 4, 5, 6])
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        scores.flatten()[used], torch.cat(truth)[used], reduction="sum"
    )
    torch.testing.assert_close(objectness, each / (256 * 2))
    torch.testing.assert_close(boxes, (deltas[[0, 6]] - torch.cat(goals)[[0, 6]]).abs().sum() / (256 * 2))


def test_mask_targets_are_the_object_within_its_box() -> None:
    masks, size = torch.zeros(2, 20, 20, dtype=torch.uint8), (20, 20)
    masks[1, 4:12, 4:8] = 1
    runs = from_masks(masks)
    whole = mask_targets(runs, size, torch.tensor([[4.0, 4, 8, 12]]), torch.tensor([1]), 8)
    assert whole.eq(1).all()
    half = mask_targets(runs, size, torch.tensor([[0.0, 4, 8, 12]]), torch.tensor([1]), 8)[0]
    assert half[:, 4:].eq(1).all()
    assert half[:, :4].eq(0).all()
    assert mask_targets(runs, size, torch.tensor([[4.0, 4, 8, 12]]), torch.tensor([0]), 8).eq(0).all()


def test_mask_targets_do_not_depend_on_how_many_masks_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    runs, matched = from_masks(torch.rand(9, 30, 40) > 0.4), torch.randint(9, (33,))
    corner = torch.rand(33, 2) * 25
    boxes = torch.cat([corner, corner + torch.rand(33, 2) * 20 + 1], dim=1)
    at_once = mask_targets(runs, (30, 40), boxes, matched, 14)
    monkeypatch.setattr("mae_transfer.models.mask_rcnn.DRAWN", 4)
    assert torch.equal(mask_targets(runs, (30, 40), boxes, matched, 14), at_once)
    assert mask_targets(runs, (30, 40), boxes[:0], matched[:0], 14).shape == (0, 14, 14)


def test_pasted_masks_fill_their_boxes_and_nothing_else() -> None:
    boxes = torch.tensor([[2.0, 3, 10, 9], [-4, -4, 6, 6], [50, 50, 60, 60], [3, 3, 3, 3]])
    masks = rasterize(paste_masks(torch.ones(4, 28, 28), boxes, (20, 30)), (20, 30))
    assert masks.shape == (4, 20, 30)
    assert masks[0].nonzero().amin(0).tolist() == [3, 2]
    assert masks[0].nonzero().amax(0).tolist() == [8, 9]
    assert masks[0].sum() == 48
    assert masks[1].sum() == 36
    assert masks[2:].sum() == 0
    assert rasterize(paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (20, 30)), (20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_every_parameter_has_a_finite_gradient_even_without_objects(norm: str | None) -> None:
    model = detector(SMALL.model_copy(update={"norm": norm}), fpn_norm="batch" if norm == "batch" else None)
    for given in ((objects(), objects(1)), (objects(0), objects(0))):
        model.zero_grad()
        torch.stack(list(losses(model, *given).values())).sum().backward()
        wrong = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not wrong
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())


def test_boxes_stay_float32_under_autocast() -> None:
    model = detector(SMALL.model_copy(update={"score_threshold": 0.0})).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(torch.randn(1, 3, 64, 64), [(64, 64)])[0]
    assert (found.boxes.dtype, found.scores.dtype, found.masks.dtype) == (torch.float32,) * 3
    assert found.masks.shape == (len(found.boxes), 28, 28)
    assert found.labels.min() >= 0
    assert found.labels.max() < 5
    assert (found.boxes.half().float() != found.boxes).any()  # finer than 16 bits
    assert (found.scores.bfloat16().float() != found.scores).any()


def test_scores_and_offsets_are_computed_in_float32_under_autocast() -> None:
    model, seen = detector(), dict[str, Tensor]()
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits"):
            layer.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out}))
    with torch.autocast("cpu", torch.bfloat16):
        losses(model, objects(), objects(1))
    assert len(seen) == 5
    for name, out in seen.items():
        assert out.dtype == torch.float32
        assert (out.bfloat16().float() != out).any(), name  # finer than bfloat16


def test_without_masks_it_is_a_detector_of_boxes() -> None:
    model = detector(SMALL.model_copy(update={"masks": False, "score_threshold": 0.0}))
    assert "loss_mask" not in losses(model, replace(objects(), masks=None))
    assert model.eval()(torch.randn(1, 3, 64, 64), [(64, 64)])[0].masks is None


def test_layer_decay_reaches_every_block_and_leaves_the_heads_alone() -> None:
    model = detector()
    groups = param_groups(model, weight_decay=0.1, layers=Layers(model.layer_of, model.encoder.depth, 0.7))
    scales = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    for name, scale in (
        ("pyramid.backbone.pos_embed", 0.7**5), ("pyramid.backbone.patch_embed.proj.weight", 0.7**5),
        ("pyramid.backbone.blocks.0.attn.qkv.weight", 0.7**4), ("pyramid.backbone.blocks.3.mlp.fc1.weight", 0.7),
        ("pyramid.adapter.levels.0.0.weight", 1.0), ("rpn.head.cls_logits.weight", 1.0),
        ("roi_heads.mask_predictor.mask_fcn_logits.weight", 1.0),
    ):  # fmt: skip
        assert scales[id(named[name])][0] == pytest.approx(scale), name
    assert scales[id(named["pyramid.backbone.pos_embed"])][1] == 0
    assert scales[id(named["pyramid.backbone.blocks.0.norm1.weight"])][1] == 0


def test_levels_and_anchors_must_agree() -> None:
    with pytest.raises(ValueError, match=r"4 sizes of anchors .* for 5 levels"):
        detector(SMALL.model_copy(update={"anchors": (8, 16, 32, 64)}))


def test_the_predictors_begin_near_zero() -> None:
    heads = detector(SMALL.model_copy(update={"box_width": 512}), classes=80).roi_heads
    assert heads.box_predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert heads.box_predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not heads.box_predictor.cls_score.bias.any()
    bound = math.sqrt(3 / heads.box_head[-2].in_features)  # a uniform draw of gain 1
    assert heads.box_head[-2].weight.abs().max().item() == pytest.approx(bound, rel=0.01)
