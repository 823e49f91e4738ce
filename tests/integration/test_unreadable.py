"""Images that an evaluation cannot read: the numbers are those without them, and say how many they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer import checkpoints
from mae_transfer.config import validate
from mae_transfer.data import UnreadableImage
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.results import Result
from mae_transfer.tasks import basis, classify, knn, pretrain, robustness, tokenizer
from mae_transfer.tasks.evaluation import Evaluation

Values = dict[str, Any]
ENCODER = {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 16}
RUN = {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "progress": False, "evaluation_batch": 2}
TRAINING = {"scale": "mini", "epochs": 1.0, "batch": 4, "precision": "float32", "optim": {"lr": 1e-3}, "run": RUN}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """12 training and 6 validation images of 3 classes."""
    rng = np.random.default_rng(0)
    for split, each in (("train", 4), ("val", 2)):
        for name in ("n01", "n02", "n03"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for index in range(each):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                    tmp_path / "set" / split / name / f"{index}.png"
                )
    return tmp_path / "set"


@pytest.fixture
def base(root: Path, tmp_path: Path) -> Values:
    torch.manual_seed(0)
    checkpoints.export_backbone(
        tmp_path / "backbone.safetensors", ViT(ViTConfig(**ENCODER)), about={"pretrain": "MAE for a test"}
    )
    data = {
        "root": str(root),
        "train": {"name": "folder", "split": "train"},
        "val": {"name": "folder", "split": "val"},
        "size": 16,
    }
    return {"data": data | {"on_error": "skip"}, "backbone": {"reference": str(tmp_path / "backbone.safetensors")}}


def of_classes(base: Values, root: Path, folder: Path) -> list[Result]:
    return classify.Classify.launch(validate(TRAINING | base, classify.ClassifyConfig, where="test"), folder)


def of_neighbours(base: Values, root: Path, folder: Path) -> list[Result]:
    values = base | {"task": "knn", "scale": "mini", "ks": (1, 5), "precision": "float32", "run": RUN}
    return Evaluation.launch(validate(values, knn.KnnConfig, where="test"), folder)


def of_pretraining(base: Values, root: Path, folder: Path) -> list[Result]:
    model = {"encoder": ENCODER, "decoder": {"depth": 1, "dim": 8, "heads": 2}}
    values = TRAINING | {"data": base["data"], "model": model, "pictures": 2, "evaluate_images": 6}
    return pretrain.Pretrain.launch(validate(values, pretrain.PretrainConfig, where="test"), folder)


def of_tokens(base: Values, root: Path, folder: Path) -> list[Result]:
    model = {"codes": 16, "width": 8, "decoder_input": 8, "blocks": 1}
    moving = {"tau": {"start": 1.0, "end": 0.0625, "epochs": "60%"}, "kl": {"start": 0.0, "end": 6.6, "epochs": "2%"}}
    values = TRAINING | moving | {"data": base["data"], "model": model, "pictures": 2, "evaluate_images": 6}
    return tokenizer.Tokenizer.launch(validate(values, tokenizer.TokenizerConfig, where="test"), folder)


def of_variants(base: Values, root: Path, folder: Path) -> list[Result]:
    whole = {**base, "data": base["data"] | {"val": base["data"]["train"]}}
    classify.Classify.launch(validate(TRAINING | whole, classify.ClassifyConfig, where="test"), folder / "ft")
    (state,) = (folder / "ft" / "checkpoints").iterdir()
    values = TRAINING | base | {"task": "robustness", "variants": {"imagenet-r": str(root / "val")}}
    return robustness.Robustness.evaluate_checkpoint(
        validate(values, robustness.RobustnessConfig, where="test"), str(state), None
    )


TASKS: dict[str, Callable[[Values, Path, Path], list[Result]]] = {
    "classify": of_classes, "knn": of_neighbours, "pretrain": of_pretraining, "tokenizer": of_tokens,
    "robustness": of_variants,
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_numbers_are_those_of_a_set_without_the_image(task: str, base: Values, root: Path, tmp_path: Path) -> None:
    files = [root / "val" / "n03" / "1.png", *([root / "train" / "n01" / "2.png"] if task == "knn" else [])]
    for file in files:
        file.write_bytes(b"torn")
    torn = TASKS[task](base, root, tmp_path / "torn")
    for file in files:
        file.unlink()
    without = TASKS[task](base, root, tmp_path / "without")
    assert [(r.metric, r.split, r.value) for r in torn] == [
        (r.metric, r.split, pytest.approx(r.value, rel=1e-5)) for r in without
    ]
    assert ({r.unreadable for r in torn}, {r.unreadable for r in without}) == ({len(files)}, {0})


def test_a_set_of_which_nothing_can_be_read_is_an_error(base: Values, root: Path, tmp_path: Path) -> None:
    for file in (root / "val").rglob("*.png"):
        file.write_bytes(b"torn")
    for task in TASKS:
        with pytest.raises(ValueError, match=r"no image .*could be read"):
            TASKS[task](base, root, tmp_path / task)


def test_the_policy_makes_no_other_config(base: Values) -> None:
    skips = validate(TRAINING | base, classify.ClassifyConfig, where="test")
    stops = validate(
        TRAINING | base | {"data": base["data"] | {"on_error": "raise", "max_unreadable": 7}},
        classify.ClassifyConfig,
        where="test",
    )
    assert skips.digest() == stops.digest()
    assert skips.recipe_digest() == stops.recipe_digest()
    assert skips.differences(stops) == []


def test_a_basis_is_fitted_to_other_images_instead(
    base: Values, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"encoder": ENCODER, "decoder": {"depth": 1, "dim": 8, "heads": 2}}
    cfg = validate(
        TRAINING | {"data": base["data"] | {"augmentation": {"name": "none"}}, "model": model},
        pretrain.PretrainConfig,
        where="test",
    )
    (root / "train" / "n02" / "1.png").write_bytes(b"torn")
    assert basis.fit(cfg, tmp_path / "torn", components=4, images=13).mean.isfinite().all()
    said = capsys.readouterr().out
    assert "1 unreadable images were replaced by others" in said
    assert "of 24 crops of" in said  # two batches of all images
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"torn")
    with pytest.raises(UnreadableImage, match="files in a row are unreadable"):
        basis.fit(cfg, tmp_path / "none", components=4, images=12)
