"""tools/cls_train.py --eval with task = "robustness" (MAE, table 13).

ImageNet-A, -R, -Sketch and -C are generated folders in the layouts of these data sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer import checkpoints, results
from mae_transfer.cli.main import main
from mae_transfer.config import validate
from mae_transfer.core.normalize import normalize
from mae_transfer.engine.dist import Dist
from mae_transfer.metrics.corruption import ALEXNET_ERROR, SEVERITIES, corruption_errors, mean_corruption_error
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.suite.store import records
from mae_transfer.suite.tables.cells import cells
from mae_transfer.tasks import classify, robustness
from mae_transfer.tasks.robustness import RobustnessConfig

NAMES = [f"n0{i}" for i in range(5)]
ENCODER = {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 16}
Values = dict[str, Any]


def images(folder: Path, names: list[str], each: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture
def values(tmp_path: Path) -> Values:
    """A classifier of 5 classes, trained for a step, and the config that evaluates it."""
    torch.manual_seed(0)
    images(tmp_path / "imagenet" / "train", NAMES, 3)
    images(tmp_path / "imagenet" / "val", NAMES, 1)
    checkpoints.export_backbone(
        tmp_path / "backbone.safetensors", ViT(ViTConfig(**ENCODER)), about={"pretrain": "MAE for a test"}
    )
    found: Values = {
        "scale": "mini", "epochs": 1.0, "batch": 8, "precision": "float32",
        "backbone": {"reference": str(tmp_path / "backbone.safetensors")},
        "data": {
            "root": str(tmp_path / "imagenet"), "train": {"name": "folder", "split": "train"},
            "val": {"name": "folder", "split": "val"}, "size": 16,
        },
        "protocol": {"name": "finetune", "drop_path": 0.0}, "optim": {"lr": 0.3},
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "progress": False},
    }  # fmt: skip
    classify.Classify.launch(validate(found, classify.ClassifyConfig, where="test"), tmp_path / "ft")
    return found | {"task": "robustness"}


def state(tmp_path: Path) -> str:
    return str(next((tmp_path / "ft" / "checkpoints").glob("*.pt")))


def config(values: Values, variants: dict[str, str], **changes: Any) -> RobustnessConfig:
    return validate(values | changes | {"variants": variants}, RobustnessConfig, where="test")


def test_scores_are_compared_among_the_variants_own_classes_only(values: Values, tmp_path: Path) -> None:
    images(tmp_path / "a", ["n01", "n03"], 12, seed=1)
    written = robustness.Robustness.evaluate_checkpoint(
        config(values, {"imagenet-a": str(tmp_path / "a")}), state(tmp_path), tmp_path / "out"
    )
    cfg = validate(
        {key: value for key, value in values.items() if key != "task"}, classify.ClassifyConfig, where="test"
    )
    trained_by = classify.Classify.as_trained(cfg, state(tmp_path))
    model = classify.Classify(trained_by, Dist(torch.device("cpu"))).load_trained(state(tmp_path)).model
    model.eval()
    right = 0
    for label, name in enumerate(("n01", "n03")):
        for path in sorted((tmp_path / "a" / name).iterdir()):
            pixels = torch.from_numpy(
                np.asarray(Image.open(path).resize((18, 18), Image.Resampling.BICUBIC))[1:17, 1:17].copy()
            ).permute(2, 0, 1)
            scores = model(normalize(pixels[None])).detach().numpy().reshape(5)
            right += int(scores[[1, 3]].argmax() == label)
    assert [(r.dataset, r.metric, r.value) for r in written] == [
        ("imagenet-a", "top1", pytest.approx(100 * right / 24))
    ]
    assert results.load(tmp_path / "out" / "results.jsonl")[0][0].value == written[0].value
    payload = torch.load(state(tmp_path), weights_only=True)
    assert [(r.epochs, r.steps, r.images_seen) for r in written] == [
        (0, payload["step"], payload["images_seen"])
    ]  # a step: no finished run


def test_mce_is_the_hand_calculation(values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, (name, severity) in enumerate((name, severity) for name in ALEXNET_ERROR for severity in SEVERITIES):
        images(tmp_path / "c" / name / str(severity), ["n00", "n04"], 1, seed=seed)
    errors: dict[str, list[float]] = {}
    measured = robustness.Robustness.accuracy

    def record(task: robustness.Robustness, model: Any, part: robustness.Part) -> tuple[float, int]:
        share, left_out = measured(task, model, part)
        errors.setdefault(part.corruption, []).append(1 - share)
        return share, left_out

    monkeypatch.setattr(robustness.Robustness, "accuracy", record)
    found = {
        r.metric: r
        for r in robustness.Robustness.evaluate_checkpoint(
            config(values, {"imagenet-c": str(tmp_path / "c")}), state(tmp_path), None
        )
    }
    ces = [sum(errors[name]) / 5 / alexnet for name, alexnet in ALEXNET_ERROR.items()]
    assert found["mCE"].value == pytest.approx(100 * sum(ces) / 15)
    assert found["CE_fog"].value == pytest.approx(100 * sum(errors["fog"]) / (5 * 0.819324))
    assert len(found) == 16
    assert not found["mCE"].higher_is_better


def test_alexnet_itself_has_an_mce_of_one_and_a_perfect_classifier_none() -> None:
    alexnet = {name: dict.fromkeys(SEVERITIES, error) for name, error in ALEXNET_ERROR.items()}
    assert mean_corruption_error(alexnet) == pytest.approx(1.0)
    perfect = {name: dict.fromkeys(SEVERITIES, 0.0) for name in ALEXNET_ERROR}
    assert set(corruption_errors(perfect).values()) == {0.0}
    assert len(ALEXNET_ERROR) == 15


def test_what_is_missing_or_unknown_is_named_at_once(values: Values, tmp_path: Path) -> None:
    images(tmp_path / "r", ["n01", "n77", "n88"], 1)
    with pytest.raises(ValueError, match=r"class folders that are none of the classifier's 5: n77, n88 \(2 in all\)"):
        robustness.Robustness.evaluate_checkpoint(
            config(values, {"imagenet-r": str(tmp_path / "r")}), state(tmp_path), None
        )
    images(tmp_path / "c" / "fog" / "1", ["n00"], 1)
    with pytest.raises(ValueError, match=r"lacks 74 of the 75 folders of ImageNet-C .*gaussian_noise/1, .*fog/2"):
        robustness.Robustness.evaluate_checkpoint(
            config(values, {"imagenet-c": str(tmp_path / "c")}), state(tmp_path), None
        )
    with pytest.raises(ValueError, match="no variant has a folder"):
        robustness.Robustness.evaluate_checkpoint(config(values, {"imagenet-c": None}), state(tmp_path), None)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="the order of the classes is unknown"):
        robustness.Robustness.evaluate_checkpoint(
            config(values, {"imagenet-r": "x"}, data=values["data"] | {"root": None}), state(tmp_path), None
        )


def test_the_classes_may_come_from_a_file(values: Values, tmp_path: Path) -> None:
    images(tmp_path / "sketch", NAMES, 2, seed=5)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8-sig")  # as some editors write it
    by_folder, by_file = (
        robustness.Robustness.evaluate_checkpoint(
            config(values, {"imagenet-sketch": str(tmp_path / "sketch")}, **changes), state(tmp_path), None
        )[0].value
        for changes in ({}, {"classes": str(tmp_path / "classes.txt"), "data": values["data"] | {"root": None}})
    )
    assert by_folder == by_file


def test_the_tool_evaluates_and_the_table_shows_it(
    values: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "a", ["n01", "n03"], 2, seed=1)
    file = tmp_path / "robustness.py"
    file.write_text(
        "\n".join(
            f"{key} = {value!r}" for key, value in (values | {"variants": {"imagenet-a": str(tmp_path / "a")}}).items()
        )
    )
    command = [str(file), "--eval", "--checkpoint", state(tmp_path), "--work-dir", str(tmp_path / "out")]
    assert main(["classify", *command]) == 0
    assert "imagenet-a: top1 " in capsys.readouterr().out
    rows = [one for one in cells("13", records.load([tmp_path / "out"])[0]) if one.ours]
    assert [(row.column.split(",")[0], row.scale) for row in rows] == [("imagenet-a", "mini")]
    assert main(["classify", str(file), "--work-dir", str(tmp_path / "out")]) == 1
    assert "trains nothing: pass --eval" in capsys.readouterr().err
