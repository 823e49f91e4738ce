"""suite/tables/cells.py and suite/tables/comparison.py: pooling of seeds, counts, and tables computed by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mae_transfer import results
from mae_transfer.record import Record, Seconds, Sitting, Software, Weights
from mae_transfer.results import Result
from mae_transfer.suite.published import Published
from mae_transfer.suite.published.measured import Elsewhere
from mae_transfer.suite.store import records
from mae_transfer.suite.store.records import About, Measurement, Note
from mae_transfer.suite.tables import comparison, formats, sheets
from mae_transfer.suite.tables.cells import Cell, cells, spread
from mae_transfer.suite.tables.comparison import Table, build, cell_text, difference_text
from tests.unit.test_tables import recorded, result

SOFTWARE = Software(version="1", commit="abc", dirty=False, packages={})
MIXUP = ("mixup",)


def sitting(device_batch: int = 32, devices: tuple[str, ...] = ("H100",), train: float = 3600.0) -> Sitting:
    seconds = Seconds(train=train)
    return Sitting(
        started_at="2026-01-01T00:00:00+00:00", first_step=0, software=SOFTWARE, devices=devices,
        device_batch=device_batch, seconds=seconds,
    )  # fmt: skip


def made(task: str, **changes: object) -> Record:
    fields = {
        "run": "r", "task": task, "method": "m", "scale": "mini", "config_digest": "c", "recipe_digest": "d",
        "recipe": {}, "seed": 0,
        "epochs": 10.0, "batch": 64, "sittings": (sitting(),),
    }  # fmt: skip
    return Record.model_validate(fields | changes)


def transfer(
    value: float,
    seed: int = 0,
    *,
    weights: str = "w0",
    pretraining: dict[str, object] | None = None,
    protocol: str = "finetune",
    fresh: bool = False,
    **changes: object,
) -> Result:
    """A transfer from these weights, with a record. `pretraining` and the other options change the records."""
    before = made("pretrain", seed=int(weights[1:]), **(pretraining or {}))
    origin = (
        Weights(kind="random", name="none") if fresh else Weights(kind="run", name="m", sha256=weights, record=before)
    )
    own = made("classify", seed=seed, inputs={"backbone": origin}, **changes)
    about = {"scale": "mini", "dataset": "shapes", "recipe_digest": own.recipe_digest, "record": own, "seed": seed}
    return result(protocol, value, pretrain="none" if fresh else "MAE pixel, random 75%, 9 ep", **about)


def own(*found: Result) -> list[Cell]:
    return cells("summary", recorded(*found, row="mine"))


@pytest.mark.parametrize(("runs", "counts"), [
    (("w0", "w0", "w0"), "1 pretraining, 3 transfers"),
    (("w0", "w1", "w2"), "3 pretrainings x 1 transfer"),
    (("w0", "w0", "w1", "w1", "w2", "w2"), "3 pretrainings x 2 transfers"),
    (("w0", "w0", "w1"), "2 pretrainings, 3 transfers"),
    (("w0",), "1 pretraining, 1 transfer"),
])  # fmt: skip
def test_pretrainings_are_counted_by_their_weights_and_transfers_by_their_seeds(
    runs: tuple[str, ...], counts: str
) -> None:
    found = [transfer(60.0 + seed, seed, weights=weights) for seed, weights in enumerate(runs)]
    (cell,) = own(*found)
    assert cell.counts == counts
    assert len(cell.runs) == len(runs)


def test_random_weights_are_no_pretraining() -> None:
    (cell,) = own(*(transfer(30.0, seed, fresh=True) for seed in range(3)))
    assert (cell.counts, cell.pretrainings) == ("3 runs", 0)


def test_the_same_seed_of_two_pretrainings_is_two_runs_and_of_one_pretraining_only_the_newest() -> None:
    (cell,) = own(transfer(60.0, weights="w0"), transfer(62.0, weights="w1"))
    assert [run.value for run in cell.runs] == [60.0, 62.0]
    again = transfer(62.0).model_copy(update={"created_at": "2026-01-02T00:00:00+00:00"})
    (cell,) = own(again, transfer(60.0))
    assert [run.value for run in cell.runs] == [62.0]
    assert cell.notes == ("seed 0 ran more than once, the newest counts (before: 60.00)",)


def of_data(fingerprint: str, images: int = 100) -> dict[str, object]:
    one = {"name": "photos", "kind": "Folder", "images": images, "whole": 100, "fingerprint": fingerprint}
    return {"data": {"train": one}}


@pytest.mark.parametrize(("one", "two"), [
    (of_data("a" * 16), of_data("b" * 16)),
    (of_data("a" * 16), of_data("a" * 16, images=50)),
    ({"pretraining": of_data("a" * 16)}, {"pretraining": of_data("b" * 16)}),
    ({"pretraining": {}}, {"pretraining": {"reached": 4.0}}),
])  # fmt: skip
def test_runs_on_other_data_or_from_a_state_in_between_are_other_numbers(
    one: dict[str, object], two: dict[str, object]
) -> None:
    assert [len(cell.runs) for cell in own(transfer(60.0, 0, **one), transfer(62.0, 1, **two))] == [1, 1]  # type: ignore[arg-type]
    assert [len(cell.runs) for cell in own(transfer(60.0, 0, **one), transfer(62.0, 1, **one))] == [2]  # type: ignore[arg-type]


def test_two_files_of_unknown_origin_are_two_numbers() -> None:
    def of(file: str, seed: int) -> Result:
        weights = Weights(kind="file", name=file, layout="mae", sha256=file)
        run = made("classify", seed=seed, inputs={"backbone": weights})
        about = {"scale": "mini", "dataset": "shapes", "recipe_digest": "d", "record": run, "seed": seed}
        return result("finetune", 60.0 + seed, pretrain="mae", **about)

    assert [len(cell.runs) for cell in own(of("a.pth", 0), of("b.pth", 1))] == [1, 1]
    assert [len(cell.runs) for cell in own(of("a.pth", 0), of("a.pth", 1))] == [2]


def test_a_pretraining_whose_file_was_written_again_counts_once() -> None:
    again = transfer(62.0, 1)
    assert again.record is not None
    weights = again.record.inputs["backbone"].model_copy(update={"sha256": "exported again"})
    run = again.record.model_copy(update={"inputs": {"backbone": weights}})
    (cell,) = own(transfer(60.0, 0), again.model_copy(update={"record": run}))
    assert cell.counts == "1 pretraining, 2 transfers"


def test_evaluations_of_training_states_are_told_apart_by_the_seeds_of_their_trainings() -> None:
    def evaluated(value: float, seed: int) -> Result:
        trained = transfer(80.0, seed).record
        assert trained is not None
        state = Weights(kind="run", name="m", sha256=f"state{seed}", record=trained)
        run = made("robustness", inputs={"checkpoint": state, "backbone": trained.inputs["backbone"]}, epochs=0.0)
        about = {"task": "robustness", "scale": "mini", "dataset": "imagenet-a", "epochs": 0.0, "record": run}
        return result("m", value, pretrain="MAE", checkpoint_sha256=state.sha256, **about)

    (cell,) = cells("13", recorded(evaluated(20.0, 0), evaluated(22.0, 1), row="mine"))
    assert ([run.seed for run in cell.runs], cell.counts) == ([0, 1], "1 pretraining, 2 transfers")
    old = [one.model_copy(update={"record": None}) for one in (evaluated(20.0, 0), evaluated(22.0, 1))]
    (cell,) = cells("13", recorded(*old, row="mine"))
    assert ([run.value for run in cell.runs], cell.counts) == ([20.0, 22.0], "1 pretraining, 2 transfers")


def test_a_failed_run_is_a_note_of_the_number_that_it_is_missing_from() -> None:
    hole = result("finetune", None, seed=1, status="failed", reason="out of memory", scale="mini", dataset="shapes")
    (cell,) = own(transfer(60.0), hole)
    assert (cell.counts, cell.notes) == ("1 pretraining, 1 transfer", ("seed 1 failed: out of memory",))
    (cell,) = own(hole)
    assert (cell_text(cell), cell.notes) == ("-", ("seed 1 failed: out of memory",))
    later = transfer(61.0, 1).model_copy(update={"created_at": "2026-01-02T00:00:00+00:00"})
    (cell,) = own(transfer(60.0), hole, later)
    assert (cell.notes, len(cell.runs)) == ((), 2)


@pytest.mark.parametrize(("depends", "pooled"), [(("batch norm",), False), (MIXUP, False), ((), True)])
@pytest.mark.parametrize("other", [sitting(16), sitting(32, ("H100", "H100"))])
def test_runs_that_differ_in_images_per_device_are_pooled_only_if_nothing_depends_on_it(
    depends: tuple[str, ...], pooled: bool, other: Sitting
) -> None:
    found = (
        transfer(60.0, 0, depends_on_device_batch=depends),
        transfer(62.0, 1, depends_on_device_batch=depends, sittings=(other,)),
    )
    assert [len(cell.runs) for cell in own(*found)] == ([2] if pooled else [1, 1])


def test_the_note_of_two_lines_names_the_images_per_device() -> None:
    found = (
        transfer(60.0, 0, depends_on_device_batch=MIXUP),
        transfer(62.0, 1, depends_on_device_batch=MIXUP, sittings=(sitting(16, ("H100", "H100")),)),
    )
    (table,) = build(["summary"], recorded(*found, row="mine"))
    assert [row.detail for row in table.rows] == [
        "images per device: 32 on 1 device (the numbers depend on it: mixup)",
        "images per device: 16 on 2 devices (the numbers depend on it: mixup)",
    ]
    (sheet,) = sheets.sheets([table])
    assert [row[0].text for row in sheet.rows] == ["mine [1]", "mine [2]"]
    assert sheet.notes[1:] == tuple(f"[{n}] {row.detail}" for n, row in enumerate(table.rows, start=1))


def test_a_pretraining_that_depends_on_images_per_device_is_not_pooled_either() -> None:
    other = {"depends_on_device_batch": ("batch norm",), "sittings": (sitting(8),)}
    found = own(
        transfer(60.0, 0, pretraining=other | {"sittings": (sitting(),)}),
        transfer(62.0, 1, weights="w1", pretraining=other),
    )
    assert [len(cell.runs) for cell in found] == [1, 1]


@pytest.mark.parametrize("stage", ["transfer", "pretraining"])
def test_two_recipes_are_two_lines_that_name_the_key_that_differs(stage: str) -> None:
    def one(value: float, seed: int, lr: float, digest: str) -> Result:
        recipe = {"recipe_digest": digest, "recipe": {"optim": {"lr": lr}, "seed": seed}}
        return transfer(value, seed, **recipe) if stage == "transfer" else transfer(value, seed, pretraining=recipe)

    (table,) = build(
        ["summary"], recorded(one(60.0, 0, 0.1, "a"), one(61.0, 1, 0.1, "a"), one(62.0, 2, 0.2, "b"), row="mine")
    )
    before = "" if stage == "transfer" else "pretrain: "
    assert [(row.detail, len(row.cells["fine-tune"].runs)) for row in table.rows] == [
        (f"{before}optim.lr = 0.1", 2),
        (f"{before}optim.lr = 0.2", 1),
    ]


def test_results_of_earlier_versions_are_counted_by_checkpoint_and_not_pooled_with_unknown_recipes() -> None:
    old = {"scale": "mini", "dataset": "shapes", "recipe_digest": "a", "record": None}
    found = [result("finetune", 60.0 + seed, seed=seed, checkpoint_sha256=sha, **old) for seed, sha in enumerate("xxy")]
    unknown = result("finetune", 50.0, seed=3, checkpoint_sha256="x", **(old | {"recipe_digest": None}))
    first, second = own(*found, unknown)
    assert (first.counts, first.ours, second.counts) == (
        "2 pretrainings, 3 transfers",
        spread([60.0, 61.0, 62.0]),
        "1 pretraining, 1 transfer",
    )


@pytest.mark.parametrize(("values", "published", "text"), [
    ((83.5,), None, "83.5"),
    ((83.5, 83.9), None, "83.7±0.3"),
    ((83.5, 83.9), 83.6, "83.7±0.3 (83.6, +0.1)"),
    ((83.0,), 83.664, "83.0 (83.664, -0.7)"),
    ((50.0, 50.02), None, "50.0±0.01"),
    ((50.0, 50.0), None, "50.0±0"),
    ((50.3,), 50.32, "50.3 (50.32, 0.0)"),
])  # fmt: skip
def test_a_cell_says_mean_deviation_published_number_and_difference(
    values: tuple[float, ...], published: float | None, text: str
) -> None:
    (cell,) = own(*(transfer(value, seed) for seed, value in enumerate(values)))
    known = Published("3", "MAE", "ViT-B/16", published, "%", "a paper", Elsewhere("its recipe")) if published else None
    assert cell_text(cell._replace(published=known)) == text


@pytest.mark.parametrize(("sd", "unit", "text"), [
    (0.26, "%", "0.3"), (12.34, "%", "12.3"), (0.012, "%", "0.01"), (0.0, "%", "0"),
    (200.0, "images/s", "200"), (4.1, "images/s", "4.1"), (0.072, "h", "0.072"), (0.0291, "x", "0.029"),
])  # fmt: skip
def test_a_deviation_has_no_exponent(sd: float, unit: str, text: str) -> None:
    assert comparison.deviation_text(sd, unit) == text


@pytest.mark.parametrize("value", [15.2, 12.5, 0.1, 63.7])
def test_the_mean_of_equal_values_is_their_value(value: float) -> None:
    found = spread([value] * 3)
    assert (found.mean, found.low, found.high) == (value, value, value)


def test_spread_has_no_deviation_for_one_run() -> None:
    assert spread([60.0, 62.0, 64.0]) == (62.0, 2.0, 60.0, 64.0, 3)
    assert spread([60.0]).sd is None


def suite() -> list[Measurement]:
    """Three pretrainings of two kinds with one transfer each, and random weights; linear probing of the first kind."""
    kinds = {"pixels": (60.0, 61.0, 65.0), "tokens": (61.0, 62.0, 64.0), "random weights": (30.0, 31.0, 32.0)}
    found: list[Measurement] = []
    for row, values in kinds.items():
        fresh = row == "random weights"
        runs = [transfer(value, seed, weights=f"w{seed}", fresh=fresh) for seed, value in enumerate(values)]
        found += recorded(*runs, row=row)
    return found + recorded(transfer(40.0, protocol="linear"), row="pixels")


def test_paired_differences_are_over_the_seeds_that_both_rows_have() -> None:
    (table,) = build(["summary"], suite(), about=About(rows=("pixels", "tokens", "random weights")))
    # tokens - pixels: +1, +1, -1: mean +0.33; random - pixels: -30, -30, -33: mean -31
    assert [(one.row, one.base, one.column, difference_text(one), one.seeds) for one in table.differences] == [
        ("tokens", "pixels", "fine-tune", "+0.33 [-1.00..+1.00]", (0, 1, 2)),
        ("random weights", "pixels", "fine-tune", "-31.00 [-33.00..-30.00]", (0, 1, 2)),
    ]
    main, paired = sheets.sheets([table])
    assert paired.title == "Summary: pretrainings by tasks, % (mini scale): difference to pixels, seed by seed"
    assert [[cell.text for cell in row] for row in paired.rows] == [
        ["tokens", "+0.33 [-1.00..+1.00]"],
        ["random weights", "-31.00 [-33.00..-30.00]"],
    ]
    assert [[cell.text for cell in row] for row in main.rows] == [
        ["pixels", "62.0±2.6 (3 pretrainings x 1 transfer)", "40.0 (1 pretraining, 1 transfer)"],
        ["tokens", "62.3±1.5", "-"],
        ["random weights", "31.0±1.0", "-"],
    ]
    assert main.notes == ("mean±sd over runs: tokens: 3 pretrainings x 1 transfer; random weights: 3 runs",)


def test_pairs_need_two_common_seeds() -> None:
    found = recorded(transfer(60.0, 0), transfer(61.0, 1), row="a") + recorded(
        transfer(50.0, 1), transfer(51.0, 2), row="b"
    )
    (table,) = build(["summary"], found)
    assert table.differences == ()


def test_pairs_of_several_pretrainings_match_both_seeds_and_against_random_weights_the_transfers_mean() -> None:
    (one,) = own(*(transfer(60.0 + 10 * p + t, t, weights=f"w{p}") for p in (0, 1) for t in (0, 1)))
    (other,) = own(*(transfer(50.0 + 10 * p, t, weights=f"w{p}") for p in (0, 1) for t in (0, 1)))
    assert comparison.paired(one.runs, other.runs) == {(0, 0): 10.0, (0, 1): 11.0, (1, 0): 10.0, (1, 1): 11.0}
    (fresh,) = own(*(transfer(30.0, seed, fresh=True) for seed in (0, 1)))
    assert comparison.paired(one.runs, fresh.runs) == {(None, 0): 35.0, (None, 1): 36.0}


@pytest.mark.parametrize(("higher", "best"), [(True, ["a"]), (False, ["b"])])
def test_the_best_of_a_column_follows_the_direction_of_the_metric(higher: bool, best: list[str]) -> None:
    found = [
        Measurement(transfer(value).model_copy(update={"higher_is_better": higher}), Path("r"), note.note)
        for value, note in ((60.0, recorded(transfer(1.0), row="a")[0]), (50.0, recorded(transfer(1.0), row="b")[0]))
    ]
    (table,) = build(["summary"], found)
    assert [row.name for row in table.rows if table.is_best(row.cells["fine-tune"])] == best


def test_a_column_with_one_number_has_no_best_and_equal_prints_are_both_best() -> None:
    (table,) = build(["summary"], recorded(transfer(60.0), row="a"))
    assert not table.is_best(table.rows[0].cells["fine-tune"])
    (table,) = build(["summary"], recorded(transfer(60.01), row="a") + recorded(transfer(60.04), row="b"))
    assert all(table.is_best(row.cells["fine-tune"]) for row in table.rows)


def detected(dataset: str, scale: str) -> list[Measurement]:
    return recorded(
        result("mask_rcnn-li2021", 40.0, task="detect", metric="bbox/AP", dataset=dataset, scale=scale), row="mine"
    )


def test_a_title_says_what_was_really_run() -> None:
    found = detected("coco", "paper") + detected("own_pedestrians", "small")
    assert [table.title for table in build(["4"], found)] == [
        "Table 4 (COCO Mask R-CNN, AP %)",
        "After table 4 (Mask R-CNN, AP %), on 'own_pedestrians', small scale",
    ]


def test_published_rows_stand_under_the_papers_title_alone() -> None:
    first, second = build(["4"], detected("own_pedestrians", "small"), show="all")
    assert (first.title, {row.kind for row in first.rows}) == ("Table 4 (COCO Mask R-CNN, AP %)", {"published"})
    assert (second.title[:13], {row.kind for row in second.rows}) == ("After table 4", {"ours"})


def test_the_summary_ends_with_what_guessing_scores() -> None:
    (table,) = build(["summary"], suite(), about=About(rows=("random weights",), chance={"linear": 10.0, "mIoU": 7.7}))
    assert [row.name for row in table.rows] == ["random weights", "pixels", "tokens", "chance"]
    assert {column: cell_text(cell) for column, cell in table.rows[-1].cells.items()} == {"linear": "10.0"}


def names(tables: list[Table]) -> list[str]:
    return [table.name for table in tables]


def test_tables_with_the_numbers_of_the_summary_are_named_and_not_printed() -> None:
    cost = result("MAE", 0.5, task="pretrain", metric="val_loss", unit="loss", scale="mini", dataset="shapes")
    found = suite() + recorded(cost, row="pixels")
    tables, same = comparison.worth_printing(found, about=About(tables=("3", "12", "2")))
    assert (names(tables), same) == (["summary", "2"], ["3", "12"])
    compared = recorded(result("finetune", 83.5), row="mine")
    tables, _ = comparison.worth_printing(compared, about=About(tables=("3",)))
    assert names(tables)[0] == "summary"


def test_a_hand_edited_line_leaves_its_file_out_and_says_so(tmp_path: Path) -> None:
    for name in ("kept", "edited"):
        file = tmp_path / name / "results.jsonl"
        results.append(file, [transfer(60.0)])
        about = {"suite": "s", "name": name, "role": "transfer", "row": name, "identity": "", "command": []}
        records.write_note(file.parent, Note.model_validate(about | {"results": records.line_digests(file)}))
    file.write_text(file.read_text().replace('"value":60.0', '"value":99.0'))
    found, defects = records.load([tmp_path])
    assert [one.label for one in found] == ["kept"]
    assert defects == [
        f"{file}: 1 of 1 lines were changed or removed after the run; its numbers are not used: run it again, "
        "or restore the file"
    ]


def test_numbers_of_mixed_units_are_never_one_number() -> None:
    good = recorded(transfer(60.0, 0), transfer(0.62, 1).model_copy(update={"unit": "fraction"}), row="mine")
    kept, defects = comparison.usable(good)
    assert [one.result.value for one in kept] == [60.0]
    assert defects[0].endswith("top1 in 'fraction', the tables take '%'; left out")


def test_a_suite_says_its_tables_rows_and_chance_to_the_tables(tmp_path: Path) -> None:
    suite = About(tables=("3",), rows=("a", "b"), chance={"k-NN": 10.0})
    records.write_about(tmp_path / "d", suite)
    (tmp_path / "d" / "a").mkdir()
    for folder in (tmp_path / "d", tmp_path, tmp_path / "d" / "a"):
        assert records.suites([folder]) == ({(tmp_path / "d").resolve(): suite}, [])
    (tmp_path / "d" / "suite.json").write_text("{")
    known, (defect,) = records.suites([tmp_path / "d"])
    assert known == {}
    assert defect.startswith(f"{tmp_path / 'd' / 'suite.json'} cannot be read, so no claims are judged")


def mini() -> list[Measurement]:
    """What the mini suite leaves: six numbers of three rows, and the cost of two pretrainings on this CPU."""
    tasks = {
        "finetune": {}, "linear": {}, "knn-20": {}, "box": {"task": "detect", "metric": "bbox/AP"},
        "mask": {"task": "detect", "metric": "segm/AP"}, "upernet": {"task": "segment", "metric": "mIoU"},
    }  # fmt: skip
    found: list[Measurement] = []
    for row in ("pixel (w/ norm)", "pixel (w/o norm)", "random weights"):
        for protocol, about in tasks.items():
            one = transfer(61.7, protocol=protocol, fresh=row == "random weights")
            found += recorded(one.model_copy(update=about), row=row)
    about = {
        "task": "pretrain",
        "metric": "val_loss",
        "unit": "loss",
        "scale": "mini",
        "dataset": "shapes",
        "images_seen": 61_440,
    }
    for row, seconds in (("pixel (w/ norm)", 72.0), ("pixel (w/o norm)", 144.0)):
        cpu = sitting(32, ("cpu (x86_64, 1 thread)",), train=seconds)
        run = result("MAE", 0.4, record=made("pretrain", sittings=(cpu,)), flops_per_image=65_647_104, **about)
        found += recorded(run, row=row)
    return found


def test_the_mini_suite_fits_a_screen_of_80_by_24() -> None:
    rows = ("pixel (w/ norm)", "pixel (w/o norm)", "random weights")
    chance = {"fine-tune": 10.0, "linear": 10.0, "k-NN": 10.0, "mIoU": 7.7}
    about = About(tables=("1d", "3", "4", "5", "12", "knn", "2"), rows=rows, chance=chance)
    tables, same = comparison.worth_printing(mini(), about=about)
    text = io.StringIO()
    for sheet in sheets.sheets(tables):
        formats.draw(sheet, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert names(tables) == ["summary", "2"]
    assert same == ["3", "4", "5", "12", "knn"]
    assert len(lines) + 2 <= 24  # the line that names the other tables, and the prompt
    assert max(map(len, lines)) <= 80
    assert "pixel (w/ norm)   61.7       61.7    61.7  61.7    61.7     61.7" in [line.rstrip() for line in lines]
    assert "pixel (w/ norm)   0.02          853           2x        197         0.0656" in [
        line.rstrip() for line in lines
    ]
