"""The table of frozen features: columns by protocol and data, average ranks, missing numbers, published numbers."""

from __future__ import annotations

import pytest

from mae_transfer.data.image_sets import SETS
from mae_transfer.interfaces import MEAN_PER_CLASS
from mae_transfer.results import Result
from mae_transfer.suite.published.measured import JUDGED_BY_CLASS
from mae_transfer.suite.store import steps
from mae_transfer.suite.store.records import About, Measurement
from mae_transfer.suite.tables import comparison, formats, sheets
from mae_transfer.suite.tables.cells import Cell, Run
from mae_transfer.suite.tables.comparison import Table, build
from mae_transfer.suite.tables.ranks import RANK, average_ranks
from mae_transfer.tasks.knn import KnnConfig
from tests.unit import as_published
from tests.unit.test_tables import recorded, result


def small(protocol: str, value: float | None, **changes: object) -> Result:
    return result(protocol, value, **{"scale": "small", "dataset": "tiny", "epochs": 0.0, **changes})


def row(name: str, *found: Result) -> list[Measurement]:
    return recorded(*found, row=name)


def frozen(found: list[Measurement], **options: object) -> Table:
    (table,) = build(["frozen"], found, **options)  # type: ignore[arg-type]
    return table


def texts(table: Table) -> dict[str, list[str]]:
    (sheet,) = sheets.sheets([table])[:1]
    return {line[0].text: [cell.text for cell in line[1:]] for line in sheet.rows}


def test_columns_are_protocols_by_data_and_other_results_are_left_out() -> None:
    segment = {"task": "segment", "metric": "mIoU", "dataset": "camvid"}
    found = row(
        "a", small("frozen-knn", 32.0, **segment), small("logreg", 30.0), small("knn-10", 1.0),
        small("knn-20", 20.0), small("knn-20", 40.0, metric="top5"),
        small("linear", 25.0), small("efficient", 26.0), small("cross", 27.0), small("ridge", 24.0),
        small("linear", 2.0, split="holdout"), small("linear-1%-labels", 3.0), small("logreg-5shot", 4.0),
        small("finetune", 60.0), small("frozen-logreg", 33.0, **segment),
        small("upernet", 5.0, **segment), small("linear", 6.0, **segment), small("linear", 7.0, task="robustness"),
    )  # fmt: skip
    table = frozen(found)
    tiny = [f"{title}, tiny" for title in ("k-NN", "linear", "efficient", "cross", "ridge", "logreg")]
    assert table.columns == (*tiny, "frozen-knn, camvid", "frozen-logreg, camvid")
    assert texts(table) == {"a": ["20.0", "25.0", "26.0", "27.0", "24.0", "30.0", "32.0", "33.0"]}
    assert table.title == "Frozen features, % (no table of the paper), on 'camvid' and 'tiny', small scale"
    assert "k-NN of own runs: k = 20, fixed beforehand" in table.notes


def test_one_column_says_no_more_than_its_own_table() -> None:
    assert build(["frozen"], row("a", small("knn-20", 20.0)) + row("b", small("knn-20", 30.0))) == []


def test_sets_that_are_judged_by_class_have_their_mean_accuracy_per_class() -> None:
    pets = JUDGED_BY_CLASS["Pets"]
    data = {
        "train": as_published.data_set("pets", 3680, pets.classes),
        "val": as_published.data_set("pets", pets.val, pets.classes),
    }

    def both(protocol: str, top1: float, by_class: float) -> list[Result]:
        made = small(protocol, top1, dataset="my-pets")
        assert made.record is not None
        first = made.model_copy(update={"record": made.record.model_copy(update={"data": data})})
        return [first, first.model_copy(update={"metric": "mean-per-class", "value": by_class})]

    lost = small("ridge", None, dataset="my-pets", status="failed", reason="no memory")
    others = (small("linear", 50.0), small("linear", 1.0, metric="mean-per-class"))
    found = row("a", *both("knn-20", 80.0, 79.0), *both("logreg", 90.0, 88.0), lost, *others)
    assert texts(frozen(found)) == {"a": ["79.0", "- [1]", "88.0", "50.0"]}
    assert frozen(found).columns == ("k-NN, Pets", "ridge, Pets", "logreg, Pets", "linear, tiny")


def test_the_sets_that_are_judged_by_class_are_those_that_prepare_data_lays_out_so() -> None:
    prepared = {(one.train, one.val, one.classes) for one in SETS.values() if one.metric == MEAN_PER_CLASS}
    assert {(*one.train, one.val, one.classes) for one in JUDGED_BY_CLASS.values()} == prepared


