"""Published numbers of dense transfer and of other data sets: MAE's tables 4 to 7, ViTDet, ADE20K by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mae_transfer.suite.published.entry import BASE_LARGE, MAE, SIZES, Published, block, each, size_of
from mae_transfer.suite.published.measured import (
    BACKBONES,
    BASE,
    BEIT,
    DEIT,
    FRESH,
    HUGE,
    JOINT,
    LARGE,
    MOCO,
    ON_ADE20K,
    TARGETS,
    Elsewhere,
    Measured,
    Start,
    detected,
    finetuned,
    mae,
    segmented,
    vitdet,
)
from mae_transfer.suite.published.measured import FINE_GRAINED as DATA
from mae_transfer.suite.published.measured import MAE as MAE_PRETRAINED

AP = ("box AP", "mask AP")
LI = "Li et al., arXiv 2111.11429"
MIMDET = "README of hustvl/MIMDet (its rerun of Li et al.)"
VITDET = "ViTDet, arXiv 2203.16527"
VITDET_README = "README of detectron2's projects/ViTDet"
SCHEDULES = "R. Girshick, https://github.com/facebookresearch/mae/issues/43"
ADE_README = "README of implus/mae_segmentation"
ADE_LOG = "log of implus/mae_segmentation (an evaluation during one run of 160k iterations)"
NOT_RELEASED = "weights that were not released"
UNNAMED = Elsewhere("supervised weights that the paper does not name")
VARIANT = "a variant of the detector that has no config here"
HUGE_16 = "vit_huge/16"  # its patches of 14 pixels are resampled to 16


def started(row: str, size: str) -> Start | None:
    """Return the weights of a row of tables 4 and 5; None if they were not released and cannot be trained here."""
    base = size == "ViT-B/16"
    own = {
        "MAE": mae(BACKBONES[size]), "BEiT": Start(own=BEIT), "MoCo v3": MOCO if base else Start(own=JOINT["MoCo v3"]),
    }  # fmt: skip
    return own.get(row) or (DEIT if base and row == "supervised" else None)


def table_4(row: str, column: str) -> Measured | Elsewhere:
    """Return what table 4 was measured with.

    Its supervised rows are DeiT's ViT-B and MAE's own ViT-L (Li et al., section 3).
    """
    size = size_of(column)
    if row == "none (scratch)":
        length = "a length from random weights that the text does not state"
        return detected(BACKBONES[size], FRESH, (200.0,)) if size == "ViT-B/16" else Elsewhere(length)
    start = started(row, size)
    return detected(BACKBONES[size], start) if start else Elsewhere(f"{row} {size}: {NOT_RELEASED}")


def table_5(row: str, column: str) -> Measured | Elsewhere:
    """Return what table 5 was measured with."""
    start = None if row == "supervised" else started(row, column)
    return (
        segmented(BACKBONES[column], start)
        if start
        else UNNAMED
        if row == "supervised"
        else Elsewhere(f"{row} {column}: {NOT_RELEASED}")
    )


def schedule(row: str, column: str) -> Measured:
    """Return what MAE's ViT-B by the length of training was measured with: "MAE, 25 epochs"."""
    return detected(BACKBONES[size_of(column)], mae(BACKBONES[size_of(column)]), (LENGTHS[row],))


def lengths(row: str, column: str) -> Measured | Elsewhere:
    """Return what Li et al.'s ablations of ViT-L were measured with."""
    starts = {
        "MAE, pretrained for 800 epochs": Start(own=MAE_PRETRAINED.but(epochs=800)),
        "MAE, pretrained for 1600 epochs": mae(LARGE),
    }
    return detected(LARGE, starts[row]) if row in starts else Elsewhere(VARIANT)


def vitdet_at(column: str) -> Measured:
    """Return what ViTDet's Mask R-CNN was measured with at a size."""
    backbone = BACKBONES[size_of(column)]
    return vitdet(HUGE_16, mae(HUGE), 75.0) if backbone == HUGE else vitdet(backbone, mae(backbone), 100.0)


def table_7(row: str, column: str) -> Measured | Elsewhere:
    """Return what table 7 was measured with."""
    if row not in TARGETS:
        return Elsewhere("a difference of two rows")
    data, size = column.split(", ")
    backbone = BACKBONES[size]
    start = mae(backbone) if row == "pixel (w/ norm)" else Start(own=TARGETS[row])
    transfers: Mapping[str, Callable[[str, Start], Measured]] = {
        "ImageNet": finetuned,
        "COCO box AP": detected,
        "ADE20K mIoU": segmented,
    }
    return transfers[data](backbone, start)


