"""What stands in which table, and beside which published number: hand-made records, their tables computed by hand."""

from pathlib import Path

import pytest

from mae_transfer import results
from mae_transfer.config import load
from mae_transfer.record import Seconds, Sitting, Software
from mae_transfer.results import Result
from mae_transfer.suite.store import records
from mae_transfer.suite.store.records import Measurement, Note
from mae_transfer.suite.tables import comparison
from mae_transfer.suite.tables.cells import Cell, cells
from mae_transfer.suite.tables.comparison import build, cell_text, difference_text
from mae_transfer.suite.tables.layouts import LAYOUTS
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


def recorded(*found: Result, row: str | None = None) -> list[Measurement]:
    note = Note(suite="s", name="n", role="transfer", row=row, identity="", command=[]) if row else None
    return [Measurement(each, Path("results.jsonl"), note) for each in found]


def own(table: str, found: list[Measurement]) -> list[Cell]:
    return [cell for cell in cells(table, found) if cell.ours]


def cell(table: str, found: list[Measurement], row: str, column: str) -> Cell:
    (one,) = (each for each in cells(table, found) if (each.row, each.column) == (row, column))
    return one


def difference(cell: Cell) -> str:
    return "-" if cell.difference is None else f"{cell.difference:+.2f}"


def test_a_run_at_paper_scale_stands_beside_the_published_number_with_the_spread_of_its_seeds() -> None:
    old = result("finetune", 83.1, seed=1, created_at="2025-01-01T00:00:00+00:00")
    found = recorded(result("finetune", 83.5), result("finetune", 83.9, seed=1), old)
    one = cell("3", found, MAE, "ViT-B/16")
    assert (cell_text(one), one.ours and (one.ours.low, one.ours.high, one.ours.n)) == (
        "83.7±0.3 (83.6, +0.1)",
        (83.5, 83.9, 2),
    )
    assert {each.column for each in cells("3", found)} == {"ViT-B/16"}


@pytest.mark.parametrize("changes", [
    {"scale": "mini"}, {"scale": "small"}, {"dataset": "tiny-imagenet"}, {"pretrain": "MAE token, random 75%, 1600 ep"},
    {"pretrain": "MAE norm_pixel, random 75%, 300 ep"}, {"pretrain": "MAE norm_pixel, block 75%, 1600 ep"},
    {"epochs": 50.0},
])  # fmt: skip
def test_what_did_something_else_never_stands_beside_a_published_number(changes: dict[str, object]) -> None:
    (one,) = own("3", recorded(result("finetune", 90.0, **changes)))
    assert one.published is None
    assert one.why_not


def test_only_what_belongs_is_in_a_table() -> None:
    found = recorded(
        result("linear", 67.0), result("linear", 66.0, split="holdout"), result("linear", 88.0, metric="top5"),
        result("linear-1%-labels", 40.0), result("finetune", 83.0), result("linear", 68.4, dataset="other"),
        result("linear", 50.0, dataset="inat2018"),
    )  # fmt: skip
    ours = own("12", found)
    assert [(each.ours.mean, each.dataset) for each in ours if each.ours] == [(67.0, "imagenet"), (68.4, "other")]


def test_two_recipes_are_two_lines_and_not_two_seeds() -> None:
    found = recorded(result("finetune", 83.5), result("finetune", 82.0, seed=1, global_batch=2))
    assert [len(each.runs) for each in own("3", found)] == [1, 1]


def test_rows_that_would_look_the_same_say_what_differs_and_are_no_pair() -> None:
    found = recorded(
        *(
            result("finetune", 80.0 + s, seed=s, pretrain=f"MAE pixel, random {r}%, 800 ep")
            for r in (50, 75)
            for s in (0, 1)
        )
    )
    (table,) = build(["7"], found)
    assert [(row.name, row.detail.partition(";")[0]) for row in table.rows] == [
        ("pixel (w/o norm)", "MAE pixel, random 50%, 800 ep"),
        ("pixel (w/o norm)", "MAE pixel, random 75%, 800 ep"),
    ]


