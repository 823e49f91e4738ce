"""suite/published: every number once, with its source; the paper's own arithmetic holds."""

import pytest

from mae_transfer.suite.published import PUBLISHED
from mae_transfer.suite.published.survey import SEEN
from mae_transfer.suite.tables.layouts import LAYOUTS, ROWS

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
    ("3", "MAE", "ViT-H/14 at 448", "87.8"), ("3", "MAE, released weights", "ViT-L/16", "85.952"),
    ("4", "MAE", "mask AP, ViT-L/16", "47.2"),
    ("5", "BEiT", "ViT-L/16", "53.3"), ("6", "MAE", "Places205, ViT-H/14 at 448", "66.8"),
    ("6", "previous best", "iNat 2019", "84.1"),
    ("7", "dVAE token", "COCO box AP, ViT-L/16", "53.2"), ("13", "MAE", "imagenet-c, ViT-H/14", "33.8"),
    ("13", "supervised", "imagenet-sketch, ViT-L/16", "37.5"),
    ("figure 5", "fine-tuning", "40%", "84.7"), ("figure 9", "MAE", "half", "79.1"),
    ("vitdet", "Cascade", "mask AP, ViT-H/14", "51.0"),
    ("survey", "MoBY, DeiT-S/16", "linear", "72.8"),
    ("13", "previous best", "imagenet-c", "42.5"), ("13", "previous best", "imagenet-a", "35.8"),
    ("13", "previous best", "imagenet-r", "48.7"), ("13", "previous best", "imagenet-sketch", "36.0"),
    ("survey", "previous best, ImageNet-1K alone", "fine-tuning", "87.1"),
    ("3", "none (scratch), without EMA", "ViT-B/16", "82.1"), ("3", "none (scratch), without EMA", "ViT-L/16", "81.5"),
    ("3", "none (scratch), without EMA", "ViT-H/14", "80.9"),
    ("survey", "BEiT on pixels, ViT-L/16", "fine-tuning", "83.5"),
    ("coco", "MAE, 25 epochs, MIMDet", "box AP, ViT-B/16", "48.0"),
    ("coco", "MAE, 50 epochs, MIMDet", "mask AP, ViT-B/16", "44.9"),
    ("coco", "MAE, 100 epochs, MIMDet", "box AP, ViT-B/16", "50.4"),
    ("vitdet", "LVIS, Cascade", "box AP, ViT-B/16", "43.0"), ("vitdet", "LVIS, Cascade", "mask AP, ViT-L/16", "44.5"),
    ("vitdet", "LVIS, Cascade", "box AP, ViT-H/14", "51.5"), ("vitdet", "LVIS, Cascade", "mask AP, ViT-H/14", "46.6"),
    ("survey", "BEiT, ViT-B/16 at 384", "fine-tuning", "84.6"),
    ("survey", "BEiT, ViT-L/16 at 384", "fine-tuning", "86.3"),
    ("survey", "MoCo v3, ViT-H", "linear", "78.1"), ("survey", "MoCo v3, ViT-BN-L/7", "linear", "81.0"),
    ("survey", "SimMIM, ViT-B/16", "fine-tuning", "83.8"), ("survey", "MaskFeat, ViT-L/16", "fine-tuning", "85.7"),
    ("survey", "MPP, ViT-B/16 at 384", "fine-tuning", "79.9"),
    ("survey", "MAE, ViT-B/16, frozen", "k-NN", "35.6"), ("survey", "MAE, ViT-L/16, frozen", "efficient probe", "79.5"),
    ("survey", "SimMIM, ViT-B/16, frozen", "linear", "47.1"), ("survey", "MaskFeat, ViT-B/16, frozen", "k-NN", "15.9"),
    ("survey", "iBOT, ViT-B/16, frozen", "efficient probe", "79.0"),
    ("survey", "DINO, ViT-B/16, frozen", "linear", "77.2"),
    ("survey", "MoCo v3, ViT-B/16, frozen", "efficient probe", "76.5"),
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


