"""An array computed once: parts, interruption, damage, foreign files, a full disk."""

from __future__ import annotations

import errno
import json
import re
import resource
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae_transfer.engine.dist import Dist
from mae_transfer.locks import locked
from mae_transfer.tasks import cached
from mae_transfer.tasks.cached import compute_once

CPU = Dist(torch.device("cpu"))
ROW = np.dtype([("mean", "<f4", (3,)), ("label", "<i4")])
ABOUT = {"weights": "a", "images": "b"}


def rows(images: range) -> np.ndarray:
    found = np.zeros(len(images), ROW)
    found["mean"], found["label"] = np.array(images)[:, None], images
    return found


def computed(path: Path, compute: Callable[[range], np.ndarray] = rows, *, images: int = 37, batch: int = 4) -> None:
    compute_once(path, compute, CPU, images=images, row=ROW, batch=batch, about=ABOUT)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cached, "IMAGES_PER_PART", 10)
    return tmp_path / "kept" / "features.npy"


def test_rows_are_computed_once_in_parts_of_whole_batches(file: Path) -> None:
    asked = []

    def counted(images: range) -> np.ndarray:
        asked.append(images)
        return rows(images)

    computed(file, counted)
    computed(file, counted)
    assert asked == [range(0, 8), range(8, 16), range(16, 24), range(24, 32), range(32, 37)]
    np.testing.assert_array_equal(np.load(file, mmap_mode="r"), rows(range(37)))
    assert json.loads(file.with_suffix(".json").read_text())["about"] == ABOUT
    assert sorted(path.name for path in file.parent.iterdir()) == [".features.lock", "features.json", "features.npy"]


def test_an_interruption_loses_one_part(file: Path) -> None:
    asked = []

    def third_fails(images: range) -> np.ndarray:
        asked.append(images.start)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return rows(images)

    with pytest.raises(KeyboardInterrupt):
        computed(file, third_fails)
    assert not file.exists()
    computed(file, third_fails)
    assert asked == [0, 8, 16, 16, 24, 32]
    np.testing.assert_array_equal(np.load(file), rows(range(37)))


def changed_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def of_other_weights(file: Path) -> None:
    note = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**note, "about": {**ABOUT, "weights": "c"}}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), r"is damaged \(.*\)"),
        (lambda file: file.write_bytes(b""), r"is damaged \(.*\)"),
        (changed_byte, r"is damaged \(its checksum is not \w{8}\)"),
        (lambda file: np.save(file, np.zeros((37, 3))), r"has float64 \(37, 3\) instead of .* \(37,\)"),
        (lambda file: np.save(file, rows(range(36))), r"has .* \(36,\) instead of .* \(37,\)"),
        (of_other_weights, "has rows of other weights: 'c' instead of 'a'"),
        (lambda file: file.with_suffix(".json").unlink(), r"features.json, which describes it, cannot be read \(.*\)"),
        (lambda file: file.with_suffix(".json").write_text("{}"), "features.json, which describes it, cannot be read"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(file: Path, damage: Callable[[Path], object], words: str) -> None:
    computed(file)
    damage(file)
    with pytest.raises(
        ValueError, match=f"{re.escape(str(file))}.* {words}.*[:;] delete it, then it is computed again"
    ):
        computed(file)
    file.unlink()
    computed(file)
    np.testing.assert_array_equal(np.load(file), rows(range(37)))


def test_a_damaged_part_is_named(file: Path) -> None:
    def damaging(images: range) -> np.ndarray:
        for part in file.parent.glob(".features.0-8.npy"):
            part.write_bytes(part.read_bytes()[:-1])
        return rows(images)

    with pytest.raises(ValueError, match=r"\.features\.0-8\.npy is damaged .*: delete it, then it is computed again"):
        computed(file, damaging)
    assert not file.exists()


def test_a_checksum_of_many_blocks_covers_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "BLOCK", 8)
    monkeypatch.setattr(cached, "BLOCKS", 4)
    path, content = tmp_path / "file", bytes(100)
    path.write_bytes(content)
    plain = cached._checksum(path)
    for place, seen in ((0, True), (99, True), (15, False)):
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert (cached._checksum(path) != plain) is seen


def test_a_full_disk_leaves_nothing_half_written(file: Path) -> None:
    """The system's limit on file sizes acts like a full disk: parts fit, the whole file does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match=re.escape(f"{file} was not written (File too large): raise the limit")):
            computed(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in file.parent.iterdir() if ".features." not in path.name} == set()
    computed(file)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"features\.npy was not written \(Not a directory\)"):
        computed(tmp_path / "file" / "kept" / "features.npy")


def test_who_waits_for_another_run_looks_again_so_that_other_ranks_do_not_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "PATIENCE_S", 0.01)
    lock = tmp_path / ".tokens.lock"
    with ExitStack() as mine:
        with locked(lock):
            assert not cached._acquired(mine, tmp_path / "tokens.npy")
        assert cached._acquired(mine, tmp_path / "tokens.npy")


def refused(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_complete_file_needs_no_right_to_write(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed(file)
    with locked(file.with_name(".features.lock")):
        computed(file)
    monkeypatch.setattr(cached, "locked", refused)
    computed(file)
    file.unlink()
    with pytest.raises(OSError, match=re.escape(f"{file} was not written (Permission denied): ")):
        computed(file)


def test_what_killed_runs_left_is_removed(file: Path) -> None:
    file.parent.mkdir()
    for left in (
        "..features.0-6.npy.tmp", "..features.0-6.npy.1-2.tmp", ".features.0-6.npy", ".features.npy.tmp",
        ".features.npy.1-2.tmp", ".features.json.1-2.tmp",
    ):  # fmt: skip
        (file.parent / left).write_bytes(b"half")
    (file.parent / "..other.0-6.npy.tmp").write_bytes(b"half")
    computed(file)
    names = {path.name for path in file.parent.iterdir()}
    assert names == {".features.lock", "features.json", "features.npy", "..other.0-6.npy.tmp"}
