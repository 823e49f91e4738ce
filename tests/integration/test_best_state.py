"""select="best": the state that is best on held-out images is kept and reported, and a resume gives the same one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detect_runs
import pytest
import torch
from toy import config, new_state

from mae_transfer import results
from mae_transfer.config import Schema, validate
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist
from mae_transfer.tasks import best, classify, detect, segment
from mae_transfer.tasks.workdir import WorkDir

RUN = {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "progress": False}
ENCODER = {"size": None, "dim": 16, "depth": 4, "heads": 2, "patch": 8, "image_size": 32}
SHAPES = {"name": "shapes", "size": 32}
SETS = {"train": {**SHAPES, "length": 24}, "val": {**SHAPES, "length": 6, "seed": 1}}
COMMON = {"scale": "mini", "batch": 4, "precision": "float32", "select": "best", "evaluate_epochs": 0.5}
SMALL = {
    "optim": {"lr": 3e-3}, "epochs": 1.0, "backbone": {"encoder": ENCODER}, "run": {**RUN, "save_every": 2},
}  # fmt: skip


def classified() -> Schema:
    data = {**SETS, "size": 32, "holdout_fraction": 0.4}
    values = {
        **COMMON,
        **SMALL,
        "data": data,
        "protocol": {"name": "finetune", "mixup": 0.0, "cutmix": 0.0, "head_std": 0.1},
    }
    return validate(values, classify.ClassifyConfig, where="test")


def detected() -> Schema:
    base = detect_runs.values()
    held = {"name": "shapes", "size": 64, "length": 4, "seed": 2}
    changes = {
        **COMMON,
        "epochs": 2.0,
        "data": {**base["data"], "holdout": held},
        "run": {**base["run"], "pictures": 0, "save_every": 2},
    }
    return detect_runs.config(**changes)


def segmented() -> Schema:
    data = {**SETS, "holdout": {**SHAPES, "length": 4, "seed": 2}, "size": 32, "scale": (64, 32)}
    values = {**COMMON, **SMALL, "data": data, "protocol": {"name": "upernet", "channels": 8}}
    return validate(values | {"run": {**values["run"], "pictures": 0}}, segment.SegmentConfig, where="test")


TASKS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "classify": (classified, classify.Classify, "holdout_top1"),
    "detect": (detected, detect.Detect, "holdout/bbox/AP"),
    "segment": (segmented, segment.Segment, "holdout/mIoU"),
}


def evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"]


def values(written: list[results.Result], split: str) -> dict[str, float]:
    return {r.metric: r.value for r in written if r.split == split}


@pytest.mark.parametrize("task", TASKS)
def test_the_best_state_is_on_disk_and_is_what_is_reported(task: str, tmp_path: Path) -> None:
    make, cls, metric = TASKS[task]
    cfg = make()
    written = cls.launch(cfg, tmp_path)
    found = evaluations(tmp_path)
    assert len(found) >= 2
    scores = [row.get(metric, -math.inf) for row in found]
    assert max(scores) > -math.inf
    kept = checkpoint.load(tmp_path / "checkpoints/best.pt")
    assert kept["step"] == found[scores.index(max(scores))]["step"]
    assert "optimizer" not in kept
    again = cls.evaluate_checkpoint(cfg, str(tmp_path / "checkpoints/best.pt"), None)
    assert values(again, "val") == pytest.approx(values(written, "val"), nan_ok=True)
    assert values(written, "holdout")
    assert checkpoint.newest(tmp_path / "checkpoints") != tmp_path / "checkpoints/best.pt"


def test_a_resumed_run_keeps_the_same(tmp_path: Path) -> None:
    cfg: Any = segmented()
    whole = segment.Segment.launch(cfg, tmp_path / "whole")
    segment.Segment.launch(cfg, tmp_path / "parts")
    folder = tmp_path / "parts"
    for path in [folder / "results.jsonl", *sorted((folder / "checkpoints").glob("step_*.pt"))[-1:]]:
        path.unlink()
    resumed = segment.Segment.launch(cfg, folder, resume=True)
    assert values(resumed, "val") == values(whole, "val")
    assert (
        checkpoint.load(folder / "checkpoints/best.pt")["step"]
        == checkpoint.load(tmp_path / "whole/checkpoints/best.pt")["step"]
    )


def test_the_weights_of_the_best_step_come_back(tmp_path: Path) -> None:
    """Scores of 0.1, 0.5, 0.5, nan and 0.2: the second evaluation is kept, and the first of equals."""
    state = new_state(config(), Dist(torch.device("cpu")))
    scores = iter([0.1, 0.5, 0.5, math.nan, 0.2])
    selection = best.Selection("holdout/x", lambda model, step: {"x": float(step)})
    folder = WorkDir(tmp_path)
    evaluate = best.keeping_best(selection, state, folder, lambda model, step: {"holdout/x": next(scores)})
    for step in range(1, 6):
        state.step = step
        with torch.no_grad():
            for parameter in state.bare.parameters():
                parameter.fill_(float(step))
        evaluate(state.evaluated, step)
    said = best.restore_best(selection, state, folder)
    assert "step 2 (holdout/x 50.00%)" in said
    assert {value for tensor in state.evaluated.parameters() for value in tensor.flatten().tolist()} == {2.0}
    assert state.metrics == {"holdout/x": 0.5, "x": 2.0}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"select": "last"}, "data.holdout is given, but select='last' does not use it"),
        ({"data": {**SETS, "size": 32, "scale": (64, 32)}}, "data.holdout names no images"),
        (
            {"data": {**SETS, "holdout": {**SHAPES, "length": 3, "seed": 1}, "size": 32, "scale": (64, 32)}},
            "shares images with data.val",
        ),
        (
            {"data": {**SETS, "holdout": {**SHAPES, "length": 3}, "size": 32, "scale": (64, 32)}},
            "shares images with data.train: .*part",
        ),
    ],
)
def test_a_selection_needs_images_that_are_held_out(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        validate(segmented().model_dump() | changes, segment.SegmentConfig, where="test")


def test_parts_of_one_set_may_not_overlap() -> None:
    coco = {"name": "coco", "split": "train2017"}
    base = {**detect_runs.values()["data"], "root": "x", "val": {"name": "coco", "split": "val2017"}}
    for train, held, fits in (
        ((0.0, 0.9), (0.9, 1.0), True),
        ((0.0, 0.95), (0.9, 1.0), False),
        ((0.0, 1.0), (0.9, 1.0), False),
    ):
        data = {**base, "train": {**coco, "part": train, "skip_empty": True}, "holdout": {**coco, "part": held}}
        if fits:
            detect_runs.config(data=data, select="best")
        else:
            with pytest.raises(ValueError, match=r"shares images with data\.train"):
                detect_runs.config(data=data, select="best")
