"""suite/published: every number once, with its source; the paper's own arithmetic holds."""

import pytest

from mae_transfer.suite.layouts import LAYOUTS
from mae_transfer.suite.places import ROWS
from mae_transfer.suite.published import PUBLISHED
from mae_transfer.suite.published.survey import SEEN

NUMBERS = {(p.table, p.row, p.column): p for p in PUBLISHED}


def test_numbers_are_unique_sourced_and_shown_somewhere() -> None:
    assert len(NUMBERS) == len(PUBLISHED)
    assert all((p.source and p.value >= 0) or p.row.startswith("token -") for p in PUBLISHED)
    assert {p.table for p in PUBLISHED} <= LAYOUTS.keys()


def test_percentages_are_percentages() -> None:
    assert all(p.value <= 100 for p in PUBLISHED if p.unit == "%" and p.column != SEEN)


def test_numbers_that_no_document_confirms_are_marked_where_they_are_printed() -> None:
    assert [p.text for p in PUBLISHED if not p.confirmed] == ["43.6 ?", "44.9 ?"]


@pytest.mark.parametrize(("table", "row", "column", "text"), [
    ("1a", "1 block", "linear", "65.5"), ("1d", "dVAE token", "linear", "71.6"),
    ("2", "ViT-H/14, w/ [M], 8 blocks", "hours on 128 TPU-v3 cores", "119.6"),
    ("3", "MAE", "ViT-H/14 at 448", "87.8"), ("3", "MAE, released weights", "ViT-L/16", "85.952"), ("4", "MAE", "mask AP, ViT-L/16", "47.2"),
    ("5", "BEiT", "ViT-L/16", "53.3"), ("6", "MAE", "Places205, ViT-H/14 at 448", "66.8"), ("6", "previous best", "iNat 2019", "84.1"),
    ("7", "dVAE token", "COCO box AP, ViT-L/16", "53.2"), ("13", "MAE", "imagenet-c, ViT-H/14", "33.8"),
    ("13", "supervised", "imagenet-sketch, ViT-L/16", "37.5"),
    ("figure 5", "fine-tuning", "40%", "84.7"), ("figure 9", "MAE", "half", "79.1"), ("vitdet", "Cascade", "mask AP, ViT-H/14", "51.0"),
    ("survey", "MoBY, DeiT-S/16", "linear", "72.8"),
])  # fmt: skip
def test_a_number_stands_where_its_paper_has_it(table: str, row: str, column: str, text: str) -> None:
    assert NUMBERS[table, row, column].text == text


def test_the_difference_row_of_table_7_is_the_difference_of_its_rows() -> None:
    for (table, row, column), number in NUMBERS.items():
        if row == "token - pixel (w/ norm)":
            difference = NUMBERS[table, "dVAE token", column].value - NUMBERS[table, "pixel (w/ norm)", column].value
            assert difference == pytest.approx(number.value)


def test_the_default_run_is_the_same_number_in_every_ablation() -> None:
    default = [
        ("1a", "8 blocks"),
        ("1b", "512-d"),
        ("1c", "encoder w/o [M]"),
        ("1d", "pixel (w/o norm)"),
        ("1e", "crop, rand size"),
        ("1f", "random 75%"),
    ]
    assert {(NUMBERS[t, r, "fine-tuning"].value, NUMBERS[t, r, "linear"].value) for t, r in default} == {(84.9, 73.5)}


def test_every_method_of_the_survey_is_there() -> None:
    methods = {row.split(",")[0] for row in ROWS["survey"]}
    assert methods >= {"iGPT", "MPP", "MoCo v3", "MoBY", "DINO", "iBOT", "EsViT", "BEiT", "MAE"}