def three() -> list[Measurement]:
    """By k-NN: a, b, c; by linear: b and c equal at the first seed, c before b at the second; c lacks logreg."""
    return [
        *row("a", small("knn-20", 30.0), small("linear", 10.0), small("linear", 10.0, seed=1), small("logreg", 9.0)),
        *row("b", small("knn-20", 20.0), small("linear", 40.0), small("linear", 39.0, seed=1), small("logreg", 8.0)),
        *row("c", small("knn-20", 10.0), small("linear", 40.0), small("linear", 41.0, seed=1),
             small("logreg", None, status="failed", reason="no memory")),
    ]  # fmt: skip


def test_ranks_are_averaged_over_the_columns_that_every_row_has_and_over_seeds() -> None:
    table = frozen(three())
    assert table.columns == ("k-NN, tiny", "linear, tiny", "logreg, tiny", RANK)
    ranks = {one.name: [run.value for run in one.cells[RANK].runs] for one in table.rows}
    assert ranks == {"a": [2.0, 2.0], "b": [1.75, 2.0], "c": [2.25, 2.0]}
    assert {one.name: one.cells[RANK].ours and one.cells[RANK].ours[2:4] for one in table.rows} == {
        "a": (2.0, 2.0), "b": (1.75, 2.0), "c": (2.0, 2.25),
    }  # fmt: skip
    assert texts(table)["c"][2] == "- [1]"
    (note,) = [note for note in table.notes if note.startswith(RANK)]
    assert "over the 2 columns in which every row has a number, without logreg, tiny: a number is missing" in note
    assert "equal numbers share the mean of their ranks" in note
    assert [table.is_best(one.cells[RANK]) for one in table.rows] == [False, True, False]


def test_a_row_whose_runs_failed_is_missing_and_changes_no_rank() -> None:
    failed = {"status": "failed", "reason": "no memory"}
    alone = frozen(three())
    found = three() + row("d", small("knn-20", None, **failed), small("linear", None, **failed))
    table = frozen(found)
    assert texts(table)["d"] == ["- [1]", "- [1]", "-", "-"]
    assert [one.cells[RANK].runs for one in table.rows[:3]] == [one.cells[RANK].runs for one in alone.rows]


def test_the_row_of_a_suite_comes_in_its_order_and_one_column_is_no_ranking() -> None:
    found = [one for one in three() if one.result.protocol != "linear"]
    table = frozen(found, about=About(rows=("c", "b", "a")))
    assert [one.name for one in table.rows] == ["c", "b", "a"]
    assert RANK not in table.columns, "only k-NN has a number in every row"


def ranked(*found: list[Measurement]) -> tuple[dict[str, list[tuple[int, float]]], str]:
    """Return the average ranks by seed, and the note on them."""
    table = frozen([one for some in found for one in some])
    (note,) = [note for note in table.notes if note.startswith(RANK)]
    return {one.name: [(run.seed, run.value) for run in one.cells[RANK].runs] for one in table.rows}, note


def seeds_of(protocol: str, **values: float) -> list[Result]:
    """Return a result per seed: s0=10.0."""
    return [small(protocol, value, seed=int(name[1:])) for name, value in values.items()]


def test_a_single_run_counts_for_every_seed_only_if_its_protocol_draws_nothing() -> None:
    fixed = {"a": small("knn-20", 30.0), "b": small("knn-20", 20.0)}
    full = row("b", fixed["b"], *seeds_of("linear", s0=30.0, s1=50.0, s2=30.0))
    ranks, note = ranked(row("a", fixed["a"], *seeds_of("linear", s0=40.0, s1=40.0, s2=40.0)), full)
    assert ranks == {"a": [(0, 1.0), (1, 1.5), (2, 1.0)], "b": [(0, 2.0), (1, 1.5), (2, 2.0)]}
    assert "without" not in note
    ranks, note = ranked(row("a", fixed["a"], *seeds_of("linear", s0=40.0)), full)
    assert ranks == {"a": [(0, 1.0)], "b": [(0, 2.0)]}
    assert note.endswith("; without seed 1, which a lacks; without seed 2, which a lacks")
    ranks, note = ranked(row("a", fixed["a"], *seeds_of("linear", s0=40.0, s1=40.0)), full)
    assert ranks == {"a": [(0, 1.0), (1, 1.5)], "b": [(0, 2.0), (1, 1.5)]}
    assert note.endswith("their ranks; without seed 2, which a lacks")