def test_two_backbones_of_one_method_are_two_lines_and_not_two_runs_of_a_seed() -> None:
    found = recorded(result("finetune", 83.5), row="A") + recorded(result("finetune", 82.5), row="B")
    ours = own("3", found)
    assert [(each.ours.mean, each.published is not None) for each in ours if each.ours] == [(83.5, True), (82.5, True)]
    assert [each.row for each in ours] == ["A", "B"]


def test_two_commits_are_noted() -> None:
    found = recorded(result("finetune", 83.5, record=None), result("finetune", 83.9, seed=1, commit="b", record=None))
    assert cell("3", found, MAE, "ViT-B/16").notes == ("of commits a, b",)


def test_a_failed_seed_is_a_note_and_a_table_without_a_number_shows_the_reason() -> None:
    failed = result("finetune", None, seed=1, status="failed", reason="out of memory")
    for found, text in ((recorded(result("finetune", 83.5), failed), "83.5 (83.6, -0.1)"), (recorded(failed), "-")):
        one = cell("3", found, MAE, "ViT-B/16")
        assert (cell_text(one), one.notes) == (text, ("seed 1 failed: out of memory",))


def test_a_run_that_succeeded_in_the_end_has_no_hole() -> None:
    failed = result("finetune", None, status="failed", reason="out of memory")
    again = result("finetune", 83.5, created_at="2026-01-02T00:00:00+00:00")
    assert cell("3", recorded(again, failed), MAE, "ViT-B/16").notes == ()


def test_a_seed_that_ran_more_than_once_counts_once_and_says_so() -> None:
    again = result("finetune", 84.0, created_at="2026-01-02T00:00:00+00:00")
    found = recorded(again, result("finetune", 83.0), result("finetune", 83.5), result("finetune", 84.0))
    one = cell("3", found, MAE, "ViT-B/16")
    assert ([run.value for run in one.runs], one.notes) == (
        [84.0],
        ("seed 0 ran more than once, the newest counts (before: 83.00, 83.50)",),
    )


def test_rows_and_columns_stand_in_the_papers_order() -> None:
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
    (table,) = build(["1d"], found)
    assert table.columns == ("fine-tuning", "linear")
    assert [(row.name, list(row.cells)) for row in table.rows] == [
        ("pixel (w/o norm)", ["fine-tuning", "linear"]),
        ("PCA", ["fine-tuning"]),
        ("dVAE token", ["fine-tuning", "linear"]),
    ]


