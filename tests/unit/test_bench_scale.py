"""The benchmark `scale`: counted operations, hours and memory of a suite. Nothing is timed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.bench import scale
from mae_transfer.bench.scale import Need
from mae_transfer.config import load
from mae_transfer.models.vit import ViTConfig
from mae_transfer.suite.published.measured import COCO
from mae_transfer.tasks.detect import DetectConfig
from mae_transfer.tasks.pretrain import PretrainConfig

ROOT = Path(__file__).parents[2]
SUITE = """
title = "two tasks"
tables = ()
roots = dict(imagenet="data/imagenet", own="data/own")
rows = {
    "MAE": dict(config="{configs}/pretrain/mae_vit_base_16_1600e.py", data="imagenet"),
    "released": dict(backbone="released:mae_vit_large"),
    "unknown": dict(backbone="own.safetensors"),
}
transfer = {
    "finetune": dict(
        tool="cls_train", config="{configs}/classify/finetune_vit_base.py", data="imagenet", rows=("MAE",),
    ),
    "linear": dict(
        tool="cls_train", config="{configs}/classify/linear_probe.py", data="imagenet", rows=("released", "unknown"),
    ),
    "own": dict(tool="cls_train", config="{configs}/classify/finetune_vit_base.py", data="own", rows=("MAE",)),
}
"""


def options(**changes: Any) -> argparse.Namespace:
    given = {
        "gpus": 8,
        "tflops": 1000.0,
        "utilisation": 0.1,
        "bandwidth": 100.0,
        "images_per_core": None,
        "price": None,
    }
    return argparse.Namespace(**{**given, **changes})


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "two.py"
    path.write_text(SUITE.replace("{configs}", str(ROOT / "configs")), encoding="utf-8")
    return path


def test_counted_hours_are_those_of_the_suite_files(suite: Path) -> None:
    """At 100 TFLOP/s sustained, the device that the hours in configs/suites are of."""
    records = {record["name"].partition(",")[0]: record for record in scale.run(options(suite=suite))}
    assert records["mae_vit_base_16_1600e"]["gpu_hours"] == pytest.approx(319.0, rel=0.05)
    assert records["finetune_vit_base"]["gpu_hours"] == pytest.approx(37.0, rel=0.05)
    assert records["not counted"]["runs"] == 2  # data or weights of unknown size
    assert "vit_large/16" in records["linear_probe"]["name"]
    total = records["the suite"]
    assert total["runs"] == 3
    assert total["hours_one_run_at_a_time"] == pytest.approx(total["gpu_hours"] / 8)


def test_a_tokenizer_counts_by_its_codes_without_its_file() -> None:
    values = {"scale": "mini", "epochs": 1, "batch": 1, "optim": {"lr": 1e-3}}
    values |= {"target": {"name": "token", "tokenizer": "dalle:absent.pkl"}}
    assert scale._pretraining(PretrainConfig.model_validate(values)).target.dim == 8192


def test_rates_are_those_of_the_formulas() -> None:
    need = Need("one", images=3.6e6, flops=10**12, parameters=200, trained=100, batch=16, averaged=True)
    given = options(gpus=64, images_per_core=10.0)
    record = scale._record(need, 3, given, speed=1e14)
    assert record["gpu_hours"] == 3 * 10.0
    assert record["images_per_s_per_gpu"] == 100.0
    assert record["cores_per_gpu"] == 10.0
    assert record["step_ms"] == 10.0  # an image on each of 16 GPUs: more cannot split the batch
    assert record["all_reduce_ms"] == pytest.approx(2 * 15 / 16 * 400 / 100e9 * 1e3)
    assert need.state_bytes == 16 * 100 + 4 * 100 + 4 * 200


def test_operations_of_a_detector_are_those_of_a_step() -> None:
    cfg = load(ROOT / "configs" / "detect" / "mini.py", DetectConfig)
    encoder = ViTConfig(size=None, dim=32, depth=2, heads=2, patch=4, image_size=32)
    with torch.device("meta"):
        built = scale._model(cfg, encoder, COCO.classes)
    assert built is not None
    counted = scale._flops(cfg, built)
    torch.manual_seed(0)
    model = scale._model(cfg, encoder, COCO.classes)
    assert model is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()
        pyramid = list(model.pyramid(torch.zeros(1, 3, 32, 32)).values())
        model.rpn.head(pyramid)
        regions, width, rois = model.roi_heads, pyramid[0].shape[1], cfg.heads.roi_batch
        regions.box_predictor(regions.box_head(torch.zeros(rois, width, 7, 7)))
        regions.mask_predictor(regions.mask_head(torch.zeros(rois // 4, width, 14, 14)))
    assert counted == pytest.approx(3 * counter.get_total_flops(), rel=0.02)


def test_a_part_of_a_node_is_refused(suite: Path) -> None:
    with pytest.raises(ValueError, match="--gpus 12: more than 8 must be whole nodes"):
        scale.run(options(suite=suite, gpus=12))
