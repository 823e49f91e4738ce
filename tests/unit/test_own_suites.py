"""The suites for own data: rows, seeds, and constants selected on images not used for training or results."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import timm

from mae_transfer import checkpoints
from mae_transfer.cli.main import main
from mae_transfer.data.config import check_holdout
from mae_transfer.suite.graph.plan import Plan, open_plan
from mae_transfer.suite.graph.schema import SuiteConfig

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


def which_backbone() -> tuple[SuiteConfig, Plan]:
    return open_plan(ROOT / "configs/suites/which_backbone.py")


def test_ten_backbones_that_can_be_fetched_by_name_are_judged_without_training_them() -> None:
    cfg, plan = which_backbone()
    references = [str(row.backbone).partition(":")[::2] for row in cfg.rows.values()]
    assert len(references) == 10
    assert all(name in checkpoints.RELEASED for prefix, name in references if prefix == "released")
    known = set(timm.list_models(pretrained=True))
    assert all(name in known for prefix, name in references if prefix == "timm")
    assert {prefix for prefix, _ in references} == {"released", "timm", "random"}
    loaded: list[Any] = [node.load(node.changes) for node in plan.values()]
    assert {(one.task, getattr(getattr(one, "protocol", None), "name", "")) for one in loaded} == {
        ("knn", ""), ("logreg", ""), ("classify", "linear"),
    }  # fmt: skip


def test_what_draws_has_three_seeds_and_what_is_selected_is_selected_on_held_out_images() -> None:
    _, plan = which_backbone()
    seeds: dict[tuple[bool, str], set[int]] = defaultdict(set)
    for node in plan.values():
        cfg: Any = node.load(node.changes)
        seeds[node.row == "random", cfg.task].add(node.seed)
        if cfg.task == "classify":
            assert cfg.data.holdout_fraction > 0
            assert set(cfg.protocol.kinds) == {"linear", "efficient", "cross"}
            assert (set(cfg.protocol.pools), set(cfg.protocol.tokens)) == ({"cls", "mean"}, {"patches", "all"})
            assert cfg.batch <= 64, "a set of 75 images has a batch"
        if cfg.task == "knn":
            assert cfg.ks == (20,)
    drawn = {0, 1, 2}
    assert seeds == {
        (False, "knn"): {0}, (False, "logreg"): {0}, (False, "classify"): drawn,
        (True, "knn"): drawn, (True, "logreg"): drawn, (True, "classify"): drawn,
    }  # fmt: skip


def test_a_plan_for_own_images_is_printed_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(ROOT / "configs/suites/which_backbone.py"), "--work-dir", str(tmp_path / "d"), "--dry-run"]
    assert main(["suite", *command, "--root", f"own={tmp_path}"]) == 0
    assert "0 done, 54 to run" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()


def test_the_layer_of_imagegpt_is_chosen_on_held_out_images() -> None:
    _, plan = open_plan(ROOT / "configs/suites/imagegpt_layer.py")
    tried: list[Any] = [node.load(node.changes) for node in plan.values() if node.role == "point"]
    assert [cfg.backbone.changes for cfg in tried] == [{"depth": depth} for depth in (16, 20, 24, 28, 32)]
    assert all(cfg.data.holdout_fraction > 0 for cfg in tried)
    (final,) = (node for node in plan.values() if node.role == "transfer")
    assert final.sweep is not None
    assert (final.sweep.split, len(final.points)) == ("holdout", 5)
