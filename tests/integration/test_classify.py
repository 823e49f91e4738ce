"""Classification end to end, on files and through the tool: results, resume, evaluation, selection and bad input."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_transfer import checkpoints, results
from mae_transfer.cli.main import main
from mae_transfer.config import load, validate
from mae_transfer.data import regions
from mae_transfer.data.decode import decode
from mae_transfer.engine.dist import Dist
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks import classify
from mae_transfer.tasks.classify import ClassifyConfig
from mae_transfer.tasks.evaluation import Evaluation
from mae_transfer.tasks.knn import KnnConfig
from mae_transfer.tasks.logreg import LogRegConfig
from mae_transfer.tasks.ridge import RidgeConfig
from mae_transfer.tasks.statistics import StatisticsConfig, StatisticsRun
from tests.integration.conftest import Torchrun

ROOT = Path(__file__).parent.parent.parent
Values = dict[str, Any]
ENCODER = {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 16}
RUN = {"device": "cpu", "workers": 0, "device_batch": 4, "log_every": 1, "save_minutes": None, "progress": False}
LINEAR = {
    "protocol": {"name": "linear", "rates": (0.3, 3.0), "pools": ("cls", "mean")},
    "optim": {"algorithm": {"name": "lars"}, "lr": 1.0, "weight_decay": 0.0},
}
HEADS = {"heads": ("linear", "efficient", "cross"), "queries": 4, "head_width": 8}
ATTENTIVE = LINEAR | {"protocol": LINEAR["protocol"] | HEADS}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "backbone.safetensors"
    checkpoints.export_backbone(path, ViT(ViTConfig(**ENCODER)), about={"pretrain": "MAE for a test"})
    return path


@pytest.fixture
def base(image_folder: Path, backbone: Path) -> Values:
    """6 steps on 12 JPEGs of 3 classes (9 if a quarter is held out), with all options that could break exact resume."""
    return {
        "scale": "mini", "epochs": 6.0, "batch": 8, "precision": "float32", "ema_decay": 0.9,
        "backbone": {"reference": str(backbone)},
        "data": {
            "root": str(image_folder), "train": {"name": "folder", "split": "train"},
            "val": {"name": "folder", "split": "val"}, "size": 16,
            "augmentation": {"name": "rand_augment"}, "holdout_fraction": 0.25,
        },
        "protocol": {"name": "finetune", "drop_path": 0.3, "erase": 0.5}, "optim": {"lr": 1e-2, "layer_decay": 0.75},
        "schedule": {"warmup_epochs": 1.0}, "run": RUN,
    }  # fmt: skip


def config(values: Values, **changes: Any) -> ClassifyConfig:
    return validate(values | changes, ClassifyConfig, where="test")


def log(folder: Path, kind: str) -> dict[int, Values]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["kind"] == kind}


def payload(folder: Path, step: int = 6) -> Values:
    return torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True)


def assert_equal(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds", "record"}:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def test_a_run_leaves_numbers_that_say_where_they_come_from(base: Values, backbone: Path, tmp_path: Path) -> None:
    cfg = config(base)
    written = classify.Classify.launch(cfg, tmp_path / "run")
    assert load(tmp_path / "run" / "config.py", ClassifyConfig) == cfg
    assert results.load(tmp_path / "run" / "results.jsonl") == (written, [])
    assert [(r.split, r.metric, r.protocol, r.unit) for r in written] == [
        (split, metric, "finetune", "%") for split in ("holdout", "val") for metric in ("top1", "mean-per-class")
    ]
    assert all(one.higher_is_better for one in written)
    val = written[2]
    assert (val.backbone, val.pretrain, val.checkpoint_sha256) == (
        "vit-16x2/4",
        "MAE for a test",
        checkpoints.sha256(backbone),
    )
    assert (val.tokens_per_image, val.steps, val.images_seen, val.epochs) == (17, 6, 48, 6)
    assert val.value == pytest.approx(100 * log(tmp_path / "run", "eval")[6]["val_top1"])
    assert val.value * 12 / 100 == pytest.approx(round(val.value * 12 / 100))


@pytest.mark.parametrize(
    "changes",
    [{}, {"protocol": {"name": "partial", "tune_blocks": 1}}, LINEAR, ATTENTIVE],
    ids=["finetune", "partial", "linear", "attentive"],
)
def test_a_stopped_and_resumed_run_is_the_unbroken_one_bit_for_bit(
    base: Values, changes: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulation 2, mixup, erasing, drop path, EMA, running statistics; workers 0 -> 1."""
    cfg = config(base, evaluate_epochs=2.0, **changes)
    classify.Classify.launch(cfg, tmp_path / "whole")
    loss = classify.Classify.loss

    def stopping(self: Any, model: Any, batch: Any, at: Any) -> Any:
        if (at.number, at.micro) == (2, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, batch, at)

    with monkeypatch.context() as patched:
        patched.setattr(classify.Classify, "loss", stopping)
        assert classify.Classify.launch(cfg, tmp_path / "halves") == []
    assert payload(tmp_path / "halves", 3)["step"] == 3
    again = cfg.model_copy(update={"run": cfg.run.model_copy(update={"workers": 1})})
    classify.Classify.launch(again, tmp_path / "halves", resume=True)
    assert_equal(payload(tmp_path / "whole"), payload(tmp_path / "halves"))
    whole, halves = (results.load(tmp_path / name / "results.jsonl")[0] for name in ("whole", "halves"))
    assert [r.value for r in whole] == [r.value for r in halves]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="values may differ by one grey level")