def table_6(row: str, column: str) -> Measured:
    """Return what table 6 was measured with.

    The paper adjusts the epochs to each data set and does not state them. Those of table 9 count.
    """
    data, size = column.split(", ")
    name, _, pixels = size.partition(" at ")
    return finetuned(BACKBONES[name], mae(BACKBONES[name]), data=DATA[data], size=int(pixels or 224))


LENGTHS = {f"MAE, {epochs} epochs": float(epochs) for epochs in (25, 50, 100)}


COCO: tuple[Published, ...] = (
    *block(*each("4", f"{MAE}, table 4", AP, BASE_LARGE), {
        "supervised": (47.9, 49.3, 42.9, 43.9),
        "MoCo v3": (47.9, 49.3, 42.7, 44.0),
        "BEiT": (49.8, 53.3, 44.4, 47.1),
        "MAE": (50.3, 53.3, 44.9, 47.2),
    }, table_4),
    *block("4", f"{LI}, section 4.2 (200 epochs)", ("box AP, ViT-B/16",), {"none (scratch)": (48.9,)}, table_4),
    *block("4", f"{LI}, text", ("box AP, ViT-L/16",), {"none (scratch)": (50.7,)}, table_4),
    *block(*each("4", "quoted without a document", AP[1:], BASE_LARGE), {
        "none (scratch)": (43.6, 44.9),
    }, table_4, confirmed=False),
    *block(*each("coco", SCHEDULES, AP, SIZES[:1]), {
        "MAE, 25 epochs": (48.1, 43.2), "MAE, 50 epochs": (50.1, 44.6), "MAE, 100 epochs": (50.3, 44.9),
    }, schedule),
    *block(*each("coco", MIMDET, AP, SIZES[:1]), {
        "MAE, 25 epochs, MIMDet": (48.0, 43.0), "MAE, 50 epochs, MIMDet": (50.2, 44.9),
        "MAE, 100 epochs, MIMDet": (50.4, 44.9),
    }, Elsewhere("MIMDet's code, windows of 16")),
    *block("coco", LI, ("box AP, ViT-L/16",), {
        "MAE, windows only": (50.7,), "MAE, windows and global blocks": (53.3,),
        "MAE, pretrained for 800 epochs": (53.1,), "MAE, pretrained for 1600 epochs": (53.3,),
    }, lengths),
    *block("coco", f"{LI} (50 epochs)", ("box AP, ViT-B/16",), {
        "MAE, single scale": (48.4,), "MAE, FPN": (50.1,),
    }, Elsewhere(VARIANT)),
)  # fmt: skip

FINAL: tuple[Published, ...] = (
    *block(*each("vitdet", VITDET_README, AP, SIZES[:3]), {
        "Mask R-CNN": (51.6, 55.5, 56.7, 45.9, 49.2, 50.2),
    }, lambda row, column: vitdet_at(column)),
    *block(*each("vitdet", VITDET_README, AP, SIZES[:3]), {
        "Cascade": (54.0, 57.6, 58.7, 46.7, 50.0, 51.0),
    }, Elsewhere("Cascade Mask R-CNN")),
    *block(*each("vitdet", VITDET_README, AP, SIZES[:3]), {
        "LVIS, Mask R-CNN": (40.2, 46.1, 49.1, 38.2, 43.6, 46.0),
        "LVIS, Cascade": (43.0, 49.2, 51.5, 38.9, 44.5, 46.6),
    }, Elsewhere("LVIS")),
    *block("vitdet", VITDET_README, ("standard deviation over seeds",), {
        "Mask R-CNN": (0.10,), "LVIS, Mask R-CNN": (0.30,),
    }, Elsewhere("five seeds")),
    *block(*each("vitdet", f"{VITDET}, table 1 (pyramid)", AP, BASE_LARGE), {
        "no pyramid": (47.8, 51.2, 42.5, 45.4),
        "FPN, 4 stages": (50.3, 54.4, 44.9, 48.4),
        "FPN, last map": (50.9, 54.6, 45.3, 48.5),
    }, Elsewhere(VARIANT)),
    *block(*each("vitdet", f"{VITDET}, table 1 (pyramid)", AP, BASE_LARGE), {
        "simple pyramid": (51.2, 54.6, 45.5, 48.6),
    }, lambda row, column: vitdet_at(column)),
    *block(*each("vitdet", f"{VITDET}, table of initialisations", AP, BASE_LARGE), {
        "random init": (48.1, 50.0, 42.6, 44.2),
        "ImageNet-1K, supervised": (47.6, 49.6, 42.4, 43.8),
        "ImageNet-21K, supervised": (47.8, 50.6, 42.6, 44.8),
    }, Elsewhere("weights and lengths that have no config here")),
    *block(*each("vitdet", f"{VITDET}, table of initialisations", AP, BASE_LARGE), {
        "ImageNet-1K, MAE": (51.2, 54.6, 45.5, 48.6),
    }, lambda row, column: vitdet_at(column)),
    *block("vitdet", f"{VITDET}, table of global blocks", ("box AP, ViT-B/16",), {
        "0 global blocks": (48.9,), "2 global blocks": (50.7,), "4 global blocks": (51.2,), "12 global blocks": (50.4,),
    }, Elsewhere(VARIANT)),
)  # fmt: skip