def test_random_weights_and_pretrainings_of_a_seed_count_for_that_seed_alone() -> None:
    full = row("b", *seeds_of("knn-20", s0=20.0, s1=20.0), *seeds_of("ridge", s0=30.0, s1=30.0))
    fresh = [one.model_copy(update={"pretrain": "none", "record": None})
             for one in (small("knn-20", 1.0), small("ridge", 2.0))]  # fmt: skip
    ranks, note = ranked(row("random", *fresh), full)
    assert [len(some) for some in ranks.values()] == [1, 1]
    assert note.endswith("; without seed 1, which random lacks")
    own = row("a", small("knn-20", 30.0), small("ridge", 40.0))
    for given, seeds in ((None, [0, 1]), (0, [0])):
        cells = [
            ("a", {str(n): Cell("a", str(n), "%", (Run(9.0, 0, "x", given, one),)) for n, one in enumerate(own)}),
            ("b", {str(n): Cell("b", str(n), "%", tuple(Run(8.0, s, f"y{s}", s, own[n]) for s in (0, 1)))
                   for n in (0, 1)}),
        ]  # fmt: skip
        assert [run.seed for run in average_ranks(cells, ("0", "1"))[0][0]] == seeds


def test_a_note_says_why_there_is_no_rank() -> None:
    def without(*found: list[Measurement]) -> list[str]:
        table = frozen([one for some in found for one in some])
        assert RANK not in table.columns
        return [note for note in table.notes if note.startswith(RANK)]

    a = row("a", *seeds_of("efficient", s0=40.0), *seeds_of("linear", s0=40.0))
    b = row("b", *seeds_of("efficient", s1=30.0), *seeds_of("linear", s1=30.0))
    assert without(a, b) == [
        "average rank: none, no seed has a number in every row and column; without seed 0, which b lacks; without seed "
        "1, which a lacks"
    ]
    assert without(a, row("b", small("linear", 30.0))) == [
        "average rank: none, fewer than 2 columns have a number in every row; a number is missing in efficient, tiny"
    ]
    assert without(a) == [], "one row has no rank"


def test_a_note_names_the_pool_of_columns_that_read_one_vector() -> None:
    def reads(one: Result, pool: str) -> Result:
        assert one.record is not None
        recipe = {**one.record.recipe, "pool": pool}
        return one.model_copy(update={"record": one.record.model_copy(update={"recipe": recipe})})

    found = row("a", reads(small("knn-20", 1.0), "cls"), reads(small("ridge", 1.0), "mean"), small("linear", 1.0),
                reads(small("logreg", 1.0), "cls"))  # fmt: skip
    notes = [note for note in frozen(found).notes if note.startswith("pool")]
    assert notes == ["pool 'cls': k-NN, tiny; logreg, tiny", "pool 'mean': ridge, tiny"]


def test_a_failed_knn_is_missing_where_its_own_k_stands() -> None:
    lost = {"status": "failed", "reason": "no memory"}
    found = row("a", small("linear", 40.0), small("ridge", 30.0), small("knn-5", None, **lost))
    assert frozen(found).columns == ("linear, tiny", "ridge, tiny")
    cfg = KnnConfig(scale="mini", ks=(5, 20))
    assert steps.protocols(cfg) == ("knn-5", "knn-20")
    found += row("a", *(small(protocol, None, **lost) for protocol in steps.protocols(cfg)))
    assert texts(frozen(found)) == {"a": ["- [1]", "40.0", "30.0"]}


@pytest.mark.parametrize("name", [*formats.FORMATS, "csv"])
def test_every_format_has_numbers_ranks_and_what_is_missing(name: str) -> None:
    tables = [frozen(three())]
    text = formats.as_csv(sheets.lines(tables)) if name == "csv" else formats.FORMATS[name](sheets.sheets(tables))
    assert RANK in " ".join(text.split())
    assert "no memory" in text
    assert "40.5" in text


def test_released_mae_stands_beside_the_number_of_its_authors_and_grey_rows_say_what_they_select_on() -> None:
    mae = {"pretrain": "mae_vit_base", "scale": "paper", "dataset": "imagenet"}
    found = row("MAE", result("linear", 67.5, **{**mae, "epochs": 90.0, "global_batch": 16384}),
                result("knn-20", 35.0, **{**mae, "epochs": 0.0}))  # fmt: skip
    table = frozen(found)
    assert texts(table)["MAE"][1] == "67.5 (67.8, -0.3)"
    assert comparison.misses([table]) == [
        "frozen: MAE, k-NN, ImageNet: not beside 35.6: measured with efficient-probing's protocol: epoch, k and "
        "temperature are selected on the validation images"
    ]
    everything = frozen(found, show="all")
    assert {"SimMIM, ViT-B/16, published", "DINO, ViT-B/16, published"} <= set(texts(everything))
    assert texts(everything)["SimMIM, ViT-B/16, published"][:3] == ["8.6", "47.1", "64.9"]
    assert any("epoch, k and temperature are selected on the validation images" in note for note in everything.notes)
    assert RANK not in everything.columns
