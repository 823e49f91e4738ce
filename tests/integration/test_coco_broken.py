"""Broken COCO json: the check and a run both pass, or both name the same defect before the first step.

Both metrics agree.
"""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detect_runs import config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_transfer.core.runs import from_masks
from mae_transfer.data.checks import check_coco
from mae_transfer.data.coco import CocoConfig, encode_runs
from mae_transfer.data.objects import build_samples
from mae_transfer.engine.dist import Dist
from mae_transfer.metrics.coco import CocoMetric, Detections
from mae_transfer.tasks import detect

SPLITS = ("train2017", "val2017")
GIB = 2**30


def ellipse() -> dict[str, Any]:
    y, x = np.mgrid[:40, :60]
    return encode_runs(from_masks(torch.from_numpy(((x - 20) / 9) ** 2 + ((y - 20) / 12) ** 2 < 1)[None])[0], (40, 60))


SQUARE = [[10, 10, 30, 10, 30, 30.5, 10, 30]]
OBJECTS: list[dict[str, Any]] = [
    {"bbox": [10, 10, 20, 20.5], "area": 405, "iscrowd": 0, "segmentation": SQUARE},
    {"bbox": [11, 8, 18, 24], "area": 330.0, "iscrowd": 0, "segmentation": ellipse()},
    {"bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [0, 2400]}},
    {"bbox": [30.5, 5, 20, 30], "segmentation": [[30.5, 5, 50.5, 5, 40, 35], [32, 6, 34, 6, 34, 8, 32, 8]]},
]
SOUND: dict[str, Any] = {
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    "images": [{"id": k, "file_name": f"{k}.png", "height": 40, "width": 60} for k in (9, 4, 0)],
    "annotations": [
        {"id": k, "image_id": image, "category_id": (7, 2)[k % 2], **one}
        for k, (image, one) in enumerate((i, o) for i in (9, 4) for o in OBJECTS)
    ],
}

NUMBERS = [0, 1, -1, 2, 7, 9, 0.0, 0.5, -0.0, 30, 59.5, 60, 61, 1e9, -1e9, 1e300, -1e300, 2**31, 2**53, 2**70, 10**400]
STRANGE = [
    None,
    True,
    False,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "0",
    "x",
    "9",
    "1e5",
    "\0",
    "\udcff",
    "../9.png",
    [],
    {},
    [[]],
]
SHAPES = [
    [1, 2, 3], [1, 2, 3, 4], [10, 10, 30, 30], [60, 40, 5, 5], [-5, -5, 30, 30], [5, 5, 0, 4], [5, 5, 4, -4], [[5, 5]],
    [[10, 10, 30, 30]],
    [[10, 10, None, 10, 40, 40]], [[10, 10, 1e9, 10, 40, 40]], [[[10, 10], [30, 10], [30, 30]]],
    [[10, 10], [30, 10], [30, 30]], [{}],
    [[5, 5, 5, 5, 5, 5]], [[70, 10, 90, 10, 90, 30]], {"size": [40, 60], "counts": [2400]},
    {"size": [40, 60], "counts": [5, 5]}, SQUARE,
    {"size": [60, 40], "counts": [0, 2400]}, {"size": [40, 60], "counts": "P"}, {"size": [40, 60], "counts": "é"},
    {"counts": [0, 2400]},
    {"size": [40, 60], "counts": [5, 0, 0, 2395]}, {"size": [40, 60], "counts": ellipse()["counts"][:-3]},
    {"size": [40, 60], "counts": [1e3]},
]  # fmt: skip
KEYS = [
    "id",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "segmentation",
    "height",
    "width",
    "file_name",
    "name",
]
values = st.sampled_from([*NUMBERS, *STRANGE, *SHAPES]) | st.floats() | st.integers() | st.text(max_size=3)


@st.composite
def change(draw: Callable[..., Any]) -> Callable[[Any], Any]:
    """A change of one place of a json: a value deep in it, a key, an entry or a list."""
    kind = draw(st.sampled_from(["key", "key", "key", "key", "deep", "deep", "gone", "entry", "copy", "list"]))
    part = draw(st.sampled_from(["annotations", "annotations", "annotations", "images", "categories"]))
    place, key, value, deep = (
        draw(one)
        for one in (st.integers(0, 99), st.sampled_from(KEYS), values, st.lists(st.integers(0, 9), max_size=3))
    )

    whole = draw(st.sampled_from([[], None, {}, "x", [value], [value, value]]))

    def apply(content: Any) -> None:
        entries, given = content.get(part), copy.deepcopy(value)
        if kind == "list":
            content[part] = copy.deepcopy(whole)
        if not isinstance(entries, list) or not entries or kind == "list":
            return
        entry = entries[place % len(entries)]
        if kind == "entry":
            entries[place % len(entries)] = given
        elif kind == "copy":
            entries.append(copy.deepcopy(entry))
        elif isinstance(entry, dict):
            key_there = key if key in entry or kind == "key" else sorted(entry)[place % len(entry)] if entry else key
            if kind == "gone":
                entry.pop(key_there, None)
            elif kind == "deep":
                plant(entry, [key_there, *deep], given)
            else:
                entry[key_there] = given

    return apply


def plant(node: Any, path: list[Any], value: Any) -> None:
    """Put a value in where the path leads, or where it ends."""
    for step in path[:-1]:
        below = node[sorted(node)[0] if step not in node else step] if isinstance(node, dict) and node else None
        below = node[step % len(node)] if isinstance(node, list) and node and isinstance(step, int) else below
        if not isinstance(below, list | dict) or not below:
            break
        node = below
    if isinstance(node, dict):
        node[path[-1] if isinstance(path[-1], str) else sorted(node)[path[-1] % len(node)]] = value
    elif isinstance(node, list) and node:
        node[path[-1] % len(node) if isinstance(path[-1], int) else 0] = value


broken = st.lists(change(), max_size=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "annotations").mkdir()
    for split in SPLITS:
        (folder / split).mkdir()
        for image in SOUND["images"]:
            Image.new("RGB", (60, 40), (255, 0, 0)).save(folder / split / image["file_name"])
    return folder


def judge(root: Path, changes: tuple[list[Any], list[Any]], *, masks: bool) -> None:
    """Write the broken jsons, and hold the check against what a run does before its first step."""
    for split, some in zip(SPLITS, changes, strict=True):
        content = copy.deepcopy(SOUND)
        for one in some:
            one(content)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    named = [
        defect
        for split in SPLITS
        for defect in check_coco(CocoConfig(root=str(root), split=split, masks=masks))
        if not defect.policy
    ]
    cfg = config(
        data={
            "root": str(root), "train": {"name": "coco", "split": SPLITS[0]},
            "val": {"name": "coco", "split": SPLITS[1]}, "square": 64,
            "augmentation": {"name": "large_scale_jitter", "size": 64},
            "view": {"name": "shortest_edge", "lengths": (40,), "longest": 64, "flip": 0.0},
        },
        heads={"masks": masks},
    )  # fmt: skip
    try:
        task = detect.Detect(cfg, Dist(torch.device("cpu")))
        task.open_sets("train", "val")
        task.examine()
    except ValueError as error:
        said = str(error)
        assert "\n" not in said, "one line"
        if "training set has" in said:  # a check sees one set at a time
            assert not named
        else:
            assert named, said
            assert any(
                (defect.examples[0] if defect.kind == "unusable data set" else str(defect)) in said for defect in named
            )
        return
    assert not named, named[0]
    source, val, metric = task.train_set, task.val_set, task.metrics["val"]
    samples = build_samples(source, cfg.data, seed=0, divisor=32, training=True)
    for index in range(len(source)):
        drawn = samples.draw(source.read(index), np.random.default_rng(0))
        assert drawn.objects.boxes.isfinite().all()
    listed = [val.objects(index) for index in range(len(val))]
    assert sum(len(one.labels) for one in listed) == len(metric.truth["annotations"])
    figures = [measured(metric, val, listed, backend) for backend in ("pycocotools", "faster-coco-eval")]
    assert figures[0] == pytest.approx(figures[1], abs=1e-9, nan_ok=True)
    assert not np.isnan(figures[0]["bbox/AP"])


def measured(metric: CocoMetric, val: Any, listed: list[Any], backend: Any) -> dict[str, float]:
    """Return the figures of predictions that are near the truth."""
    judge = metric.empty()
    judge.backend = backend
    for index, (image_id, one) in enumerate(zip(val.image_ids.tolist(), listed, strict=True)):
        codes = None if one.masks is None else [encode_runs(runs, val.size(index)) for runs in one.masks]
        scores = torch.linspace(0.9, 0.1, len(one.labels))
        judge.update([image_id], [Detections(one.boxes + 1.0, scores, one.labels, codes)])
    return judge.compute(per_class=True)


def test_what_is_sound_passes(root: Path) -> None:
    for masks in (True, False):
        judge(root, ([], []), masks=masks)
        assert check_coco(CocoConfig(root=str(root), masks=masks)) == []


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(train=broken, val=broken, masks=st.booleans())
def test_check_and_run_agree_on_broken_json(root: Path, train: list[Any], val: list[Any], *, masks: bool) -> None:
    judge(root, (train, val), masks=masks)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(train=broken, val=broken, masks=st.booleans())
def test_check_and_run_agree_on_thousands_of_broken_jsons(
    root: Path, train: list[Any], val: list[Any], *, masks: bool
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    judge(root, (train, val), masks=masks)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIB
