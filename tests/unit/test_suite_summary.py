"""suite/tables/summary.py: pretrainings by tasks from hand-made results, and whether the suite's expectations hold."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from test_tables import recorded, result

from mae_transfer.config import validate
from mae_transfer.suite.graph.schema import SuiteConfig
from mae_transfer.suite.store.records import Measurement
from mae_transfer.suite.tables import summary
from mae_transfer.suite.tables.comparison import cell_text

ROWS = {"pixels": {"config": "p.py"}, "random weights": {"fresh": {"a": 1}}}


def suite(**changes: object) -> SuiteConfig:
    values = {
        "title": "s",
        "tables": (),
        "rows": ROWS,
        "transfer": {"t": {"tool": "cls_train", "config": "c.py"}},
        **changes,
    }
    return validate(values, SuiteConfig, where="s.py")


def measured() -> list[Measurement]:
    small = {"scale": "mini", "dataset": "shapes"}
    ap = {"task": "detect", "metric": "bbox/AP", **small}
    pixels = [
        result("finetune", 60.0, **small),
        result("finetune", 70.0, seed=1, **small),
        result("knn-20", 15.0, **small),
        result("m", 20.0, **ap),
    ]
    fresh = [result("finetune", 30.0, pretrain="none", **small), result("knn-20", 16.0, pretrain="none", **small)]
    return [*recorded(*fresh, row="random weights"), *recorded(*pixels, row="pixels")]


def test_the_table_has_a_row_per_pretraining_and_a_column_per_task() -> None:
    found = summary.summarise(suite(chance={"k-NN": 10.0, "mIoU": 7.0}), measured())
    assert found.columns == ("fine-tune", "k-NN", "box AP")
    assert list(found.rows) == ["pixels", "random weights"]
    assert cell_text(found.rows["pixels"]["fine-tune"]) == "65.0±7.1"
    assert found.chance == {"k-NN": 10.0}
    assert found.baseline == "random weights"


def test_a_column_says_what_differs_within_the_suite() -> None:
    found = measured() + recorded(result("knn-5", 14.0, scale="mini", dataset="shapes"), row="pixels")
    assert [column for column in summary.summarise(suite(), found).columns if "k-NN" in column] == [
        "k-NN, k = 20",
        "k-NN, k = 5",
    ]


def test_each_row_is_compared_with_random_weights() -> None:
    assert summary.sentences(summary.summarise(suite(), measured())) == [
        "pixels: better than random weights in 1 of 2 columns; largest difference +35.0 points (fine-tune).",
        "random weights: no pretraining. The other rows are compared with this one.",
    ]


@pytest.mark.parametrize(
    ("one", "holds", "words"),
    [
        (
            {"column": "fine-tune", "row": "pixels", "above": "random weights", "by": 35.0},
            True,
            "65.0, random weights 30.0",
        ),
        ({"column": "fine-tune", "row": "pixels", "above": "random weights", "by": 35.1}, False, "at least 35.1 above"),
        ({"column": "k-NN", "row": "pixels", "above": "random weights"}, False, "15.0, random weights 16.0"),
        ({"column": "box AP", "row": "pixels", "by": 20.0}, True, "20.0, expected at least 20"),
        ({"column": "box AP", "row": "pixels", "by": 20.5}, False, "expected at least 20.5"),
        ({"column": "box AP", "row": "pixels", "above": "random weights"}, False, "random weights has no number"),
        ({"column": "mIoU", "row": "pixels", "by": 1.0}, False, "pixels has no number"),
    ],
)
def test_an_expectation_holds_or_says_what_was_found(one: dict[str, object], holds: bool, words: str) -> None:
    cfg = suite(expect=(one,))
    (verdict,) = summary.verdicts(summary.summarise(cfg, measured()), cfg.expect)
    assert verdict.holds == holds
    assert words in verdict.sentence


def test_an_expectation_of_a_row_that_the_suite_has_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="expect: the suite has no row 'pixel'; did you mean 'pixels'"):
        suite(expect=({"column": "fine-tune", "row": "pixel"},))


def test_what_is_printed_fits_a_terminal_of_80_columns() -> None:
    cfg = suite(expect=({"column": "fine-tune", "row": "pixels", "by": 90.0},), chance={"fine-tune": 10.0})
    text = io.StringIO()
    found = summary.summarise(cfg, measured())
    summary.show(found, summary.verdicts(found, cfg.expect), Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("chance") for line in lines)
    assert "NOT AS EXPECTED  fine-tune: pixels 65.0, expected at least 90" in lines