@pytest.mark.parametrize(("row", "share"), [
    ("MAE, ViT-B/16", 25), ("BEiT, ViT-B/16", 100), ("iGPT, iGPT-L", 100), ("MPP, ViT-B/16 at 384", 100),
    ("MoCo v3, ViT-B/16", 200), ("MoBY, Swin-T", 200),
    ("DINO, ViT-B/16", 200), ("iBOT, ViT-B/16", 200), ("EsViT, Swin-B/W14", 200),
])  # fmt: skip
def test_two_views_of_an_image_are_twice_its_patches(row: str, share: float) -> None:
    assert NUMBERS["survey", row, SEEN].value == share


@pytest.mark.parametrize(("table", "row", "column", "source"), [
    ("survey", "MoCo v3, ViT-S/16", "linear", "README of facebookresearch/moco-v3 (300 epochs)"),
    ("survey", "MoCo v3, ViT-B/16", "linear", "README of facebookresearch/moco-v3 (300 epochs)"),
    ("3", "MAE, released weights", "ViT-B/16", "FINETUNE.md of facebookresearch/mae"),
    ("12", "MAE, PyTorch", "ViT-H/14", "FINETUNE.md of facebookresearch/mae"),
    ("ade", "MAE, during a run, at 80k iterations", "mIoU, ViT-B/16", "log of implus/mae_segmentation"),
    ("ade", "MAE, during a run, at 128k iterations", "mIoU, ViT-B/16", "during one run of 160k iterations"),
    ("ade", "BEiT, ImageNet-1K, SETR-PUP", "mIoU, ViT-B/16", "table 3 (SETR-PUP, not UperNet)"),
    ("ade", "BEiT, 640 px, ImageNet-22K with labels", "mIoU, ViT-B/16", "README of microsoft/unilm"),
    ("ade", "BEiT, 640 px, ImageNet-22K with labels", "mIoU, ViT-L/16", "README of microsoft/unilm"),
    ("4", "none (scratch)", "box AP, ViT-B/16", "section 4.2 (200 epochs)"),
    ("3", "MoCo v3", "ViT-B/16", "DeiT's, 150 epochs"), ("5", "MAE", "ViT-B/16", "100 epochs, appendix A.4"),
    ("12", "iGPT", "iGPT-L", "VQ-VAE variant"), ("12", "iGPT", "iGPT-XL", "five layers"),
])  # fmt: skip
def test_a_number_names_the_document_that_states_it(table: str, row: str, column: str, source: str) -> None:
    assert source in NUMBERS[table, row, column].source


def numbers(table: str, rows: tuple[str, ...], column: str) -> list[str]:
    return [NUMBERS[table, row, column].text for row in rows]


def test_sources_that_disagree_stand_side_by_side() -> None:
    assert numbers("12", ("BEiT", "BEiT, as BEiT states it"), "ViT-L/16") == ["52.1", "73.5"]
    assert numbers("12", ("BEiT, as BEiT states it",), "ViT-B/16") == ["56.7"]
    assert numbers("12", ("iGPT", "iGPT, 48 px", "iGPT, 32 px"), "iGPT-L") == ["69.0", "65.2", "60.3"]
    assert numbers("12", ("iGPT", "iGPT, one layer", "iGPT, five layers"), "iGPT-XL") == ["72.0", "68.7", "72.0"]
    mixup = "MAE, ViT-B/16, openmixup, 400 ep"
    assert numbers("survey", (mixup, f"{mixup}, config's README"), "fine-tuning") == ["83.1", "83.3"]
    small, base = "MoCo v3, ViT-S/16", "MoCo v3, ViT-B/16"
    runs = ("", ", paper, shorter", ", paper, longer")
    assert numbers("survey", tuple(small + run for run in runs), "linear") == ["73.2", "72.5", "73.4"]
    assert numbers("survey", tuple(base + run for run in runs), "linear") == ["76.7", "76.5", "76.7"]


def test_probes_of_four_blocks_have_a_column_of_their_own() -> None:
    four = {row for table, row, column in NUMBERS if (table, column) == ("survey", "linear, four blocks")}
    linear = {row for table, row, column in NUMBERS if (table, column) == ("survey", "linear")}
    assert {row.split(",")[0] for row in four} == {"DINO", "EsViT"}
    assert not four & linear
