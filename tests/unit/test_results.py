"""results.py: what is written is read back; damaged lines are named and the rest is used."""

import json
import platform
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mae_transfer import disk
from mae_transfer.record import Record
from mae_transfer.results import Result, append, device_name, load

RECORD = {
    "run": "r", "task": "classify", "method": "m", "scale": "mini", "config_digest": "c", "recipe_digest": "d",
    "recipe": {}, "seed": 0, "epochs": 10.0, "batch": 64, "sittings": (),
}  # fmt: skip


def result(**changes: object) -> Result:
    fields = {
        "run": "r", "task": "pretrain", "protocol": "p", "dataset": "d", "split": "val", "metric": "loss", "value": 1.0,
        "unit": "u",
        "higher_is_better": False, "seed": 0, "backbone": "vit", "pretrain": "none", "params": 1, "epochs": 1.0,
        "steps": 1, "images_seen": 1,
        "global_batch": 1, "world_size": 1, "precision": "float32", "wall_s": 1.0, "images_per_s": 1.0, "device": "cpu",
        "engine": "e",
        "scale": "mini", "config_digest": "0",
    }  # fmt: skip
    return Result.model_validate(fields | changes)


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    append(path, [result()])
    append(path, [result(seed=1), result(seed=2, status="failed", value=None, reason="out of memory")])
    loaded, defects = load(path)
    assert defects == []
    assert [r.seed for r in loaded] == [0, 1, 2]
    assert loaded[0] == result(created_at=loaded[0].created_at, together=1)


def test_lines_of_a_run_share_its_record_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    one, another = (RECORD | {"seed": seed} for seed in (0, 1))
    append(path, [result(record=one, metric=metric) for metric in ("top1", "top5")])
    append(path, [result(record=another, metric="top1", seed=1)])
    first, second, other = load(path)[0]
    assert first.record is second.record
    assert other.record == Record.model_validate(another)
    found, _ = load(path)
    found.clear()  # what a reader does to its list
    path.write_text(path.read_text().replace('"metric":"top5"', '"metric":"top9"'))
    assert [one.metric for one in load(path)[0]] == ["top1", "top9", "top1"]


def test_a_line_of_an_earlier_version_loads_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    old = result().model_dump(mode="json", exclude={"record", "together", "matmul"})
    old |= {"commit": "abc", "versions": {"torch": "2.6"}}
    path.write_text(json.dumps(old) + "\n")
    (loaded,), defects = load(path)

    assert (loaded.record, loaded.revisions, defects) == (None, ("abc",), [])


def test_a_torn_last_line_swallows_no_number_and_what_a_run_wrote_before_is_replaced(tmp_path: Path) -> None:
    path, numbers = tmp_path / "results.jsonl", [result(metric=f"m{k}", value=float(k)) for k in range(20)]
    append(path, [result(epochs=0.0)])
    other = path.read_bytes()
    append(path, numbers)
    path.write_bytes(path.read_bytes()[:-4000])
    assert len(load(path)[1]) == 1
    written = append(path, numbers)
    loaded, defects = load(path)
    assert (loaded[1:], defects) == (written, [])
    assert path.read_bytes().startswith(other)
    assert [r.together for r in written] == [20] * 20
    append(path, [result(epochs=0.0)])
    assert len(load(path)[0]) == 21, "the same evaluation of the same weights is replaced"
    append(path, [result(epochs=0.0, checkpoint_sha256="1" * 64)])
    assert len(load(path)[0]) == 22, "other weights are another number"


def test_a_disk_that_is_full_leaves_all_numbers_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [result()])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"results\.jsonl was not written \(No space left on device\): free some space"
    ) as caught:
        append(path, [result(metric=f"m{k}") for k in range(20)])
    assert caught.value.errno == 28
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".results.lock", "results.jsonl"]


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    fields = result().model_dump(mode="json", exclude={"unreadable", "together"})
    (tmp_path / "results.jsonl").write_text(json.dumps(fields) + "\n")
    (read,), defects = load(tmp_path / "results.jsonl")
    assert (read.unreadable, read.together, defects) == (0, None, [])


def test_damaged_lines_are_named_by_number_and_the_rest_is_used(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [result(), result(seed=1)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:40], "{}", lines[1].replace('"seed":1', '"seed":1,"sed":2')]) + "\n")
    loaded, defects = load(path)
    assert [r.seed for r in loaded] == [0]
    assert [d.split(":")[0].split(", ")[-1] for d in defects] == ["line 2", "line 3", "line 4"]
    assert "sed" in defects[2]


def test_odd_characters_and_foreign_bytes_cost_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [result(protocol="a\u2028b")])
    path.write_bytes(path.read_bytes() + b"\xff\xfe broken\n")
    append(path, [result(seed=1)])
    loaded, defects = load(path)
    assert [(r.seed, r.protocol) for r in loaded] == [(0, "a\u2028b"), (1, result().protocol)]
    assert ["line 2" in defect for defect in defects] == [True]
    path.write_bytes(b"")
    assert load(path) == ([], [])


def test_a_result_of_before_the_policy_was_recorded_is_read() -> None:
    assert result().matmul is None
    assert result(matmul="tf32").matmul == "tf32"
    with pytest.raises(ValidationError):
        result(matmul="fast")


def test_a_nan_is_no_result() -> None:
    with pytest.raises(ValidationError):
        result(value=float("nan"))


def test_a_cpu_is_named_with_what_its_rounding_depends_on() -> None:
    instructions = torch.backends.cpu.get_cpu_capability()
    named = re.fullmatch(rf"cpu \((.+), {instructions}, 1 thread\)", device_name(torch.device("cpu")))
    assert named is not None
    information = Path("/proc/cpuinfo")
    assert not information.exists() or named[1] in information.read_text() + platform.machine()
