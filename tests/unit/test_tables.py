"""suite/tables.py: a hand-made record, its tables computed by hand."""

from pathlib import Path

import pytest

from mae_transfer import results
from mae_transfer.results import Result
from mae_transfer.suite import tables
from mae_transfer.suite.published import PUBLISHED


def result(protocol: str, value: float | None, **changes: object) -> Result:
    fields = {
        "run": "r", "task": "classify", "protocol": protocol, "dataset": "imagenet", "split": "val", "metric": "top1", "value": value, "unit": "%",
        "higher_is_better": True, "seed": 0, "backbone": "vit_base/16", "pretrain": "MAE norm_pixel, random 75%, 1600 ep", "params": 1,
        "epochs": 1.0, "steps": 1, "images_seen": 1, "tokens_per_image": 197, "global_batch": 1, "world_size": 1, "precision": "float32",
        "wall_s": 1.0, "images_per_s": 1.0, "device": "cpu", "engine": "e", "scale": "paper", "config_digest": "0", "commit": "a",
        "created_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Result.model_validate(fields | changes)


def line(table: str, found: list[Result], pretrain: str, column: str) -> dict[str, str]:
    rows = [tables.cells(row) for row in tables.lines(table, found) if row.pretrain.startswith(pretrain) and row.column == column]
    assert len(rows) == 1
    return rows[0]


def test_a_run_at_paper_scale_stands_beside_the_published_number() -> None:
    found = [result("finetune", 83.5), result("finetune", 83.9, seed=1), result("finetune", 83.1, seed=1, created_at="2025-01-01T00:00:00+00:00")]
    row = line("3", found, "MAE", "ViT-B/16")
    assert (row["published"], row["yours"], row["seeds"], row["difference"]) == ("83.6", "83.70 [83.50..83.90]", "2", "+0.10")
    assert line("3", found, "MAE", "ViT-L/16")["yours"] == "-"


def test_a_smaller_run_never_stands_beside_one() -> None:
    found = [result("finetune", 90.0, scale="mini")]
    rows = [tables.cells(row) for row in tables.lines("3", found) if row.ours]
    assert [(row["published"], row["difference"], row["scale"]) for row in rows] == [("-", "-", "mini")]


def test_only_what_belongs_is_in_a_table() -> None:
    found = [
        result("linear", 67.0), result("linear", 66.0, split="holdout"), result("linear", 88.0, metric="top5"),
        result("linear-1%-labels", 40.0), result("finetune", 83.0), result("linear", 68.4, dataset="other"),
    ]  # fmt: skip
    ours = [row for row in tables.lines("12", found) if row.ours]
    assert [(row.ours.mean, row.dataset) for row in ours if row.ours] == [(67.0, "imagenet"), (68.4, "other")]


def test_figure_9_reads_the_tuned_blocks_and_a_hole_shows_its_reason() -> None:
    found = [result("partial-4", 84.0, backbone="vit_large/16"), result("partial-half", None, status="failed", reason="out of memory")]
    assert line("figure 9", found, "MAE", "4")["difference"] == "-0.20"
    assert line("figure 9", found, "MAE", "half")["yours"] == "failed: out of memory"


def test_448_pixels_are_a_column_of_their_own() -> None:
    found = [result("finetune", 87.7, backbone="vit_huge/14", tokens_per_image=1025)]
    assert line("3", found, "MAE", "ViT-H/14 at 448")["difference"] == "-0.10"


def test_damaged_lines_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    results.append(tmp_path / "a" / "results.jsonl", [result("linear", 67.0)])
    with (tmp_path / "a" / "results.jsonl").open("a") as file:
        file.write("{broken\n")
    found, defects = tables.load([tmp_path])
    assert len(found) == 1
    assert "line 2" in defects[0]
    with pytest.raises(ValueError, match="absent does not exist"):
        tables.load([tmp_path / "absent"])
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="no results found"):
        tables.load([tmp_path / "b"])


def test_published_numbers_are_unique_and_name_their_source() -> None:
    assert len({(p.table, p.pretrain, p.column) for p in PUBLISHED}) == len(PUBLISHED)
    assert all("arXiv" in p.source and 0 < p.value < 100 for p in PUBLISHED)
    assert {p.table for p in PUBLISHED} <= tables.LAYOUTS.keys()
