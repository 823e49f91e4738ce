"""suite/tables.py and what it stands on: a hand-made record, its tables computed by hand."""

from pathlib import Path

import pytest

from mae_transfer import results
from mae_transfer.config import load
from mae_transfer.results import Result
from mae_transfer.suite import records, tables
from mae_transfer.suite.records import Note, Record
from mae_transfer.tasks.detect import DetectConfig
from tests.unit import as_published

ROOT = Path(__file__).parent.parent.parent
MAE = "MAE norm_pixel, random 75%, 1600 ep"


def result(protocol: str, value: float | None, **changes: object) -> Result:
    fields = {
        "run": "r", "task": "classify", "protocol": protocol, "dataset": "imagenet", "split": "val", "metric": "top1",
        "value": value, "unit": "%",
        "higher_is_better": True, "seed": 0, "backbone": "vit_base/16", "pretrain": MAE, "params": 1,
        "epochs": 100.0, "steps": 160_000, "images_seen": 1, "tokens_per_image": 197, "global_batch": 1,
        "world_size": 1, "precision": "float32",
        "wall_s": 3600.0, "images_per_s": 1.0, "device": "cpu", "engine": "e", "scale": "paper", "config_digest": "0",
        "commit": "a",
        "created_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    fields |= changes
    return Result.model_validate({"record": as_published.transfer(fields)} | fields)


def recorded(*found: Result, row: str | None = None) -> list[Record]:
    note = Note(suite="s", name="n", role="transfer", row=row, identity="", command=[]) if row else None
    return [Record(each, Path("results.jsonl"), note) for each in found]


def line(table: str, found: list[Record], row: str, column: str) -> dict[str, str]:
    rows = [tables.cells(each) for each in tables.lines(table, found) if (each.row, each.column) == (row, column)]
    assert len(rows) == 1
    return rows[0]


def test_a_run_at_paper_scale_stands_beside_the_published_number_with_the_spread_of_its_seeds() -> None:
    old = result("finetune", 83.1, seed=1, created_at="2025-01-01T00:00:00+00:00")
    found = recorded(result("finetune", 83.5), result("finetune", 83.9, seed=1), old)
    row = line("3", found, MAE, "ViT-B/16")
    assert (row["published"], row["yours"], row["difference"], row["seed spread"]) == (
        "83.6",
        "83.70 [83.50..83.90] (2)",
        "+0.10",
        "0.40",
    )
    assert line("3", found, "MAE", "ViT-L/16")["yours"] == "-"


def test_one_seed_has_no_spread_and_says_so() -> None:
    assert line("3", recorded(result("finetune", 83.5)), MAE, "ViT-B/16")["seed spread"] == "one seed"


@pytest.mark.parametrize("changes", [
    {"scale": "mini"}, {"scale": "small"}, {"dataset": "tiny-imagenet"}, {"pretrain": "MAE token, random 75%, 1600 ep"},
    {"pretrain": "MAE norm_pixel, random 75%, 300 ep"}, {"pretrain": "MAE norm_pixel, block 75%, 1600 ep"},
    {"epochs": 50.0},
])  # fmt: skip
def test_what_did_something_else_never_stands_beside_a_published_number(changes: dict[str, object]) -> None:
    ours = [
        tables.cells(each) for each in tables.lines("3", recorded(result("finetune", 90.0, **changes))) if each.ours
    ]
    assert [(row["published"], row["difference"]) for row in ours] == [("-", "-")]


def test_only_what_belongs_is_in_a_table() -> None:
    found = recorded(
        result("linear", 67.0), result("linear", 66.0, split="holdout"), result("linear", 88.0, metric="top5"),
        result("linear-1%-labels", 40.0), result("finetune", 83.0), result("linear", 68.4, dataset="other"),
        result("linear", 50.0, dataset="inat2018"),
    )  # fmt: skip
    ours = [each for each in tables.lines("12", found) if each.ours]
    assert [(each.ours.mean, each.dataset) for each in ours if each.ours] == [(67.0, "imagenet"), (68.4, "other")]


def test_two_recipes_are_two_lines_and_not_two_seeds() -> None:
    found = recorded(result("finetune", 83.5), result("finetune", 82.0, seed=1, global_batch=2))
    assert [each.ours.n for each in tables.lines("3", found) if each.ours] == [1, 1]


def test_lines_that_would_look_the_same_say_their_recipe_and_are_no_pair() -> None:
    found = recorded(*(result("finetune", 80.0, pretrain=f"MAE pixel, random {ratio}%, 800 ep") for ratio in (50, 75)))
    assert [each.notes.split(";")[0] for each in tables.lines("7", found) if each.ours] == [
        "MAE pixel, random 50%, 800 ep", "MAE pixel, random 75%, 800 ep",
    ]  # fmt: skip
    assert tables.differences("7", found) == []


def test_two_backbones_of_one_method_are_two_lines_and_not_two_runs_of_a_seed() -> None:
    found = recorded(result("finetune", 83.5), row="A") + recorded(result("finetune", 82.5), row="B")
    ours = [each for each in tables.lines("3", found) if each.ours]
    assert [(each.ours.mean, each.published is not None) for each in ours if each.ours] == [(83.5, True), (82.5, True)]
    assert [each.row for each in ours] == ["A", "B"]


def test_two_commits_are_noted() -> None:
    found = recorded(result("finetune", 83.5, record=None), result("finetune", 83.9, seed=1, commit="b", record=None))
    assert line("3", found, MAE, "ViT-B/16")["notes"] == "of commits a, b"


def test_a_failed_seed_is_a_note_and_a_table_without_a_number_shows_the_reason() -> None:
    failed = result("finetune", None, seed=1, status="failed", reason="out of memory")
    row = line("3", recorded(result("finetune", 83.5), failed), MAE, "ViT-B/16")
    assert (row["yours"], row["notes"]) == ("83.50 (1)", "seed 1 failed: out of memory")
    row = line("3", recorded(failed), MAE, "ViT-B/16")
    assert (row["published"], row["yours"], row["difference"], row["notes"]) == (
        "83.6",
        "-",
        "-",
        "seed 1 failed: out of memory",
    )


def test_a_run_that_succeeded_in_the_end_has_no_hole() -> None:
    failed = result("finetune", None, status="failed", reason="out of memory")
    again = result("finetune", 83.5, created_at="2026-01-02T00:00:00+00:00")
    assert line("3", recorded(again, failed), MAE, "ViT-B/16")["notes"] == "-"


def test_a_seed_that_ran_more_than_once_counts_once_and_says_so() -> None:
    again = result("finetune", 84.0, created_at="2026-01-02T00:00:00+00:00")
    row = line(
        "3",
        recorded(again, result("finetune", 83.0), result("finetune", 83.5), result("finetune", 84.0)),
        MAE,
        "ViT-B/16",
    )
    assert (row["yours"], row["notes"]) == (
        "84.00 (1)",
        "seed 0 ran more than once, the newest counts (before: 83.00, 83.50)",
    )


def test_a_seed_that_ran_under_two_configs_says_so() -> None:
    old = result("finetune", 83.0, recipe_digest="a", created_at="2025-01-01T00:00:00+00:00")
    row = line("3", recorded(old, result("finetune", 84.0, recipe_digest="b")), MAE, "ViT-B/16")
    assert (row["yours"], row["notes"]) == (
        "84.00 (1)",
        "seed 0 ran under 2 configs, the newest counts (before: 83.00)",
    )


def test_lines_stand_in_the_papers_order() -> None:
    found = recorded(
        *(
            result("finetune", 80.0, scale="mini", pretrain=f"MAE {target}, random 75%, 9 ep")
            for target in ("token", "pca", "pixel")
        )
    )
    found += recorded(
        *(
            result("linear", 60.0, scale="mini", pretrain=f"MAE {target}, random 75%, 9 ep")
            for target in ("token", "pixel")
        )
    )
    ours = [(each.row, each.column) for each in tables.lines("1d", found) if each.ours]
    tuned = [(row, "fine-tuning") for row in ("pixel (w/o norm)", "PCA", "dVAE token")]
    assert ours == [*tuned, ("pixel (w/o norm)", "linear"), ("dVAE token", "linear")]


def test_fractions_are_left_out_and_named() -> None:
    found, defects = tables.usable(
        recorded(result("finetune", 0.835, unit="fraction"), result("finetune", 83.5, seed=1))
    )
    assert [record.result.seed for record in found] == [1]
    assert len(defects) == 1
    assert "top1 in 'fraction', the tables take '%'" in defects[0]


def test_same_seed_differences_use_the_common_seeds_only() -> None:
    token = "MAE token, random 75%, 1600 ep"
    found = recorded(*(result("finetune", value, seed=seed) for seed, value in enumerate((83.0, 84.0, 85.0))))
    found += recorded(
        *(result("finetune", value, seed=seed, pretrain=token) for seed, value in ((1, 84.5), (2, 85.0), (3, 60.0)))
    )
    (pair,) = tables.differences("7", found)
    assert pair["row"] == "dVAE token - pixel (w/ norm)"
    assert (pair["same-seed difference"], pair["seeds"]) == ("+0.25 [+0.00..+0.50] (2)", "1, 2")


def test_table_7_has_a_column_per_data_set_and_task() -> None:
    found = recorded(
        result("finetune", 83.6), result("mask_rcnn-li2021", 50.5, task="detect", metric="bbox/AP", dataset="coco"),
        result("upernet", 48.2, task="segment", metric="mIoU", dataset="ade20k"),
        result("upernet", 30.0, task="segment", metric="mIoU", dataset="ade20k", pretrain="none"),
    )  # fmt: skip
    assert [line("7", found, "pixel (w/ norm)", column)["difference"] for column in (
        "ImageNet, ViT-B/16", "COCO box AP, ViT-B/16", "ADE20K mIoU, ViT-B/16",
    )] == ["+0.00", "+0.20", "+0.10"]  # fmt: skip
    assert line("7", found, "random init", "ADE20K mIoU, ViT-B/16")["published"] == "-"


@pytest.mark.parametrize(("protocol", "task", "metric", "data"), [
    ("linear", "segment", "mIoU", "ade20k"), ("mask_rcnn-vitdet", "detect", "bbox/AP", "coco"),
])  # fmt: skip
def test_another_head_is_another_line_of_table_7(protocol: str, task: str, metric: str, data: str) -> None:
    found = recorded(result(protocol, 40.0, task=task, metric=metric, dataset=data))
    ((column, published),) = ((each.column, each.published) for each in tables.lines("7", found) if each.ours)
    assert column.endswith(f"ViT-B/16, {protocol}")
    assert published is None


@pytest.mark.parametrize(("length", "difference"), [(25, "-0.10"), (50, "-2.10"), (100, "-2.30")])
def test_a_schedule_stands_beside_the_schedule_of_its_length_only(length: int, difference: str) -> None:
    cfg = load(ROOT / "configs" / "detect" / f"mask_rcnn_vit_base_li2021_{length}ep.py", DetectConfig)
    detected = {"task": "detect", "metric": "bbox/AP", "dataset": "coco"}
    found = recorded(result(cfg.protocol, 48.0, **detected, epochs=cfg.epochs))
    assert line("coco", found, MAE, "box AP, ViT-B/16")["difference"] == difference
    evaluation = as_published.evaluated(found[0].result.record)
    evaluated = recorded(
        result(cfg.protocol, 48.0, **detected, epochs=0.0, images_seen=round(cfg.epochs * 117_266), record=evaluation)
    )
    assert line("coco", evaluated, MAE, "box AP, ViT-B/16")["difference"] == difference
    (ours,) = (each for each in tables.lines("4", found) if each.ours)
    assert (ours.published is not None) == (length == 100)


@pytest.mark.parametrize(("epochs", "difference"), [(1, "-"), (99, "-"), (100, "+0.00")])
def test_an_evaluated_state_of_a_fine_tuning_stands_there_only_where_its_run_was_whole(
    epochs: int, difference: str
) -> None:
    found = recorded(result("finetune", 83.6, epochs=0.0, steps=1251 * epochs, images_seen=1251 * 1024 * epochs))
    (ours,) = (each for each in tables.lines("3", found) if each.ours)
    assert tables.cells(ours)["difference"] == difference


@pytest.mark.parametrize(("epochs", "beside"), [(1.0, False), (50.0, True), (200.0, True)])
def test_partial_fine_tuning_is_compared_at_the_papers_lengths_only(epochs: float, beside: bool) -> None:
    found = recorded(
        result("partial-4", 84.0, epochs=epochs, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep")
    )
    (ours,) = (each for each in tables.lines("figure 9", found) if each.ours)
    assert (ours.published is not None) == beside


@pytest.mark.parametrize(("pretrain", "row", "published"), [
    ("beit_base", "BEiT, ViT-B/16, ImageNet-22K", "83.7"),
    ("beit_base_ft22k", "BEiT, ViT-B/16, ImageNet-22K with labels", "85.2"),
])  # fmt: skip
def test_weights_that_learned_from_labels_stand_beside_weights_that_did(
    pretrain: str, row: str, published: str
) -> None:
    assert (
        line("survey", recorded(result("finetune", 85.0, pretrain=pretrain)), row, "fine-tuning")["published"]
        == published
    )


def test_seeds_of_different_configs_are_no_silent_mean() -> None:
    def notes(*digests: str | None) -> str:
        found = recorded(
            *(result("finetune", 83.5, seed=seed, recipe_digest=digest) for seed, digest in enumerate(digests))
        )
        return line("3", found, MAE, "ViT-B/16")["notes"]

    assert notes("a", "b", "a") == "its seeds are of 2 different configs"
    assert notes("a", "a", None) == "-"


@pytest.mark.parametrize(("share", "difference"), [(1.0, "+0.00"), (0.5, "-")])
def test_an_evaluated_training_state_stands_beside_the_published_number_where_its_run_was_whole(
    share: float, difference: str
) -> None:
    steps = int(184_375 * share)
    found = recorded(
        result(
            "mask_rcnn-li2021",
            50.3,
            task="detect",
            metric="bbox/AP",
            dataset="coco",
            epochs=0.0,
            steps=steps,
            images_seen=64 * steps,
        )
    )
    (ours,) = (each for each in tables.lines("4", found) if each.ours)
    assert tables.cells(ours)["difference"] == difference


def test_an_ablation_that_only_its_suite_can_name_stands_in_its_row() -> None:
    found = recorded(
        result("linear", 72.0, epochs=50.0, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep"),
        row="8 blocks",
    )
    assert line("1a", found, "8 blocks", "linear")["difference"] == "-1.50"
    assert not tables.tables_with_results(recorded(result("linear", 72.0, task="attention")))


def test_figure_5_needs_two_ratios() -> None:
    one = result("finetune", 84.0, epochs=50.0, backbone="vit_large/16", pretrain="MAE pixel, random 50%, 800 ep")
    assert "figure 5" not in tables.tables_with_results(recorded(one))
    found = recorded(
        one, result("finetune", 84.9, epochs=50.0, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep")
    )
    assert [line("figure 5", found, "fine-tuning", ratio)["difference"] for ratio in ("50%", "75%")] == [
        "-0.90",
        "+0.00",
    ]


def test_table_2_counts_device_hours_tokens_and_speed_ups() -> None:
    fields = {
        "task": "pretrain",
        "metric": "val_loss",
        "unit": "loss per hidden patch",
        "backbone": "vit_large/16",
        "flops_per_image": 10**9,
    }
    found = recorded(result("MAE", 0.5, world_size=8, **fields), row="w/ [M]")
    found += recorded(result("MAE", 0.5, wall_s=900.0, world_size=8, **fields), row="w/o")
    ours = {
        (each.row.split(",")[0], each.column): tables.cells(each)["yours"]
        for each in tables.lines("2", found)
        if each.ours
    }
    assert ours["w/ [M]", "device hours"] == "8.00 (1) h"
    assert ours["w/o", "speed-up over the slowest run here"] == "4.00 (1) x"
    assert ("w/ [M]", "speed-up over the slowest run here") not in ours
    assert ours["w/o", "tokens per image in the encoder"] == "197.00 (1) tokens"


def test_table_2_and_1c_take_what_their_suites_measure() -> None:
    pixel = {"pretrain": "MAE pixel, random 75%, 800 ep", "backbone": "vit_large/16", "epochs": 50.0}
    assert (
        line(
            "2",
            recorded(result("finetune", 84.7, **pixel), row="ViT-L/16, 8 blocks"),
            "ViT-L/16, 8 blocks",
            "fine-tuning",
        )["difference"]
        == "-0.20"
    )
    found = []
    for row, flops in (("encoder w/ [M]", 32 * 10**9), ("encoder w/o [M]", 10**10)):
        fields = {
            "task": "pretrain",
            "metric": "val_loss",
            "unit": "loss per hidden patch",
            "flops_per_image": flops,
            **pixel,
        }
        corrupt = "mask_token" if row == "encoder w/ [M]" else None
        own = {"target": {"name": "pixel"}, "model.corrupt": corrupt}
        fields["record"] = as_published.pretraining("large", 800, recipe=own)
        found += recorded(result("MAE", 0.5, **fields), row=row)
    assert line("1c", found, "encoder w/ [M]", "relative FLOPs")["difference"] == "-0.10"


@pytest.mark.parametrize(("hidden", "beside"), [("random 75%", True), ("block 50%", False)])
def test_an_ablation_with_another_mask_stands_beside_nothing(hidden: str, beside: bool) -> None:
    found = recorded(
        result("linear", 73.0, epochs=50.0, backbone="vit_large/16", pretrain=f"MAE pixel, {hidden}, 800 ep"),
        row="512-d",
    )
    assert [each.published is not None for each in tables.lines("1b", found) if each.ours] == [beside]


@pytest.mark.parametrize(("backbone", "beside"), [("vit_base/16", False), ("vit_large/16", True)])
def test_a_linear_probe_is_as_long_as_the_papers(backbone: str, beside: bool) -> None:
    found = recorded(result("linear", 70.0, backbone=backbone, epochs=50.0))
    assert [each.published is not None for each in tables.lines("12", found) if each.ours] == [beside]


def test_figure_9_reads_the_tuned_blocks() -> None:
    whole = result("partial-all", 84.9, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep")
    assert line("figure 9", recorded(whole), whole.pretrain, "24")["published"] != "-"
    pixels = {"backbone": "vit_large/16", "pretrain": "MAE pixel, random 75%, 800 ep"}
    found = recorded(
        result("partial-4", 84.0, **pixels),
        result("partial-half", None, status="failed", reason="out of memory", **pixels),
    )
    assert line("figure 9", found, whole.pretrain, "4")["difference"] == "-0.20"
    assert line("figure 9", found, whole.pretrain, "half")["notes"] == "seed 0 failed: out of memory"


def test_448_pixels_are_a_column_of_their_own() -> None:
    found = recorded(result("finetune", 87.7, backbone="vit_huge/14", tokens_per_image=1025, epochs=50.0))
    assert line("3", found, MAE, "ViT-H/14 at 448")["difference"] == "-0.10"


def test_a_file_without_a_good_line_is_named_with_its_lines(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{\nnull\n")
    with pytest.raises(ValueError, match=r"(?s)no results found.*results.jsonl.*line 1.*line 2"):
        records.load([tmp_path])


def test_damaged_lines_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    results.append(tmp_path / "a" / "results.jsonl", [result("linear", 67.0)])
    with (tmp_path / "a" / "results.jsonl").open("a") as file:
        file.write("{broken\n")
    (tmp_path / "a" / "node.json").write_text('{"format": 99}')
    found, defects = records.load([tmp_path, tmp_path / "a"])
    assert [(record.result.value, record.note) for record in found] == [(67.0, None)]
    assert "line 2" in defects[0]
    assert "is of format 99, this version reads 1" in defects[1]
    with pytest.raises(ValueError, match="absent does not exist"):
        records.load([tmp_path / "absent"])
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="no results found"):
        records.load([tmp_path / "b"])


def test_points_of_a_sweep_are_in_no_table(tmp_path: Path) -> None:
    for name, role in (("point", "point"), ("chosen", "transfer")):
        results.append(tmp_path / name / "results.jsonl", [result("finetune", 80.0, run=name)])
        records.write_note(
            tmp_path / name,
            Note.model_validate(
                {"suite": "s", "name": name, "role": role, "row": "MAE", "identity": "", "command": []}
            ),
        )
    assert [record.result.run for record in records.load([tmp_path])[0]] == ["chosen"]


def test_vitdet_and_every_figure_of_upernet_have_their_own_tables() -> None:
    found = recorded(
        result("mask_rcnn-vitdet", 51.0, task="detect", metric="bbox/AP", dataset="coco"),
        result("upernet", 83.0, task="segment", metric="aAcc", dataset="ADEChallengeData2016", epochs=126.7),
    )
    assert line("vitdet", found, MAE, "box AP, ViT-B/16")["difference"] == "-0.60"
    assert line("ade", found, MAE, "aAcc, ViT-B/16")["difference"] == "-0.05"
    assert not [each.published for each in tables.lines("4", found) if each.ours and each.published]


def test_a_hand_made_record_gives_exactly_the_tables_that_a_hand_computes(tmp_path: Path) -> None:
    token = "MAE token, random 75%, 1600 ep"
    ours = [
        result("finetune", 83.0, seed=0, created_at="2025-12-31T00:00:00+00:00"),  # repeated below
        result("finetune", 83.5, seed=0),
        result("finetune", 83.8, seed=1, commit="b"),
        result("finetune", None, seed=2, status="failed", reason="out of memory"),
        result("finetune", 0.84, seed=4, unit="fraction"),
        result("finetune", 83.1, seed=0, pretrain=token),
        result("finetune", 84.1, seed=1, pretrain=token),
        result("finetune", 99.0, seed=0, scale="mini"),
    ]
    results.append(tmp_path / "a" / "results.jsonl", ours)
    with (tmp_path / "a" / "results.jsonl").open("a") as file:
        file.write('{"run": "cut sh\n')
    results.append(tmp_path / "b" / "results.jsonl", [result("finetune", 83.2, seed=3)])
    found, damaged = records.load([tmp_path])
    found, wrong = tables.usable(found)
    assert ["results.jsonl, line 9" in damaged[0], "top1 in 'fraction'" in wrong[0], len(damaged + wrong)] == [
        True,
        True,
        2,
    ]
    column = "ImageNet, ViT-B/16"
    table = [row for row in tables.rows("7", found) if row["data, backbone"] == column and row["yours"] != "-"]
    shown = ("row", "published", "yours", "difference", "seed spread", "scale", "notes")
    assert [tuple(row[name] for name in shown) for row in table] == [
        (
            "pixel (w/ norm)", "83.6", "83.50 [83.20..83.80] (3)", "-0.10", "0.60", "paper",
            "seed 2 failed: out of memory; seed 0 ran more than once, the newest counts (before: 83.00); "
            "of commits a, b",
        ),
        ("dVAE token", "83.6", "83.60 [83.10..84.10] (2)", "+0.00", "1.00", "paper", "-"),
        ("pixel (w/ norm)", "-", "99.00 (1)", "-", "one seed", "mini", "-"),
    ]  # fmt: skip
    assert [(pair["row"], pair["same-seed difference"], pair["seeds"]) for pair in tables.differences("7", found)] == [
        ("dVAE token - pixel (w/ norm)", "-0.05 [-0.40..+0.30] (2)", "0, 1"),
    ]  # fmt: skip
