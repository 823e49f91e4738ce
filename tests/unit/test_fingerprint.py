"""Fingerprints of data sets: which changes they detect and ignore, and how they are described."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_transfer.data import Folder, FolderConfig, ShapesConfig, Subset, pick_evenly, sources
from mae_transfer.data.ade import AdeConfig
from mae_transfer.data.coco import Coco, CocoConfig
from mae_transfer.data.dense_shapes import ShapesMapsConfig, ShapesObjectsConfig
from mae_transfer.data.sources import compare_fingerprints, fingerprint


def images(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
            folder / f"{index}.png"
        )
    return folder


def flat(root: Path) -> Folder:
    return FolderConfig(root=str(root), labelled=False).open()


def coco(root: Path, name: str = "cat") -> Coco:
    images(root / "train2017")
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 8, "height": 8} for k in range(3)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": name}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return CocoConfig(root=str(root), masks=False).open()


def test_a_moved_set_and_a_subset_have_the_same_fingerprint(tmp_path: Path) -> None:
    first = fingerprint(flat(images(tmp_path / "a")))
    shutil.move(tmp_path / "a", tmp_path / "deeper" / "b")
    moved = flat(tmp_path / "deeper" / "b")
    assert (first.kind, first.samples, first.files) == ("Folder", 3, 3)
    for source in (moved, pick_evenly(moved, 2), Subset(moved, [0])):
        assert fingerprint(source).digest == first.digest
        assert compare_fingerprints(first.saved(), fingerprint(source)) is None


@pytest.mark.parametrize(("slow", "threads"), [(0.0, 1), (60.0, 0)])
def test_threads_read_the_sizes_of_files_that_are_slow_to_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float, threads: int
) -> None:
    started: list[int] = []
    monkeypatch.setattr(sources, "CHUNK", 2)
    monkeypatch.setattr(sources, "SLOW", slow)
    pool = sources.ThreadPoolExecutor
    monkeypatch.setattr(sources, "ThreadPoolExecutor", lambda count: started.append(count) or pool(count))
    source = flat(images(tmp_path, 7))
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    (tmp_path / "5.png").unlink()
    assert sources._of_files([source.where(index) for index in range(7)], "st_size") == [*sizes[:5], -1, sizes[6]]
    assert started == [sources.THREADS] * threads


def test_changed_files_are_counted_and_named(tmp_path: Path) -> None:
    before = fingerprint(flat(images(tmp_path)))
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes() + b"more")
    for index in range(3, 8):
        shutil.copy(tmp_path / "2.png", tmp_path / f"{index}.png")
    said = compare_fingerprints(before.saved(), fingerprint(flat(tmp_path)))
    assert said is not None
    assert f"3 files of {before.bytes} bytes then, 7 of " in said
    assert "1 removed (0.png); 5 added (3.png, 4.png, 5.png, ...); 1 changed (1.png)" in said


def test_annotations_count_with_their_content(tmp_path: Path) -> None:
    before = fingerprint(coco(tmp_path, "cat"))
    said = compare_fingerprints(before.saved(), fingerprint(coco(tmp_path, "dog")))
    assert said is not None
    assert "1 changed (instances_train2017.json)" in said
    assert before.files == 3


def test_a_map_of_another_size_and_a_class_of_another_name_are_noticed(tmp_path: Path) -> None:
    images(tmp_path / "images" / "training")
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    for index in range(3):
        Image.new("L", (8, 8), 1).save(tmp_path / "annotations" / "training" / f"{index}.png")
    before = fingerprint(AdeConfig(root=str(tmp_path), classes=("sky", "sea")).open())
    assert before.files == 6
    assert (
        compare_fingerprints(before.saved(), fingerprint(AdeConfig(root=str(tmp_path), classes=("sea", "sky")).open()))
        is not None
    )
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).save(
        tmp_path / "annotations" / "training" / "1.png"
    )
    assert "1 changed" in str(
        compare_fingerprints(before.saved(), fingerprint(AdeConfig(root=str(tmp_path), classes=("sky", "sea")).open()))
    )


def test_a_generated_set_has_no_files() -> None:
    for source in (
        ShapesConfig(size=16, length=4).open(),
        ShapesObjectsConfig(size=32, length=4).open(),
        ShapesMapsConfig(size=32, length=4).open(),
    ):
        found = fingerprint(source)
        assert (found.kind, found.samples, found.files, found.bytes) == (type(source).__name__, 4, 0, 0)
        assert compare_fingerprints(found.saved(), fingerprint(source)) is None
