"""graph/shape.py: every run gets a shape that its batch can be split over, at most as large as was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_transfer.suite.graph.plan import Node, open_plan
from mae_transfer.suite.graph.schema import Resources
from mae_transfer.suite.graph.shape import Shape, shape_of, shapes_of

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