def test_fractions_are_left_out_and_named() -> None:
    found, defects = comparison.usable(
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
    (table,) = build(["7"], found)
    (pair,) = table.differences
    assert (pair.row, pair.base) == ("dVAE token", "pixel (w/ norm)")
    assert (difference_text(pair), pair.seeds) == ("+0.25 [0.00..+0.50]", (1, 2))


def test_table_7_has_a_column_per_data_set_and_task() -> None:
    found = recorded(
        result("finetune", 83.6), result("mask_rcnn-li2021", 50.5, task="detect", metric="bbox/AP", dataset="coco"),
        result("upernet", 48.2, task="segment", metric="mIoU", dataset="ade20k"),
        result("upernet", 30.0, task="segment", metric="mIoU", dataset="ade20k", pretrain="none"),
    )  # fmt: skip
    assert [difference(cell("7", found, "pixel (w/ norm)", column)) for column in (
        "ImageNet, ViT-B/16", "COCO box AP, ViT-B/16", "ADE20K mIoU, ViT-B/16",
    )] == ["+0.00", "+0.20", "+0.10"]  # fmt: skip
    assert cell("7", found, "random init", "ADE20K mIoU, ViT-B/16").published is None


@pytest.mark.parametrize(("protocol", "task", "metric", "data"), [
    ("linear", "segment", "mIoU", "ade20k"), ("mask_rcnn-vitdet", "detect", "bbox/AP", "coco"),
])  # fmt: skip
def test_another_head_is_another_line_of_table_7(protocol: str, task: str, metric: str, data: str) -> None:
    found = recorded(result(protocol, 40.0, task=task, metric=metric, dataset=data))
    (one,) = own("7", found)
    assert one.column.endswith(f"ViT-B/16, {protocol}")
    assert one.published is None


@pytest.mark.parametrize(("length", "expected"), [(25, "-0.10"), (50, "-2.10"), (100, "-2.30")])
def test_a_schedule_stands_beside_the_schedule_of_its_length_only(length: int, expected: str) -> None:
    cfg = load(ROOT / "configs" / "detect" / f"mask_rcnn_vit_base_li2021_{length}ep.py", DetectConfig)
    detected = {"task": "detect", "metric": "bbox/AP", "dataset": "coco"}
    found = recorded(result(cfg.protocol, 48.0, **detected, epochs=cfg.epochs))
    assert difference(cell("coco", found, MAE, "box AP, ViT-B/16")) == expected
    evaluation = as_published.evaluated(found[0].result.record)
    evaluated = recorded(
        result(cfg.protocol, 48.0, **detected, epochs=0.0, images_seen=round(cfg.epochs * 117_266), record=evaluation)
    )
    assert difference(cell("coco", evaluated, MAE, "box AP, ViT-B/16")) == expected
    (ours,) = own("4", found)
    assert (ours.published is not None) == (length == 100)


@pytest.mark.parametrize(("epochs", "expected"), [(1, "-"), (99, "-"), (100, "+0.00")])
def test_an_evaluated_state_of_a_fine_tuning_stands_there_only_where_its_run_was_whole(
    epochs: int, expected: str
) -> None:
    found = recorded(result("finetune", 83.6, epochs=0.0, steps=1251 * epochs, images_seen=1251 * 1024 * epochs))
    (ours,) = own("3", found)
    assert difference(ours) == expected


@pytest.mark.parametrize(("epochs", "beside"), [(1.0, False), (50.0, True), (200.0, True)])
def test_partial_fine_tuning_is_compared_at_the_papers_lengths_only(epochs: float, beside: bool) -> None:
    found = recorded(
        result("partial-4", 84.0, epochs=epochs, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep")
    )
    (ours,) = own("figure 9", found)
    assert (ours.published is not None) == beside


@pytest.mark.parametrize("pretrain", ["beit_base", "beit_base_ft22k"])
def test_a_number_of_another_recipe_is_nearest_and_not_beside(pretrain: str) -> None:
    (one,) = own("survey", recorded(result("finetune", 85.0, pretrain=pretrain)))
    assert one.published is None
    assert one.nearest
    assert (one.nearest.row[:4], one.why_not) == ("BEiT", "measured with BEiT's own recipe")
    assert comparison.misses(build(["survey"], recorded(result("finetune", 85.0, pretrain=pretrain)))) == [
        f"survey: {one.row}, fine-tuning: not beside {one.nearest.text}: measured with BEiT's own recipe"
    ]


def test_each_objective_of_our_own_pretraining_has_its_own_row_of_the_survey() -> None:
    """The run's method is the row; a name of the suite replaces it."""
    methods = [f"{name}, 2 views, 300 ep" for name in ("DINO", "iBOT", "MoCo v3", "MoBY", "EsViT")]
    made = [result("finetune", 80.0).model_copy(update={"pretrain": method}) for method in methods]
    assert [one.row for one in own("survey", recorded(*made))] == [f"{method}, ViT-B/16" for method in methods]
    assert [one.row for one in own("survey", recorded(made[0], row="DINO"))] == ["DINO, ViT-B/16"]


@pytest.mark.parametrize(("share", "expected"), [(1.0, "+0.00"), (0.5, "-")])
def test_an_evaluated_training_state_stands_beside_the_published_number_where_its_run_was_whole(
    share: float, expected: str
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
    (ours,) = own("4", found)
    assert difference(ours) == expected


def test_an_ablation_that_only_its_suite_can_name_stands_in_its_row() -> None:
    found = recorded(
        result("linear", 72.0, epochs=50.0, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep"),
        row="8 blocks",
    )
    assert difference(cell("1a", found, "8 blocks", "linear")) == "-1.50"
    assert not build(LAYOUTS, recorded(result("linear", 72.0, task="attention")))


def test_figure_5_needs_two_ratios() -> None:
    one = result("finetune", 84.0, epochs=50.0, backbone="vit_large/16", pretrain="MAE pixel, random 50%, 800 ep")
    assert not build(["figure 5"], recorded(one))
    found = recorded(
        one, result("finetune", 84.9, epochs=50.0, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep")
    )
    assert [difference(cell("figure 5", found, "fine-tuning", ratio)) for ratio in ("50%", "75%")] == [
        "-0.90",
        "+0.00",
    ]


COST = {
    "task": "pretrain",
    "metric": "val_loss",
    "unit": "loss per hidden patch",
    "backbone": "vit_large/16",
    "flops_per_image": 10**9,
}


def cost(row: str, sittings: tuple[Sitting, ...] | None, **changes: object) -> list[Measurement]:
    made = as_published.pretraining("large", 800, sittings=sittings) if sittings else None
    return recorded(result("MAE", 0.5, **(COST | {"record": made} | changes)), row=row)


def sitting(seconds: float, *devices: str) -> Sitting:
    code = Software(version="1", commit="a", dirty=False, packages={})
    spent = Seconds(train=seconds, evaluate=5000.0, save=100.0)
    return Sitting(started_at="2026", first_step=0, software=code, devices=devices, device_batch=8, seconds=spent)


def texts(table: str, found: list[Measurement]) -> dict[tuple[str, str], str]:
    return {(each.row, each.column): cell_text(each) for each in own(table, found)}


def test_table_2_counts_training_hours_speed_tokens_and_flops() -> None:
    found = cost("w/ [M]", (sitting(3600.0, *["H100"] * 8),), images_seen=7200, world_size=8)
    found += cost("w/o", (sitting(900.0, *["H100"] * 8),), images_seen=7200, world_size=8)
    assert texts("2", found) == {
        ("w/ [M]", "hours on H100"): "8",
        ("w/ [M]", "images/s on 8 x H100"): "2",
        ("w/ [M]", "tokens per image"): "197",
        ("w/ [M]", "GFLOPs per image"): "1",
        ("w/o", "hours on H100"): "2",
        ("w/o", "images/s on 8 x H100"): "8",
        ("w/o", "speed-up over the slowest"): "4x",
        ("w/o", "tokens per image"): "197",
        ("w/o", "GFLOPs per image"): "1",
    }


def test_hours_of_two_devices_are_two_numbers_and_make_no_speed_up() -> None:
    found = cost("mix", (sitting(3600.0, "H100"), sitting(1800.0, "RTX 3090")), images_seen=5400)
    found += cost("one", (sitting(1800.0, "H100"),), images_seen=5400)
    shown = {
        key: text for key, text in texts("2", found).items() if "hours" in key[1] or "/s" in key[1] or "up" in key[1]
    }
    assert shown == {
        ("mix", "hours on H100"): "1",
        ("mix", "hours on RTX 3090"): "0.5",
        ("mix", "images/s on H100, then RTX 3090"): "1",
        ("one", "hours on H100"): "0.5",
        ("one", "images/s on H100"): "3",
    }


def test_hours_of_an_earlier_version_say_that_they_include_evaluation() -> None:
    found = cost("old", None, wall_s=1800.0, world_size=2, device="H100")
    assert texts("2", found) == {
        ("old", "hours on H100, includes evaluation"): "1",
        ("old", "tokens per image"): "197",
        ("old", "GFLOPs per image"): "1",
    }


def test_a_row_of_table_2_names_its_backbone_if_they_differ() -> None:
    found = cost("mae", (sitting(1.0, "H100"),)) + cost("mae", (sitting(1.0, "H100"),), backbone="vit_base/16")
    assert {each.row for each in own("2", found)} == {"mae, ViT-L/16", "mae, ViT-B/16"}


def test_table_2_and_1c_take_what_their_suites_measure() -> None:
    pixel = {"pretrain": "MAE pixel, random 75%, 800 ep", "backbone": "vit_large/16", "epochs": 50.0}
    assert (
        difference(
            cell(
                "2",
                recorded(result("finetune", 84.7, **pixel), row="ViT-L/16, 8 blocks"),
                "ViT-L/16, 8 blocks",
                "fine-tuning",
            )
        )
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
    assert difference(cell("1c", found, "encoder w/ [M]", "relative FLOPs")) == "-0.10"


@pytest.mark.parametrize(("hidden", "beside"), [("random 75%", True), ("block 50%", False)])
def test_an_ablation_with_another_mask_stands_beside_nothing(hidden: str, beside: bool) -> None:
    found = recorded(
        result("linear", 73.0, epochs=50.0, backbone="vit_large/16", pretrain=f"MAE pixel, {hidden}, 800 ep"),
        row="512-d",
    )
    assert [each.published is not None for each in own("1b", found)] == [beside]


@pytest.mark.parametrize(("backbone", "beside"), [("vit_base/16", False), ("vit_large/16", True)])
def test_a_linear_probe_is_as_long_as_the_papers(backbone: str, beside: bool) -> None:
    found = recorded(result("linear", 70.0, backbone=backbone, epochs=50.0))
    assert [each.published is not None for each in own("12", found)] == [beside]


def test_figure_9_reads_the_tuned_blocks() -> None:
    whole = result("partial-all", 84.9, backbone="vit_large/16", pretrain="MAE pixel, random 75%, 800 ep")
    assert cell("figure 9", recorded(whole), whole.pretrain, "24").published
    pixels = {"backbone": "vit_large/16", "pretrain": "MAE pixel, random 75%, 800 ep"}
    found = recorded(
        result("partial-4", 84.0, **pixels),
        result("partial-half", None, status="failed", reason="out of memory", **pixels),
    )
    assert difference(cell("figure 9", found, whole.pretrain, "4")) == "-0.20"
    assert cell("figure 9", found, whole.pretrain, "half").notes == ("seed 0 failed: out of memory",)


def test_448_pixels_are_a_column_of_their_own() -> None:
    found = recorded(result("finetune", 87.7, backbone="vit_huge/14", tokens_per_image=1025, epochs=50.0))
    assert difference(cell("3", found, MAE, "ViT-H/14 at 448")) == "-0.10"


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
    assert "has format 99, but this version reads format 1" in defects[1]
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
    assert difference(cell("vitdet", found, MAE, "box AP, ViT-B/16")) == "-0.60"
    assert difference(cell("ade", found, MAE, "aAcc, ViT-B/16")) == "-0.05"
    assert not [each for each in own("4", found) if each.published]


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
    found, wrong = comparison.usable(found)
    assert ["results.jsonl, line 9" in damaged[0], "top1 in 'fraction'" in wrong[0], len(damaged + wrong)] == [
        True,
        True,
        2,
    ]
    paper, mini = build(["7"], found)
    (column,) = paper.columns
    assert (paper.title, mini.title, column) == (
        "Table 7 (pixels against tokens, top-1 %, AP % and mIoU %)",
        "After table 7 (pixels against tokens, top-1 %, AP % and mIoU %), on 'imagenet', mini scale",
        "ImageNet, ViT-B/16",
    )
    assert [(row.name, cell_text(row.cells[column]), row.cells[column].notes) for row in paper.rows] == [
        (
            "pixel (w/ norm)",
            "83.5±0.3 (83.6, -0.1)",
            (
                "seed 2 failed: out of memory",
                "seed 0 ran more than once, the newest counts (before: 83.00)",
                "of commits a, b",
            ),
        ),
        ("dVAE token", "83.6±0.7 (83.6, 0.0)", ()),
    ]
    assert [(row.name, cell_text(row.cells[column])) for row in mini.rows] == [("pixel (w/ norm)", "99.0")]
    assert [(one.row, one.base, difference_text(one), one.seeds) for one in paper.differences] == [
        ("dVAE token", "pixel (w/ norm)", "-0.05 [-0.40..+0.30]", (0, 1)),
    ]