MULTI = "mIoU, several scales"
BEIT_640 = "images of 640 px and weights fine-tuned on ImageNet-22K's labels"
ADE: tuple[Published, ...] = (
    *block("5", f"{MAE}, table 5 (100 epochs, appendix A.4)", BASE_LARGE, {
        "supervised": (47.4, 49.9), "MoCo v3": (47.3, 49.1), "BEiT": (47.1, 53.3), "MAE": (48.1, 53.6),
    }, table_5),
    *block("ade", f"{ADE_README} (160k iterations)", ("mIoU, ViT-B/16", "mAcc, ViT-B/16", "aAcc, ViT-B/16"), {
        "MAE": (48.15, 58.99, 83.05),
    }, segmented(BASE, mae(BASE), ON_ADE20K[1:])),
    *block("ade", ADE_LOG, ("mIoU, ViT-B/16",), {
        "MAE, during a run, at 80k iterations": (46.0,), "MAE, during a run, at 128k iterations": (47.7,),
    }, Elsewhere("a run of 160k iterations that was not finished")),
    *block("ade", "mmsegmentation, configs/mae (160k iterations)", ("mIoU, ViT-B/16", f"{MULTI}, ViT-B/16"), {
        "MAE, mmsegmentation": (48.13, 48.70),
    }, Elsewhere("mmsegmentation's own training")),
    *block("ade", "README of microsoft/unilm's beit", ("mIoU, ViT-B/16", f"{MULTI}, ViT-B/16"), {
        "BEiT, 640 px, ImageNet-22K with labels": (53.6, 54.2),
    }, Elsewhere(BEIT_640)),
    *block("ade", "README of microsoft/unilm's beit", ("mIoU, ViT-L/16", f"{MULTI}, ViT-L/16"), {
        "BEiT, 640 px, ImageNet-22K with labels": (56.7, 57.0),
    }, Elsewhere(BEIT_640)),
    *block("ade", "segmentation README of microsoft/unilm's beit", ("mIoU, ViT-B/16", f"{MULTI}, ViT-B/16"), {
        "BEiT, 640 px, ImageNet-22K with labels, more decimals": (53.61, 54.26),
    }, Elsewhere(BEIT_640)),
    *block("ade", "BEiT, arXiv 2106.08254, table 3 (SETR-PUP, not UperNet)", ("mIoU, ViT-B/16",), {
        "BEiT, ImageNet-1K, SETR-PUP": (45.6,),
    }, Elsewhere("SETR-PUP, not UperNet")),
)  # fmt: skip

TABLE_6: tuple[Published, ...] = (
    *block(*each("6", f"{MAE}, table 6", tuple(DATA), SIZES), {"MAE": (
        70.5, 75.7, 79.3, 83.4, 75.4, 80.1, 83.0, 86.8, 80.5, 83.4, 85.7, 88.3, 63.9, 65.8, 65.9, 66.8, 57.9,
        59.4, 59.8, 60.3,
    )}, table_6),
    *block("6", f"{MAE}, table 6 (the best before it, any architecture)", tuple(DATA), {
        "previous best": (75.4, 81.2, 84.1, 66.0, 58.0),
    }, Elsewhere("another architecture")),
)  # fmt: skip

TABLE_7: tuple[Published, ...] = (
    *block(*each("7", f"{MAE}, table 7", ("ImageNet",), SIZES[:3]), {
        "pixel (w/o norm)": (83.3, 85.1, 86.2), "pixel (w/ norm)": (83.6, 85.9, 86.9), "dVAE token": (83.6, 85.7, 86.9),
        "token - pixel (w/ norm)": (0.0, -0.2, 0.0),
    }, table_7),
    *block(*each("7", f"{MAE}, table 7", ("COCO box AP",), BASE_LARGE), {
        "pixel (w/o norm)": (49.5, 52.8), "pixel (w/ norm)": (50.3, 53.3), "dVAE token": (50.3, 53.2),
        "token - pixel (w/ norm)": (0.0, -0.1),
    }, table_7),
    *block(*each("7", f"{MAE}, table 7", ("ADE20K mIoU",), BASE_LARGE), {
        "pixel (w/o norm)": (48.0, 51.8), "pixel (w/ norm)": (48.1, 53.6), "dVAE token": (48.1, 53.4),
        "token - pixel (w/ norm)": (0.0, -0.2),
    }, table_7),
)  # fmt: skip

DENSE = COCO + FINAL + ADE + TABLE_6 + TABLE_7
