"""The segmenter against one built from mmseg's classes: logits, losses, sliding windows, data pipeline and mIoU."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor

from mae_transfer.adapters.mmseg import Segmenter, accuracy, quiet
from mae_transfer.adapters.mmseg_transforms import Rescale, TrainingCrop
from mae_transfer.metrics.iou import IouMetric
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.seeding import seeded
from mae_transfer.tasks.segment_inference import Windows, logits, probabilities
from mae_transfer.tasks.segment_protocols import UperNet

CLASSES, SIZE, DIM, DEPTH, HEADS = 7, 64, 64, 4, 2
ARCHITECTURE: dict[str, Any] = {
    "size": None, "dim": DIM, "depth": DEPTH, "heads": HEADS, "patch": 8, "image_size": SIZE, "final_norm": False,
    "layer_scale": 0.5,
}  # fmt: skip
OURS_TO_MMSEG = (
    (r"^net\.backbone\.pyramid\.backbone\.", "backbone."),
    (r"^net\.backbone\.pyramid\.adapter\.scale\.0\.", "neck.upsample_4x."),
    (r"^net\.backbone\.pyramid\.adapter\.scale\.1\.", "neck.upsample_2x."),
    (r"^net\.", ""),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"backbone\.rel_pos_bias\.(\d+)\.table", r"backbone.layers.\1.attn.relative_position_bias_table"),
    (r"backbone\.blocks\.", "backbone.layers."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"\.ls([12])\.gamma", r".gamma_\1"),
)


def ours(kind: str, *, tables: bool) -> Segmenter:
    """Return a segmenter with random weights everywhere, batch statistics and bias tables included."""
    torch.manual_seed(0)
    options = {"positions": "learned"} if kind == "MAE" else {"positions": "none", "qkv_bias": "qv"}
    vit = ViT(ViTConfig.model_validate({**ARCHITECTURE, **options, "relative_positions": "per_block"}))
    model = UperNet(taps=(0, 1, 2, 3), channels=16).model(vit, CLASSES)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor) * 0.1)
        if "rel_pos_bias" in name and not tables:
            tensor.zero_()
    return model.eval()


def theirs(kind: str, model: Segmenter, *, mode: str = "whole", stride: int = 40) -> Any:
    """Return what mmseg builds from its own backbone, neck and heads, with the weights of ours."""
    heads = [{**config, "norm_cfg": {"type": "BN"}} for config in (decode_config(), auxiliary_config())]
    backbone = {
        "type": kind, "img_size": SIZE, "patch_size": 8, "embed_dims": DIM, "num_layers": DEPTH, "num_heads": HEADS,
        "mlp_ratio": 4,
        "out_indices": (0, 1, 2, 3), "norm_cfg": {"type": "LN", "eps": 1e-6}, "init_values": 0.5,
        **({} if kind == "MAE" else {"qv_bias": True}),
    }  # fmt: skip
    test_cfg = ConfigDict(mode=mode, crop_size=(SIZE, SIZE), stride=(stride, stride))
    with quiet():
        from mmseg.registry import MODELS

        neck = {"type": "Feature2Pyramid", "embed_dim": DIM, "rescales": [4, 2, 1, 0.5], "norm_cfg": {"type": "BN"}}
        net = MODELS.build(
            {
                "type": "EncoderDecoder",
                "backbone": backbone,
                "neck": neck,
                "decode_head": heads[0],
                "auxiliary_head": heads[1],
                "test_cfg": test_cfg,
            }
        )
    missing = net.load_state_dict(renamed(model), strict=False)
    assert not missing.unexpected_keys
    assert {key.rpartition(".")[2] for key in missing.missing_keys} <= {"relative_position_index"}
    return net.eval()


def decode_config() -> dict[str, Any]:
    return {
        "type": "UPerHead", "in_channels": [DIM] * 4, "in_index": [0, 1, 2, 3], "pool_scales": (1, 2, 3, 6),
        "channels": 16, "dropout_ratio": 0.1,
        "num_classes": CLASSES, "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }  # fmt: skip


def auxiliary_config() -> dict[str, Any]:
    return {
        "type": "FCNHead", "in_channels": DIM, "in_index": 2, "channels": 256, "num_convs": 1, "concat_input": False,
        "dropout_ratio": 0.1,
        "num_classes": CLASSES, "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
    }  # fmt: skip


def renamed(model: Segmenter) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in OURS_TO_MMSEG:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors


@pytest.mark.parametrize("kind", ["MAE", "BEiT"])
@pytest.mark.parametrize("tables", [False, True])
def test_logits_equal_those_of_mmsegs_own_backbone_and_heads(kind: str, tables: bool) -> None:
    model = ours(kind, tables=tables)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = model(images)[0], theirs(kind, model)(images)
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_losses_and_accuracy_equal_mmsegs() -> None:
    model = ours("MAE", tables=True)
    net = theirs("MAE", model)
    images, labels = torch.randn(2, 3, SIZE, SIZE), torch.randint(0, CLASSES, (2, SIZE, SIZE), dtype=torch.uint8)
    labels[:, :20] = 255
    with quiet():
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
    samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None].long())) for one in labels]
    for net_or_ours in (net, model):  # batch statistics without dropout
        net_or_ours.train()
        for part in net_or_ours.modules():
            if "Drop" in type(part).__name__:
                part.eval()
    expected = net.loss(images, samples)
    out = model(images)
    found = model.losses(out, labels)
    torch.testing.assert_close(found["decode"], expected["decode.loss_ce"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["aux"], expected["aux.loss_ce"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(100 * accuracy(out[0], labels), expected["decode.acc_seg"][0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("height", [64, 100])
@pytest.mark.parametrize("batch", [1, 5])
def test_sliding_windows_equal_mmsegs_whatever_their_batch(height: int, batch: int) -> None:
    model = ours("MAE", tables=True)
    net = theirs("MAE", model, mode="slide")
    image = torch.randn(1, 3, height, 150, generator=torch.Generator().manual_seed(2))
    metas = [{"ori_shape": image.shape[2:], "img_shape": image.shape[2:]}]
    with torch.no_grad():
        expected = net.slide_inference(image, metas)
        found = logits(model, image, Windows(SIZE, 40, model.pyramid.size_divisor, batch))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_mean_over_scales_and_mirror_images_equals_mmsegs() -> None:
    model = ours("MAE", tables=True)
    net = theirs("MAE", model, mode="slide")
    views = [torch.randn(1, 3, side, side + 24) for side in (64, 80)]
    size = (50, 70)
    with quiet():
        from mmseg.models.segmentors import SegTTAModel
        from mmseg.structures import SegDataSample
    with torch.no_grad():
        predictions = []
        for view in views:
            for flip in (False, True):
                about = {
                    "ori_shape": size,
                    "img_shape": view.shape[2:],
                    "flip": flip,
                    "flip_direction": "horizontal",
                    "img_path": "",
                }
                predictions += net.predict(view.flip(3) if flip else view, [SegDataSample(metainfo=about)])
        tta = SegTTAModel.__new__(SegTTAModel)
        torch.nn.Module.__init__(tta)
        tta.module = net
        with quiet():
            (expected,) = tta.merge_preds([predictions])
        found = probabilities(model, views, size, Windows(SIZE, 40, model.pyramid.size_divisor, 4), flip=True)
    classes = expected.pred_sem_seg.data
    assert len(classes.unique()) > 1
    assert torch.equal(found.argmax(dim=1), classes)


def test_training_crops_equal_mmsegs_pipeline() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 90, 130), dtype=np.uint8))
    labels = torch.from_numpy(np.kron(rng.integers(0, 4, (9, 13)), np.ones((10, 10))).astype(np.uint8))
    with quiet():
        from mmcv.transforms import Compose, RandomResize
        from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop, RandomFlip

        pipeline = Compose(
            [RandomResize((256, 64), ratio_range=(0.5, 2.0), keep_ratio=True), RandomCrop((48, 48), cat_max_ratio=0.75),
                RandomFlip(prob=0.5),
             PhotoMetricDistortion()]
        )  # fmt: skip
    ours_crop = TrainingCrop(scale=(256, 64), ratios=(0.5, 2.0), size=48, largest_share=0.75)
    for seed in range(12):
        with seeded(seed):
            found = ours_crop(image, labels)
        with seeded(seed):
            bgr = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())
            results = pipeline(
                {"img": bgr, "gt_seg_map": labels.numpy(), "seg_fields": ["gt_seg_map"], "img_shape": bgr.shape[:2]}
            )
        assert np.array_equal(found[0].flip(0).permute(1, 2, 0).numpy(), results["img"])
        assert np.array_equal(found[1].numpy(), results["gt_seg_map"])


def test_the_view_of_an_evaluation_is_mmsegs_resize() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 90, 130), dtype=np.uint8))
    with quiet():
        from mmseg.datasets.transforms import Resize
    expected = Resize(scale=(256, 64), keep_ratio=True)({"img": image.permute(1, 2, 0).numpy()})["img"]
    (found,) = Rescale(scale=(256, 64))(image)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_the_figures_equal_mmsegs_metric_with_ignored_pixels() -> None:
    rng = np.random.default_rng(0)
    with quiet():
        from mmseg.evaluation import IoUMetric
    metric, areas = IouMetric("abcdef"), []
    for _ in range(4):
        truth = torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], (30, 40), p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]))
        predicted = torch.from_numpy(np.where(rng.random((30, 40)) < 0.6, truth % 255, rng.integers(0, 5, (30, 40))))
        metric.update(predicted, truth)
        areas.append(IoUMetric.intersect_and_union(predicted, truth, 6, 255))
    totals = [sum(parts) for parts in zip(*areas, strict=True)]
    expected = IoUMetric.total_area_to_metrics(*totals, metrics=["mIoU"])
    found = metric.compute(per_class=True)
    assert found["aAcc"] == pytest.approx(float(expected["aAcc"]), rel=1e-6)
    assert [found[f"IoU[{name}]"] for name in "abcdef"] == pytest.approx(
        expected["IoU"].tolist(), rel=1e-6, nan_ok=True
    )
    assert found["mIoU"] == pytest.approx(float(np.nanmean(expected["IoU"])), rel=1e-6)
    assert found["mAcc"] == pytest.approx(float(np.nanmean(expected["Acc"])), rel=1e-6)
