"""The suites for own data: five rows, three seeds, rates selected on images not used for training or results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mae_transfer.data.config import check_holdout
from mae_transfer.suite.graph.plan import open_plan

ROOT = Path(__file__).parents[2]
ROWS = ["own MAE", "released MAE", "DINO", "supervised", "random"]
TASKS = {"detection": "detect", "segmentation": "segment", "classification": "finetune"}


@pytest.mark.parametrize("task", TASKS)
def test_five_rows_three_rates_three_seeds(task: str) -> None:
    cfg, plan = open_plan(ROOT / f"configs/suites/own_{task}.py")
    assert list(cfg.rows) == ROWS
    runs = [node for node in plan.values() if f"/{TASKS[task]}/" in node.name]
    assert len([node for node in runs if node.role == "point"]) == 5 * 3
    assert {node.seed for node in runs if node.role == "transfer"} == {0, 1, 2}
    assert len([node for node in runs if node.role == "transfer"]) == 5 * 3
    assert [node.name for node in plan.values() if node.kind == "pretrain"] == ["own_mae/pretrain/seed0"]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_chosen_is_chosen_on_held_out_images(task: str) -> None:
    _, plan = open_plan(ROOT / f"configs/suites/own_{task}.py")
    reported: Any = next(
        n.load(n.changes) for n in plan.values() if n.role == "transfer" and f"/{TASKS[task]}/" in n.name
    )
    for node in plan.values():
        if node.role == "point":
            tried: Any = node.load(node.changes)
            if task == "classification":
                assert tried.data.holdout_fraction > 0
                assert node.sweep is not None
                assert node.sweep.split == "holdout"
            else:
                check_holdout(tried.data.val, {"train": tried.data.train, "val": reported.data.val})