@pytest.mark.parametrize("device", [("augment_on",), ("augment_on", "decode_on")], ids=len)
def test_what_the_device_augments_and_decodes_trains_as_in_the_workers(
    base: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: tuple[str, ...]
) -> None:
    """With mixup and erasing after it, on files."""
    decoded: list[Any] = []

    def decode_whole(regions: list[regions.Region]) -> list[torch.Tensor]:
        decoded.extend(regions)
        boxes = ((decode(one.file, where="x"), *one.box) for one in regions)
        return [whole[:, top : top + height, left : left + width] for whole, top, left, height, width in boxes]

    monkeypatch.setattr(sys.modules[decode.__module__], "_region_decoder", lambda _: lambda *_: None)
    monkeypatch.setattr(regions, "_decoder", lambda *_: decode_whole)
    losses = []
    for run in (RUN, RUN | dict.fromkeys(device, "device")):
        classify.Classify.launch(config(base, run=run, epochs=3.0), tmp_path / str(len(losses)))
        losses.append([row["loss"] for row in log(tmp_path / str(len(losses)), "train").values()])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert bool(decoded) == ("decode_on" in device)


def test_rand_augment_on_a_device_without_float64_is_refused(base: Values) -> None:
    task = classify.Classify(config(base, run=RUN | {"augment_on": "device"}), Dist(torch.device("mps")))
    task.open()
    with pytest.raises(ValueError, match=r"run\.augment_on = 'device' .* mps"):
        task.prepare(task.loop())


def opened(cfg: classify.ClassifyConfig) -> classify.Classify:
    task = classify.Classify(cfg, Dist(torch.device("cpu")))
    task.open_data()
    return task


def test_the_probe_is_selected_on_what_is_held_out_and_reported_on_val(base: Values, tmp_path: Path) -> None:
    cfg = config(base, **LINEAR)
    written = classify.Classify.launch(cfg, tmp_path / "run")
    history = payload(tmp_path / "run")["extra"]["history"]
    assert history == {}  # the last evaluation comes after the last save
    figures = {
        f"{split}_top1_{name}": i / 10
        for split, start in (("holdout", 0), ("val", 5))
        for i, name in enumerate(cfg.protocol.row, start)
    }
    figures["holdout_top1_cls_x3"] = 0.9
    assert opened(cfg).choose({"6": figures}) == {"holdout_top1": 0.9, "val_top1": figures["val_top1_cls_x3"]}
    assert {r.protocol for r in written} == {"linear"}


