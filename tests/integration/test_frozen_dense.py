"""Frozen segmentation end to end, on files in ADE20K's layout: results, pictures, and several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pretrain_runs import ROOT

from mae_transfer import results
from mae_transfer.cli.main import main
from mae_transfer.config import validate
from mae_transfer.data.dense_shapes import write_ade
from mae_transfer.tasks.frozen_segment import FrozenKnnConfig, FrozenLogRegConfig, FrozenSegment
from tests.integration.conftest import Torchrun

ENCODER = {"size": None, "dim": 16, "depth": 2, "heads": 2, "patch": 4, "image_size": 32}


def config(root: Path, schema: type[FrozenKnnConfig | FrozenLogRegConfig], **options: object) -> FrozenKnnConfig:
    write_ade(root, train=7, val=3, size=40)
    sets = {
        name: {"name": "ade", "split": split, "allow_absent": True}
        for name, split in (("train", "training"), ("val", "validation"))
    }
    values = {
        "scale": "mini", "precision": "float32", "data": {"root": str(root), "size": 32, **sets}, "bank": 200,
        "backbone": {"encoder": ENCODER}, "run": {"device": "cpu", "workers": 0, "pictures": 2},
    }  # fmt: skip
    return validate(values | options, schema, where="test")


def test_a_run_leaves_numbers_and_pictures(tmp_path: Path) -> None:
    cfg = config(tmp_path / "scenes", FrozenLogRegConfig, cs=(1e-3, 1.0))
    written = FrozenSegment.launch(cfg, tmp_path / "run")
    assert [(r.task, r.protocol, r.metric, r.split, r.unit) for r in written] == [
        ("segment", "frozen-logreg", "mIoU", "val", "%"), ("segment", "frozen-logreg", "mAcc", "val", "%"),
        ("segment", "frozen-logreg", "aAcc", "val", "%"), ("segment", "frozen-logreg", "patch-mIoU", "holdout", "%"),
    ]  # fmt: skip
    assert results.load(tmp_path / "run" / "results.jsonl") == (written, [])
    assert len(list((tmp_path / "run" / "segmentations").glob("*.png"))) == 2
    assert [r.record.data["train"].images for r in written if r.record] == [7] * 4


@pytest.mark.parametrize("amx", [False, True])
def test_a_frozen_run_says_where_bfloat16_is_the_slow_choice(
    amx: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mae_transfer.tasks.run.CPU_HAS_AMX", amx)
    FrozenSegment.launch(config(tmp_path / "scenes", FrozenKnnConfig, precision="bfloat16"), tmp_path / "run")
    said = capsys.readouterr().out
    assert "bfloat16 on cpu" in said
    assert ("--set precision=float32 is faster here" in said) == (not amx)


def test_protocols_of_a_backbone_share_one_pass_over_the_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, draw = [], FrozenSegment.draw
    monkeypatch.setattr(FrozenSegment, "draw", lambda self, batch: passed.append(int(batch.index)) or draw(self, batch))
    plain = config(tmp_path / "scenes", FrozenKnnConfig, ks=(1, 5))
    broken = sorted((tmp_path / "scenes" / "annotations" / "training").iterdir())[2]
    Image.new("L", (40, 40)).save(broken)  # void everywhere
    run = {"run": plain.run.model_dump() | {"features": str(tmp_path / "kept"), "pictures": 0}}
    expected = [r.value for r in FrozenSegment.launch(plain, tmp_path / "plain")]
    cfg = validate(plain.model_dump() | run, FrozenKnnConfig, where="test")
    assert [r.value for r in FrozenSegment.launch(cfg, tmp_path / "first")] == expected
    assert passed == [*range(7), *range(7)]
    again = validate(plain.model_dump(exclude={"task", "ks", "temperature"}) | run, FrozenLogRegConfig, where="test")
    assert FrozenSegment.launch(again, tmp_path / "second")
    assert len(passed) == 14
    other = validate(again.model_dump() | {"seed": 1}, FrozenLogRegConfig, where="test")
    assert FrozenSegment.launch(other, tmp_path / "third")
    assert len(passed) == 21


def test_two_processes_find_what_one_finds(torchrun: Torchrun, tmp_path: Path) -> None:
    cfg = config(tmp_path / "scenes", FrozenKnnConfig, ks=(1, 5))
    one = FrozenSegment.launch(cfg, tmp_path / "one")
    (tmp_path / "two.py").write_text(cfg.source())
    torchrun(ROOT / "tools" / "seg_train.py", tmp_path / "two.py", "--work-dir", tmp_path / "two")
    two, _ = results.load(tmp_path / "two" / "results.jsonl")
    assert [(r.metric, r.value, r.world_size) for r in two] == [(r.metric, r.value, 2) for r in one]


def test_options_of_trained_segmenters_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["segment", str(ROOT / "configs" / "segment" / "frozen_knn.py"), "--work-dir", str(tmp_path / "run")]
    assert main([*words, "--debug", "--multi-scale"]) == 1
    assert "inference" in capsys.readouterr().err
    assert main([*words, "--eval", "--checkpoint", "x.pt"]) == 1
    assert "has no checkpoint to evaluate" in capsys.readouterr().err
