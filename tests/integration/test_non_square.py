"""Images of 64 x 128 pixels in every tool: pretraining with each target, tokenizers, transfers, pictures, exports."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer import checkpoints, results

ROOT = Path(__file__).parents[2]
SIZE = ["--set", "data.size=(64,128)"]
ENCODER = [*SIZE, "--set", "model.encoder.image_size=(64,128)"]
FIT = "{'name':'large_scale_jitter','size':(64,128),'scale':(1.0,1.0),'flip':0.0}"
SCENES = [
    "--set",
    "data.square=(64,128)",
    "--set",
    "data.augmentation={'name':'large_scale_jitter','size':(64,128)}",
    "--set",
    f"data.view={FIT}",
]
FEATURE = ["--set", "target={'name':'feature','teacher':'random:ViT-Ti/16','size':(32,64)}"]
PRETRAIN = ("pretrain", "configs/pretrain/mae_vit_base_16_800e.py", *ENCODER)
RUNS: dict[str, tuple[str, ...]] = {
    "pretrain": PRETRAIN,
    "fixed crop": (*PRETRAIN, "--set", "data.augmentation={'name':'fixed_crop'}"),
    "tokens": ("pretrain", "configs/pretrain/beit_vit_base.py", *ENCODER),
    "squares": ("pretrain", "configs/pretrain/simmim_vit_base.py", *ENCODER),
    "hog": ("pretrain", "configs/pretrain/maskfeat_vit_base.py", *ENCODER),
    "mean colour": ("pretrain", "configs/pretrain/mpp_vit_base.py", *ENCODER),
    "pca": (*PRETRAIN, "--set", "target={'name':'pca','basis':'random:8'}"),
    "features": (*PRETRAIN, *FEATURE),
    "dvae": ("tokenizer_train", "dvae", "configs/tokenizer/dalle_8192.py", *SIZE),
    "finetune": ("cls_train", "configs/classify/finetune_vit_base.py", *SIZE),
    "partial": ("cls_train", "configs/classify/partial.py", *SIZE),
    "linear": ("cls_train", "configs/classify/linear_probe_row.py", *SIZE),
    "scratch": ("cls_train", "configs/classify/scratch_vit_base.py", *SIZE),
    "k-NN": ("cls_train", "configs/classify/knn.py", *SIZE),
    "ViTDet": ("det_train", "configs/detect/mask_rcnn_vitdet_base_100ep.py", *SCENES),
    "Li et al.": ("det_train", "configs/detect/mask_rcnn_vit_base_li2021_100ep.py", *SCENES),
    "UperNet": ("seg_train", "configs/segment/upernet_vit_base_160k.py", *SIZE, "--set", "inference.scales=(0.5,1.0)"),
    "linear segmentation": (
        "seg_train",
        "configs/segment/linear_vit_base.py",
        *SIZE,
        "--set",
        "inference.stride=(40,64)",
    ),
}
TOKENS = {
    "pretrain": 8 + 1,
    "tokens": 32 + 1,
    "dvae": 8 * 16,
    "finetune": 8 * 16 + 1,
    "k-NN": 8 * 16 + 1,
    "ViTDet": 32,
}  # patches and class token


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """run_tool("pretrain", ...) runs tools/pretrain.py in this process from the repository's root; it must end well."""

    def run(tool: str, *words: str) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        assert not end.value.code

    return run


def folder(path: Path, *, height: int = 90, width: int = 70) -> Path:
    path.mkdir(parents=True)
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.png")
    return path


@pytest.mark.parametrize("name", RUNS)
def test_every_tool_takes_images_that_are_not_square(name: str, run_tool: Callable[..., None], tmp_path: Path) -> None:
    run_tool(*RUNS[name], "--work-dir", str(tmp_path), "--debug")
    found, defects = results.load(tmp_path / "results.jsonl")
    assert found
    assert not defects
    if name in TOKENS:
        assert found[0].tokens_per_image == TOKENS[name]


def test_a_basis_is_fitted_and_pictures_and_exports_keep_the_shape(
    run_tool: Callable[..., None], tmp_path: Path
) -> None:
    run, images = tmp_path / "run", folder(tmp_path / "images")
    run_tool(*PRETRAIN, "--work-dir", str(run), "--debug")
    run_tool("visualize", str(run), "--images", str(images), "--out", str(tmp_path), "--mask-ratio", "0.5")
    with Image.open(tmp_path / "ratio_0.5.png") as sheet:
        assert sheet.width / 4 > 1.5 * sheet.height / 3  # panels of 64 x 128 px, four side by side, three images
    run_tool("visualize", str(run), "--attention", "--images", str(images), "--out", str(tmp_path))
    run_tool(
        "visualize", str(run), "--attention", "--images", str(images), "--out", str(tmp_path), "--size", "96", "32"
    )
    source = str(run / "backbone.safetensors")
    for kind, path in (
        ("ours", "ours.safetensors"),
        ("timm", "timm.safetensors"),
        ("hf", "hf"),
        ("detectron2", "d2.pth"),
    ):
        run_tool("export_checkpoint", source, "--format", kind, "--out", str(tmp_path / path))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["image_size"] == [64, 128]
    first = checkpoints.load_backbone(source)
    for reference in (str(tmp_path / "ours.safetensors"), f"hf:{tmp_path / 'hf'}"):
        again = checkpoints.load_backbone(reference)
        assert again.cfg.grid() == (4, 8)
        assert torch.equal(again.pos_embed, first.pos_embed)
    run_tool("export_checkpoint", source, "--image-size", "32", "64", "--out", str(tmp_path / "small.safetensors"))
    assert checkpoints.load_backbone(tmp_path / "small.safetensors").cfg.image_size == (32, 64)
    shapes = ["--set", "data.train={'name':'shapes','length':8}", "--set", "data.val=None", "--set", "run.workers=0"]
    run_tool(
        "tokenizer_train",
        "pca",
        PRETRAIN[1],
        *ENCODER,
        *shapes,
        "--components",
        "4",
        "--images",
        "8",
        "--work-dir",
        str(tmp_path / "pca"),
    )
    assert (tmp_path / "pca" / "basis.safetensors").is_file()


def test_a_classifier_of_non_square_images_is_judged_on_variants(run_tool: Callable[..., None], tmp_path: Path) -> None:
    images = tmp_path / "imagenet"
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            folder(images / part / name)
    small = [
        "--set",
        "backbone={'encoder':{'size':None,'dim':16,'depth':2,'heads':2,'patch':8,'image_size':32}}",
        "--set",
        f"data.root={images}",
        *SIZE,
    ]
    run = [
        "--set",
        "run.device=cpu",
        "--set",
        "run.workers=0",
        "--set",
        "batch=4",
        "--set",
        "epochs=1",
        "--set",
        "schedule.warmup_epochs=0",
    ]
    run_tool("cls_train", "configs/classify/finetune_vit_base.py", "--work-dir", str(tmp_path / "ft"), *small, *run)
    state = next((tmp_path / "ft" / "checkpoints").glob("step_*.pt"))
    variants = [
        "--set",
        f"variants={{'imagenet-a':{str(images / 'val')!r}}}",
        "--set",
        "run.device=cpu",
        "--set",
        "run.workers=0",
    ]
    robust = [
        "cls_train",
        "configs/classify/robustness.py",
        "--eval",
        "--checkpoint",
        str(state),
        "--work-dir",
        str(tmp_path / "robust"),
    ]
    run_tool(*robust, *small, *variants)
    found, _ = results.load(tmp_path / "robust" / "results.jsonl")
    assert [(r.dataset, r.tokens_per_image) for r in found] == [("imagenet-a", 8 * 16 + 1)]


@pytest.mark.slow
def test_a_suite_passes_the_size_on(run_tool: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "suite.py").write_text(f"""
title, tables = "oblong", ("3",)
data = {{"data.size": (64, 128), "run.workers": 0, "run.device": "cpu"}}
data |= {{"data.train": {{"name": "shapes", "length": 8}}, "data.val": {{"name": "shapes", "length": 4, "seed": 1}}}}
encoder = dict(size=None, dim=32, depth=2, heads=2, patch=16, image_size=(64, 128))
model = {{"model": dict(encoder=encoder, decoder=dict(dim=16, depth=1, heads=2))}}
model |= {{"epochs": 1, "batch": 4, "schedule.warmup_epochs": 0.5}}
rows = {{"pixels": dict(config="{ROOT}/configs/mini/pretrain.py", set=data | model)}}
transfer = {{"k-NN": dict(tool="cls_train", config="{ROOT}/configs/classify/mini_knn.py", set=data | {{"ks": (3,)}})}}
del data, encoder, model
""")
    run_tool("reproduce", str(tmp_path / "suite.py"), "--work-dir", str(tmp_path / "d"))
    found = [result for path in (tmp_path / "d").rglob("results.jsonl") for result in results.load(path)[0]]
    assert {result.tokens_per_image for result in found} == {8 + 1, 32 + 1}