def test_each_kind_of_head_is_selected_and_reported_on_its_own(base: Values, tmp_path: Path, capsys: Any) -> None:
    cfg = config(base, **ATTENTIVE)
    written = classify.Classify.launch(cfg, tmp_path / "run")
    kinds = ("linear", "efficient", "cross")
    assert [(r.protocol, r.split, r.metric) for r in written] == [
        (kind, split, metric) for kind in kinds for split in ("holdout", "val") for metric in ("top1", "mean-per-class")
    ]
    assert log(tmp_path / "run", "eval")[6].keys() >= {
        f"{kind}/{split}_top1" for kind in kinds for split in ("holdout", "val")
    }
    row = (
        "cls_x0p3", "cls_x3", "mean_x0p3", "mean_x3",
        "efficient_patches_x0p3", "efficient_patches_x3", "cross_patches_x0p3", "cross_patches_x3",
    )  # fmt: skip
    assert cfg.protocol.row == row
    figures = {f"holdout_top1_{name}": place / 10 for place, name in enumerate(row)}
    figures["holdout_top1_efficient_patches_x0p3"] = 0.9
    figures |= {f"val_top1_{name}": place / 100 for place, name in enumerate(row)}
    chosen = opened(cfg).choose({"6": figures | {"val_unreadable": 0.0}})
    assert chosen == {
        "linear/holdout_top1": 0.3, "linear/val_top1": 0.03,
        "efficient/holdout_top1": 0.9, "efficient/val_top1": 0.04,
        "cross/holdout_top1": 0.7, "cross/val_top1": 0.07,
        "val_unreadable": 0.0,
    }  # fmt: skip
    state = tmp_path / "run" / "checkpoints" / "step_00000006.pt"
    again = classify.Classify.evaluate_checkpoint(cfg, str(state), None)
    assert [(r.protocol, r.split, r.value) for r in again] == [(r.protocol, r.split, r.value) for r in written]
    said = capsys.readouterr().out
    assert f"efficient val top1 {written[6].value:.2f}%, efficient val mean-per-class" in said
    assert re.search(r"selected (cls|mean)_x(0p3|3) of 4 linear probes", said)
    assert re.search(r"selected cross_patches_x(0p3|3) of 2 cross probes", said)
    few = config(base, data=base["data"] | {"label_fraction": 0.5}, **ATTENTIVE)
    assert few.titles() == ("linear-50%-labels", "efficient-50%-labels", "cross-50%-labels")
    alone = config(base, **LINEAR | {"protocol": {"name": "linear", "heads": ("efficient",), "queries": 4}})
    assert [r.protocol for r in classify.Classify.launch(alone, tmp_path / "alone")] == ["efficient"] * 4


def test_a_row_of_several_kinds_has_no_best_epoch(base: Values) -> None:
    with pytest.raises(ValueError, match="their best epochs differ, and a run keeps one best state; set select='last'"):
        config(base, select="best", **ATTENTIVE)
    one_each = ATTENTIVE | {"protocol": {"name": "linear", **HEADS}}
    config(base, data=base["data"] | {"holdout_fraction": 0.0}, **one_each)  # nothing is to be selected


def test_the_best_epoch_is_the_best_on_what_is_held_out(base: Values) -> None:
    cfg = config(base, select="best")
    history = {
        "2": {"holdout_top1": 0.4, "val_top1": 0.1},
        "4": {"holdout_top1": 0.5, "val_top1": 0.2},
        "10": {"holdout_top1": 0.4, "val_top1": 0.9},
    }
    assert opened(cfg).choose(history) == {"holdout_top1": 0.5, "val_top1": 0.2}


@pytest.mark.parametrize("changes", [{"select": "best"}, LINEAR])
def test_nothing_is_selected_on_the_reported_images(base: Values, changes: Values) -> None:
    with pytest.raises(ValueError, match="holdout_fraction = 0, but something is to be selected"):
        config(base, data=base["data"] | {"holdout_fraction": 0.0}, **changes)


