"""graph/shape.py: every run gets a shape that its batch can be split over, at most as large as was asked for."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mae_transfer.cli.main import call
from mae_transfer.config import read, validate
from mae_transfer.suite.graph.plan import Expansion, Node, open_plan
from mae_transfer.suite.graph.schema import Resources, SuiteConfig
from mae_transfer.suite.graph.shape import Shape, configs_of, shape_of, shapes_of, wall_hours
from mae_transfer.suite.local.view import show_plan
from mae_transfer.suite.store.work import Work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table7() -> dict[str, Node]:
    return open_plan(ROOT / "configs" / "suites" / "table7.py")[1]


def node(kind: str, config: str, *, resources: Resources | None = None, **changes: object) -> Node:
    path = ROOT / "configs" / f"{config}.py"
    return Node(
        "a/b/seed0", "transfer", "a", kind, path, changes, 0, (), resources=resources or Resources(), hours=64.0
    )


@pytest.mark.parametrize(
    ("kind", "config", "asked", "nodes", "gpus"),
    [
        ("pretrain", "pretrain/mae_vit_base_16_1600e", Shape(4, 8), 4, 8),  # batch 4096
        ("pretrain", "pretrain/mae_vit_base_16_1600e", Shape(3, 8), 2, 8),  # 24 processes cannot share it
        ("pretrain", "pretrain/mae_vit_base_16_1600e", Shape(1, 6), 1, 4),
        ("cls_train", "classify/finetune_vit_base", Shape(4, 8), 4, 8),
        ("cls_train", "classify/mini_knn", Shape(4, 8), 1, 1),
        ("pca", "pretrain/mae_vit_base_16_1600e", Shape(4, 8), 1, 1),
        ("det_train", "detect/mask_rcnn_vit_base_li2021_100ep", Shape(4, 8), 4, 8),  # batch 64
        ("det_train", "detect/mask_rcnn_vit_base_li2021_100ep", Shape(16, 8), 8, 8),
        ("seg_train", "segment/upernet_vit_base_160k", Shape(4, 8), 1, 8),  # batch 16, two images per batch norm
        ("seg_train", "segment/upernet_vit_base_160k", Shape(2, 4), 2, 4),
    ],
)
def test_a_run_takes_the_largest_shape_that_splits_its_batch(
    kind: str, config: str, asked: Shape, nodes: int, gpus: int
) -> None:
    shape = shape_of(node(kind, config), asked)
    assert (shape.nodes, shape.gpus) == (nodes, gpus)
    assert shape.hours == 64.0 / (nodes * gpus)


def test_a_step_lowers_the_bounds_and_names_cores_and_memory() -> None:
    limits = Resources(nodes=2, gpus=4, cpus=6, memory=30.0)
    run = node("pretrain", "pretrain/mae_vit_base_16_1600e", resources=limits)
    assert shape_of(run, Shape(4, 8))[:4] == (2, 4, 24, 120.0)
    assert shape_of(run, Shape(4, 8, cpus=16, memory=64.0))[:4] == (2, 4, 16, 64.0)
    several = node("cls_train", "classify/mini_knn", resources=Resources(gpus=4))
    assert shape_of(several, Shape(1, 8)).gpus == 4


def test_cores_and_memory_follow_the_loader_workers() -> None:
    run = node("pretrain", "pretrain/mae_vit_base_16_1600e", **{"run.workers": 10})
    assert shape_of(run, Shape(1, 8))[2:4] == (96, 8 * 28.0)


def test_mixup_gets_an_even_number_of_images() -> None:
    run = node("cls_train", "classify/finetune_vit_base", batch=24, **{"run.device_batch": None})
    assert shape_of(run, Shape(1, 8)).gpus == 6  # three images each cannot be paired


def test_all_crops_of_an_image_stay_in_one_forward_pass() -> None:
    changes = {"batch": 16, "run.device_batch": None, "data.crops_per_image": 4}
    assert shape_of(node("pretrain", "pretrain/mae_vit_base_16_1600e", **changes), Shape(1, 8)).gpus == 4


def test_a_batch_that_no_shape_splits_is_an_error_before_anything_starts() -> None:
    run = node("pretrain", "pretrain/mae_vit_base_16_1600e", batch=96, **{"run.device_batch": 36})
    with pytest.raises(ValueError, match=r"run 'a/b/seed0': batch = 96 .*change run.device_batch"):
        shape_of(run, Shape(1, 1))
    assert len(shapes_of({run.name: run}, Shape(1, 1))[1]) == 1


def test_the_flagship_command_fits(table7: dict[str, Node]) -> None:
    shapes, errors = shapes_of(table7, Shape(4, 8))
    assert not errors
    assert {shapes[name].processes for name in table7 if "ade" in name} == {8}
    assert {shapes[name].processes for name in table7 if "ade" not in name} == {32}


def test_the_plan_prints_shapes_wall_time_and_device_hours_of_each_device(
    table7: dict[str, Node], tmp_path: Path
) -> None:
    some = {name: run for name, run in table7.items() if name.startswith("pixel_w_norm_vit_b/") and "coco" not in name}
    shapes, _ = shapes_of(some, Shape(4, 8))
    text = io.StringIO()
    work = Work(some, tmp_path, suite="table 7")
    show_plan(work, Console(file=text, width=200), shapes, misfits=["run 'x': batch"], jobs=None)
    printed = text.getvalue()
    assert "4 x 8" in printed
    assert "1 x 8" in printed
    # hours of a device: 319 of pretraining and 3 x 37 of fine-tuning on 32 GPUs, 3 x 212 of segmentation on 8
    waits = "h of wall time in the shapes above, if no job waits for devices"
    assert f"GPU at 100 TFLOP/s: about 430 device hours, {(319 + 37) / 32:.3g} {waits}" in printed
    assert f"RTX 3090: about 636 device hours, {212 / 8:.3g} {waits}" in printed
    assert "does not fit: run 'x': batch" in printed


def test_nothing_starts_where_a_run_fits_into_no_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.py").write_text(f'''title = "t"
tables = ("3",)
rows = {{"a": dict(config="{ROOT}/configs/mini/pretrain.py", set={{"batch": 48, "run.device_batch": 36}}, hours=1.0)}}
transfer = {{"knn": dict(tool="cls_train", config="{ROOT}/configs/classify/mini_knn.py", hours=0.5)}}
''')
    command = [str(tmp_path / "suite.py"), "--work-dir", str(tmp_path / "d")]
    assert call("suite", command) == 1
    assert "nothing was started: run 'a/pretrain/seed0': batch = 48" in capsys.readouterr().err
    assert call("suite", [*command, "--dry-run"]) == 0
    assert "does not fit: run 'a/pretrain/seed0': batch = 48" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()


def test_wall_time_counts_what_waits_and_what_runs_side_by_side() -> None:
    first = node("pretrain", "mini/pretrain")._replace(name="a", hours=4.0)
    second, third = (first._replace(name=name, hours=2.0, needs=("a",)) for name in "bc")
    plan = {each.name: each for each in (first, second, third)}
    shapes = {"a": Shape(1, 2, hours=2.0), "b": Shape(hours=2.0), "c": Shape(hours=2.0)}
    assert wall_hours(plan, shapes, set(plan), jobs=1) == 6.0
    assert wall_hours(plan, shapes, set(plan), jobs=2) == wall_hours(plan, shapes, set(plan), jobs=None) == 4.0
    assert wall_hours(plan, shapes, {"b", "c"}, jobs=None) == 2.0


SUITES = sorted((ROOT / "configs" / "suites").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *SUITES, ROOT / "mae_transfer" / "cli" / "suite.py"]
ONLY_SLOW = pytest.mark.slow


def documented_shapes() -> set[Shape]:
    """Return the shapes of every command of the documentation."""
    found = {Shape()}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"reproduce\.py[^\n`]*(?:\n[ ]{11,}[^\n`]*)*", text):
            options = {name: int(number) for name, number in re.findall(r"--(nodes|gpus-per-node) (\d+)", command)}
            found.add(Shape(options.get("nodes", 1), options.get("gpus-per-node", 1)))
    return found


def test_the_shapes_of_the_documentation_are_found() -> None:
    assert {Shape(1, 1), Shape(1, 8), Shape(4, 8)} <= documented_shapes()


@pytest.mark.parametrize(
    "suite",
    [
        pytest.param(suite, marks=() if suite.stem in ("mini", "paper", "table7") else ONLY_SLOW, id=suite.stem)
        for suite in SUITES
    ],
)
def test_every_run_of_every_suite_fits_into_every_shape_of_the_documentation(suite: Path) -> None:
    cfg = validate(read(suite), SuiteConfig, where=str(suite))
    unlike: dict[str, Node] = {}
    for run in Expansion(cfg, suite.parent).nodes():
        changes: dict[str, Any] = {
            key: value for key, value in run.changes.items() if key not in ("seed", "data.root", "backbone.reference")
        }
        unlike.setdefault(f"{run.kind} {run.config} {changes} {bool(run.points)}", run)
    for run in unlike.values():
        configs = list(configs_of(run))
        for asked in documented_shapes():
            shape = shape_of(run, asked, configs=configs)
            assert shape.nodes <= asked.nodes
            assert shape.gpus <= asked.gpus
            if run.kind != "pca" and getattr(configs[0], "batch", 0) >= 1024:
                assert shape.processes == asked.processes, "the paper's large batches use the whole shape"