def test_a_training_state_evaluates_to_the_numbers_of_its_run(base: Values, tmp_path: Path) -> None:
    cfg = config(base)
    written = classify.Classify.launch(cfg, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "step_00000006.pt"
    again = classify.Classify.evaluate_checkpoint(cfg, str(state), tmp_path / "eval")
    assert [(r.split, r.metric, r.value) for r in again] == [(r.split, r.metric, r.value) for r in written]
    assert results.load(tmp_path / "eval" / "results.jsonl")[0] == again
    assert again[0].checkpoint_sha256 == checkpoints.sha256(state)


def test_an_early_training_state_does_not_evaluate_to_a_finished_run(base: Values, tmp_path: Path) -> None:
    cfg = config(base, run=base["run"] | {"save_every": 2, "keep_last": 9})
    written = classify.Classify.launch(cfg, tmp_path / "run")
    early = classify.Classify.evaluate_checkpoint(cfg, str(tmp_path / "run" / "checkpoints" / "step_00000002.pt"), None)
    assert {(r.epochs, r.steps, r.images_seen) for r in early} == {(0, 2, written[0].images_seen // 3)}


def released(path: Path, classes: int) -> Path:
    """A file in the layout of MAE's fine-tuned weights."""
    torch.manual_seed(1)
    vit = ViT(ViTConfig(size="vit_tiny", patch=4, image_size=16, final_norm=False))
    head = {
        "fc_norm.weight": torch.rand(192),
        "fc_norm.bias": torch.rand(192),
        "head.weight": torch.randn(classes, 192),
        "head.bias": torch.randn(classes),
    }
    torch.save({"model": dict(vit.state_dict()) | head}, path)
    return path


def test_a_released_fine_tuned_file_is_evaluated_with_its_own_head(base: Values, tmp_path: Path) -> None:
    path = released(tmp_path / "mae_finetuned.pth", classes=3)
    cfg = config(base, backbone={"changes": {"heads": 3}}, data=base["data"] | {"holdout_fraction": 0.0})
    found, _ = classify.Classify.evaluate_checkpoint(cfg, f"mae-finetuned:{path}", None)
    assert (found.epochs, found.steps, found.images_seen) == (0, 0, 0)
    assert (found.split, found.metric, found.backbone, found.checkpoint_sha256) == (
        "val",
        "top1",
        "vit_tiny/4",
        checkpoints.sha256(path),
    )
    model = classify.Classify(cfg, Dist(torch.device("cpu"))).load_trained(f"mae-finetuned:{path}").model
    tensors = torch.load(path, weights_only=True)["model"]
    assert torch.equal(model.head.weight, tensors["head.weight"])
    assert torch.equal(model.fc_norm.bias, tensors["fc_norm.bias"])


def test_a_head_of_other_classes_is_refused(base: Values, tmp_path: Path) -> None:
    path = released(tmp_path / "mae_finetuned.pth", classes=10)
    with pytest.raises(ValueError, match=r"head\.weight: \(10, 192\) does not fit \(3, 192\)"):
        classify.Classify.evaluate_checkpoint(
            config(base, backbone={"changes": {"heads": 3}}), f"mae-finetuned:{path}", None
        )


def test_a_file_without_a_head_cannot_be_evaluated(base: Values, backbone: Path) -> None:
    with pytest.raises(ValueError, match="holds no classifier"):
        classify.Classify.evaluate_checkpoint(config(base), str(backbone), None)


def test_a_run_without_backbone_says_how_to_name_one(base: Values, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --backbone REFERENCE"):
        classify.Classify.launch(config(base, backbone={}), tmp_path / "run")


def test_images_normalised_otherwise_than_in_pretraining_are_refused(base: Values, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    checkpoints.export_backbone(
        path, ViT(ViTConfig(**ENCODER)), about={"recipe": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
    )
    wrong = config(base, backbone={"reference": str(path)}, mean=(0.4,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match=r"mean \(0.5, 0.5, 0.5\).*--set"):
        classify.Classify.launch(wrong, tmp_path / "run")
    (found, *_) = classify.Classify.launch(config(base, backbone={"reference": str(path)}), tmp_path / "run")
    assert found.normalization == "mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5) (recorded with the weights)"


def test_another_head_in_the_data_set_does_not_resume(base: Values, image_folder: Path, tmp_path: Path) -> None:
    cfg = config(base)
    classify.Classify.launch(cfg, tmp_path / "run")
    for split in ("train", "val"):
        (image_folder / split / "n03").rename(image_folder / split / "n04")
        (image_folder / split / "n03").mkdir()
        (next((image_folder / split / "n04").iterdir())).rename(image_folder / split / "n03" / "moved.JPEG")
    with pytest.raises(ValueError, match=r"was made with '3 classes \w+', this run has '4 classes \w+'"):
        classify.Classify.launch(cfg, tmp_path / "run", resume=True)


def test_classes_of_other_names_do_not_resume_though_they_are_as_many(
    base: Values, image_folder: Path, tmp_path: Path
) -> None:
    cfg = config(base)
    classify.Classify.launch(cfg, tmp_path / "run")
    for split in ("train", "val"):
        (image_folder / split / "n01").rename(image_folder / split / "n09")  # now the last of the three
    with pytest.raises(ValueError, match=r"was made with '3 classes \w+', this run has '3 classes \w+'"):
        classify.Classify.launch(cfg, tmp_path / "run", resume=True)


def knn_config(base: Values, **changes: Any) -> KnnConfig:
    values = {
        "task": "knn",
        "scale": "mini",
        "data": base["data"],
        "backbone": base["backbone"],
        "ks": (1, 5),
        "precision": "float32",
    }
    return validate(values | {"run": RUN | {"evaluation_batch": 5}} | changes, KnnConfig, where="test")


def test_nearest_neighbours_need_no_training(base: Values, tmp_path: Path) -> None:
    data = base["data"] | {"holdout_fraction": 0.0}
    written = Evaluation.launch(knn_config(base, data=data), tmp_path / "run")
    assert [(r.protocol, r.metric, r.split) for r in written] == [
        (protocol, metric, "val") for metric in ("top1", "mean-per-class") for protocol in ("knn-1", "knn-5")
    ]
    ordered = Evaluation.launch(knn_config(base, data=data, ks=(2, 10)), tmp_path / "ordered")
    assert [r.protocol for r in ordered if r.metric == "top1"] == ["knn-2", "knn-10"], (
        "the order of the config, which the tables keep"
    )
    itself = data | {"val": data["train"]}
    assert Evaluation.launch(knn_config(base, data=itself, ks=(1,)), tmp_path / "itself")[0].value == 100.0
    with pytest.raises(ValueError, match="not 13 neighbours of 12 training images; lower ks"):
        Evaluation.launch(knn_config(base, data=data, ks=(13,)), tmp_path / "many")


def test_ridge_logistic_regression_and_statistics_of_features_need_no_training(base: Values, tmp_path: Path) -> None:
    values = {name: base[name] for name in ("scale", "precision", "data", "backbone", "run")}
    ridge = validate({**values, "task": "ridge", "selection_fraction": 0.25}, RidgeConfig, where="test")
    written = Evaluation.launch(ridge, tmp_path / "ridge")
    assert [(r.task, r.protocol, r.metric, r.split) for r in written] == [
        ("classify", "ridge", "top1", "val"), ("classify", "ridge", "mean-per-class", "val"),
        ("classify", "ridge", "top1", "holdout"),
    ]  # fmt: skip
    (row,) = log(tmp_path / "ridge", "eval").values()
    assert row["chosen/ridge_penalty"] in ridge.penalties
    statistics = validate({**values, "task": "statistics"}, StatisticsConfig, where="test")
    found = {r.metric: r.value for r in StatisticsRun.launch(statistics, tmp_path / "statistics")}
    assert found.keys() == {"rank", "spread", "attention"}
    assert all(0 < value < 100 for value in found.values())
    few = {**values, "task": "logreg", "selection_fraction": 0.25, "shots": (1, 2), "draws": 2}
    written = Evaluation.launch(validate(few, LogRegConfig, where="test"), tmp_path / "logreg")
    assert [(r.protocol, r.metric, r.split) for r in written] == [
        ("logreg", "top1", "val"),
        ("logreg", "mean-per-class", "val"),
        *[
            (f"logreg-{k}shot", metric + end, "val")
            for k in (1, 2)
            for metric in ("top1", "mean-per-class")
            for end in ("", "-min", "-max")
        ],
        ("logreg", "top1", "holdout"),
    ]


def in_two_processes(torchrun: Torchrun, cfg: ClassifyConfig | KnnConfig, folder: Path) -> None:
    path = folder.with_suffix(".py")
    path.write_text(cfg.source())
    torchrun(ROOT / "tools" / "cls_train.py", path, "--work-dir", folder)


def test_two_processes_count_every_image_once(base: Values, torchrun: Torchrun, tmp_path: Path) -> None:
    """11 validation images over 2 processes; the step draws no random numbers, so both runs agree up to rounding."""
    next((Path(base["data"]["root"]) / "val" / "n01").iterdir()).unlink()
    quiet = {
        "protocol": {"name": "finetune", "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0},
        "run": RUN | {"device_batch": None},
    }
    cfg = config(base, **quiet)
    classify.Classify.launch(cfg, tmp_path / "one")
    in_two_processes(torchrun, cfg, tmp_path / "two")
    one, two = (results.load(tmp_path / name / "results.jsonl")[0] for name in ("one", "two"))
    assert [(r.split, r.value) for r in two] == [(r.split, pytest.approx(r.value)) for r in one]
    losses = [[row["loss"] for row in log(tmp_path / name, "train").values()] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    near = knn_config(base)
    Evaluation.launch(near, tmp_path / "knn_one")
    in_two_processes(torchrun, near, tmp_path / "knn_two")
    one, two = (results.load(tmp_path / name / "results.jsonl")[0] for name in ("knn_one", "knn_two"))
    assert [(r.protocol, r.value) for r in two] == [(r.protocol, pytest.approx(r.value)) for r in one]


@pytest.mark.slow
def test_attentive_probes_of_two_processes_are_those_of_one(base: Values, torchrun: Torchrun, tmp_path: Path) -> None:
    """Of the head without a batch norm, whose statistics are those of a process on a CPU."""
    protocol = {"name": "linear", "rates": (0.3, 3.0), "heads": ("cross",), "head_width": 8}
    cfg = config(base, **LINEAR | {"protocol": protocol}, run=RUN | {"device_batch": None})
    classify.Classify.launch(cfg, tmp_path / "one")
    in_two_processes(torchrun, cfg, tmp_path / "two")
    one, two = (results.load(tmp_path / name / "results.jsonl")[0] for name in ("one", "two"))
    assert [(r.protocol, r.split, r.value) for r in two] == [("cross", r.split, pytest.approx(r.value)) for r in one]
    losses = [[row["loss"] for row in log(tmp_path / name, "train").values()] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def tool(*words: str) -> int:
    return main(["classify", *words])


def test_the_tool_takes_the_backbone_and_evaluates_checkpoints(
    base: Values, backbone: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "cfg.py"
    path.write_text(config(base, backbone={}, epochs=1.0).source())
    assert tool(str(path), "--work-dir", str(tmp_path / "run")) == 1
    assert "give --backbone" in capsys.readouterr().err
    assert tool(str(path), "--backbone", str(backbone), "--work-dir", str(tmp_path / "run")) == 0
    state = tmp_path / "run" / "checkpoints" / "step_00000001.pt"
    assert tool(str(path), "--backbone", str(backbone), "--eval", "--checkpoint", str(state)) == 0
    (value,) = {r.value for r in results.load(tmp_path / "run" / "results.jsonl")[0] if r.split == "val"}
    printed = capsys.readouterr().out.splitlines()
    assert f"val top1 {value:.2f}%" in printed[-1]
    assert f"evaluation of {state}: float32 on cpu" in "\n".join(printed)
    path.write_text(knn_config(base).source())
    assert tool(str(path), "--eval", "--checkpoint", str(state)) == 1
    assert "has no checkpoint to evaluate" in capsys.readouterr().err
    path.write_text('task = "detect"\n')
    assert tool(str(path), "--work-dir", str(tmp_path / "other")) == 1
    assert "this tool runs classify, knn" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool(str(path), "--eval", "--work-dir", str(tmp_path / "other"))
