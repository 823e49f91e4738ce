"""The MAE paper's numbers on ImageNet-1K and its variants: tables 1, 2, 3, 12 and 13, figures 5, 7 and 9.

They are top-1 % if nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mae_transfer.suite.published.entry import MAE, SIZES, Published, block, each
from mae_transfer.suite.published.measured import (
    BACKBONES,
    DINO,
    LARGE,
    MAE_800,
    MAE_CLASSIFIERS,
    MAE_FILES,
    MOCO,
    TARGETS,
    Elsewhere,
    How,
    Measured,
    Pretraining,
    Start,
    finetuned,
    mae,
    partly_tuned,
    probed,
    robust,
    scratch,
)

BOTH = ("fine-tuning", "linear")
VARIANTS = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch")
BLOCKS = ("0", "half", "1", "2", "4", "6", "12", "18", "24")
RATIOS = (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)
LENGTHS = (100, 200, 400, 800, 1600)
ABLATED = "ViT-L/16, 800 epochs"
FIGURE_5 = f"{MAE}, figure 5 ({ABLATED}; the figure's labels in text order)"
COST = ("fine-tuning", "hours on 128 TPU-v3 cores", "speed-up")
FINETUNE_MD = "FINETUNE.md of facebookresearch/mae"
BEIT_TABLE_9 = "BEiT, arXiv 2106.08254, table 9"
IGPT = "iGPT, Chen et al., ICML 2020"
NO_RELEASE = "weights that were not released"
DEIT = "DeiT's recipe of fine-tuning"
TPUS = Elsewhere("128 TPU-v3 cores")
OTHER = "an architecture or data that this package does not have"

DEPTHS = {
    f"{depth} block{'s' * (depth > 1)}": MAE_800.but({"model.decoder.depth": depth}) for depth in (1, 2, 4, 8, 12)
}
WIDTHS = {f"{width}-d": MAE_800.but({"model.decoder.dim": width}) for width in (128, 256, 512, 768, 1024)}
TOKENS = {"encoder w/ [M]": MAE_800.but({"model.corrupt": "mask_token"}), "encoder w/o [M]": MAE_800}
TARGETS_800 = {row: target.but(epochs=800, tokenizer=target.tokenizer) for row, target in TARGETS.items()}
CROPS = {
    "none": MAE_800.but(
        {"data.augmentation.name": "none", "data.augmentation.scale": None, "data.augmentation.jitter": None}
    ),
    "crop, fixed size": MAE_800.but({"data.augmentation.name": "fixed_crop", "data.augmentation.scale": None}),
    "crop, rand size": MAE_800,
    "crop + color jit": MAE_800.but(
        {"data.augmentation.jitter": 0.4}
    ),  # the paper does not state the strength; 0.4 is BEiT's
}
MASKS = {
    "random 75%": MAE_800,
    "block 50%": MAE_800.but({"mask.name": "block", "mask.ratio": 0.5}),
    "block 75%": MAE_800.but({"mask.name": "block"}),
    "grid 75%": MAE_800.but({"mask.name": "grid", "mask.ratio": None}),
}
BY_RATIO = {f"{ratio}%": MAE_800.but({"mask.ratio": ratio / 100}) for ratio in RATIOS}
BY_LENGTH = {f"{epochs} epochs": MAE_800.but(epochs=epochs) for epochs in LENGTHS}
COSTLY = {
    "ViT-L/16, w/ [M], 8 blocks": TOKENS["encoder w/ [M]"],
    "ViT-L/16, 8 blocks": MAE_800, "ViT-L/16, 1 block": DEPTHS["1 block"],
    "ViT-H/14, 8 blocks": MAE_800, "ViT-H/14, 1 block": DEPTHS["1 block"],
}  # fmt: skip


def transferred(protocol: str, backbone: str, start: Start) -> Measured:
    """Return fine-tuning or linear probing on ImageNet-1K."""
    return finetuned(backbone, start) if protocol == "fine-tuning" else probed(backbone, start)


def by_row(pretrainings: Mapping[str, Pretraining]) -> How:
    """Return what the ablations were measured with: rows are pretrainings of ViT-L, columns are protocols."""
    return lambda row, column: transferred(column, LARGE, Start(own=pretrainings[row]))


def by_column(pretrainings: Mapping[str, Pretraining]) -> How:
    """Return the same of a figure: its points are pretrainings, its curves are protocols."""
    return lambda row, column: transferred(row, LARGE, Start(own=pretrainings[column]))


def of_pretraining(row: str, column: str) -> Measured:
    """Return what the cost of a pretraining of table 1c was measured with."""
    return Measured("pretrain", LARGE, Start(own=TOKENS[row]))


def figure_9(row: str, column: str) -> Measured | Elsewhere:
    """Return what a point of figure 9 was measured with."""
    if row == "MoCo v3":
        return Elsewhere(f"MoCo v3's ViT-L: {NO_RELEASE}")
    blocks: dict[str, tuple[object, ...]] = {"half": ("half",), "24": (24, "all")}
    return partly_tuned(blocks.get(column) or (int(column),))


def table_2(row: str, column: str) -> Measured:
    """Return what table 2's accuracies were measured with."""
    backbone = BACKBONES[row.partition(", ")[0]]
    return finetuned(backbone, Start(own=COSTLY[row]))


def at_size(column: str, start: Start | None = None) -> Measured:
    """Return MAE's fine-tuning at a size of table 3, from the paper's MAE if nothing else is given."""
    size, _, pixels = column.partition(" at ")
    return finetuned(BACKBONES[size], start or mae(BACKBONES[size]), size=int(pixels or 224))


def table_3(row: str, column: str) -> Measured | Elsewhere:
    """Return what table 3 was measured with. The rivals of MAE were fine-tuned with their own recipes."""
    rivals = {
        "DINO": Elsewhere(DEIT, DINO if column == "ViT-B/16" else Start()),
        "MoCo v3": Elsewhere(f"{DEIT}, 150 epochs", MOCO if column == "ViT-B/16" else Start()),
        "BEiT": Elsewhere("BEiT's recipe of fine-tuning"),
    }
    return rivals.get(row) or (scratch(BACKBONES[column]) if row == "none (scratch)" else at_size(column))


def baseline(row: str, column: str) -> Measured | Elsewhere:
    """Return what section 4's baselines of ViT-L were measured with."""
    if row == "scratch, original recipe":
        return Elsewhere("ViT's recipe from random weights")
    return scratch(LARGE) if row == "scratch, the paper's recipe" else finetuned(LARGE, Start(own=MAE_800))


def classifier(row: str, column: str) -> Measured:
    """Return the evaluation of a released classifier."""
    backbone = BACKBONES[column]
    return replace(finetuned(backbone, Start()), classifiers=(MAE_CLASSIFIERS[backbone],))


def table_12(row: str, column: str) -> Measured | Elsewhere:
    """Return what table 12 was measured with."""
    if row == "MAE":
        return probed(BACKBONES[column], mae(BACKBONES[column]))
    if row == "MAE, PyTorch":
        return probed(BACKBONES[column], Start(released=MAE_FILES[BACKBONES[column]]))
    return Elsewhere(f"{row}'s weights, which were not released" if row == "BEiT" else OTHER)


def table_13(row: str, column: str) -> Measured | Elsewhere:
    """Return what table 13 was measured with: fine-tuned MAE, or MAE's supervised classifiers."""
    variant, size = column.split(", ")
    if row == "supervised":
        return robust(variant, scratch(BACKBONES[size]))
    released = MAE_CLASSIFIERS.get(BACKBONES.get(size, ""))  # none at 448 px
    return robust(variant, at_size(size), (released,) if released else ())


ABLATIONS: tuple[Published, ...] = (
    *block("1a", f"{MAE}, table 1a ({ABLATED})", BOTH, {
        "1 block": (84.8, 65.5), "2 blocks": (84.9, 70.0), "4 blocks": (84.9, 71.9), "8 blocks": (84.9, 73.5),
        "12 blocks": (84.4, 73.3),
    }, by_row(DEPTHS)),
    *block("1b", f"{MAE}, table 1b ({ABLATED})", BOTH, {
        "128-d": (84.9, 69.1), "256-d": (84.8, 71.3), "512-d": (84.9, 73.5), "768-d": (84.4, 73.1),
        "1024-d": (84.3, 73.1),
    }, by_row(WIDTHS)),
    *block("1c", f"{MAE}, table 1c ({ABLATED})", BOTH, {
        "encoder w/ [M]": (84.2, 59.6), "encoder w/o [M]": (84.9, 73.5),
    }, by_row(TOKENS)),
    *block("1c", f"{MAE}, table 1c ({ABLATED})", ("relative FLOPs",), {
        "encoder w/ [M]": (3.3,), "encoder w/o [M]": (1.0,),
    }, of_pretraining, unit="x"),
    *block("1d", f"{MAE}, table 1d ({ABLATED})", BOTH, {
        "pixel (w/o norm)": (84.9, 73.5), "pixel (w/ norm)": (85.4, 73.9), "PCA": (84.6, 72.3),
        "dVAE token": (85.3, 71.6),
    }, by_row(TARGETS_800)),
    *block("1e", f"{MAE}, table 1e ({ABLATED})", BOTH, {
        "none": (84.0, 65.7), "crop, fixed size": (84.7, 73.1), "crop, rand size": (84.9, 73.5),
        "crop + color jit": (84.3, 71.9),
    }, by_row(CROPS)),
    *block("1f", f"{MAE}, table 1f ({ABLATED})", BOTH, {
        "random 75%": (84.9, 73.5), "block 50%": (83.9, 72.3), "block 75%": (82.8, 63.9), "grid 75%": (84.0, 66.0),
    }, by_row(MASKS)),
    *block("figure 5", FIGURE_5, tuple(BY_RATIO), {
        "fine-tuning": (83.2, 83.4, 83.4, 84.7, 84.9, 85.0, 84.9, 84.9, 84.5, 83.0),
        "linear": (54.6, 58.9, 61.7, 67.0, 69.9, 71.8, 73.2, 73.5, 71.8, 66.1),
    }, by_column(BY_RATIO)),
    *block("figure 7", f"{MAE}, figure 7 (ViT-L/16)", tuple(BY_LENGTH), {
        "fine-tuning": (82.3, 83.3, 84.3, 84.9, 85.1), "linear": (57.3, 64.4, 69.7, 73.5, 75.1),
    }, by_column(BY_LENGTH)),
    *block("figure 9", f"{MAE}, figure 9 (ViT-L/16, the figure's labels matched to its ticks in order)", BLOCKS, {
        "MAE": (73.5, 79.1, 81.0, 83.1, 84.2, 84.4, 84.6, 84.7, 84.9),
        "MoCo v3": (77.6, None, 79.9, 80.8, 81.6, 81.9, 83.2, 83.8, 84.1),
    }, figure_9),
    *block("baseline", f"{MAE}, section 4 (ViT-L/16)", ("fine-tuning",), {
        "scratch, original recipe": (76.5,), "scratch, the paper's recipe": (82.5,), "MAE, 800 epochs": (84.9,),
    }, baseline),
)  # fmt: skip

TABLE_2: tuple[Published, ...] = (
    *block("2", f"{MAE}, table 2 (800 epochs)", COST[:1], {
        "ViT-L/16, w/ [M], 8 blocks": (84.2,), "ViT-L/16, 8 blocks": (84.9,), "ViT-L/16, 1 block": (84.8,),
        "ViT-H/14, 8 blocks": (85.8,), "ViT-H/14, 1 block": (85.9,),
    }, table_2),
    *block("2", f"{MAE}, table 2 (800 epochs)", COST[1:2], {
        "ViT-L/16, w/ [M], 8 blocks": (42.4,), "ViT-L/16, 8 blocks": (15.4,), "ViT-L/16, 1 block": (11.6,),
        "ViT-H/14, 8 blocks": (34.5,), "ViT-H/14, 1 block": (29.3,),
    }, TPUS, unit="h"),
    *block("2", f"{MAE}, table 2 (the paper's own estimate)", COST[1:2], {
        "ViT-H/14, w/ [M], 8 blocks": (119.6,),
    }, TPUS, unit="h"),
    *block("2", f"{MAE}, table 2", COST[2:], {
        "ViT-L/16, 8 blocks": (2.8,), "ViT-L/16, 1 block": (3.7,), "ViT-H/14, 8 blocks": (3.5,),
        "ViT-H/14, 1 block": (4.1,),
    }, TPUS, unit="x"),
)  # fmt: skip

TRANSFER: tuple[Published, ...] = (
    *block("3", f"{MAE}, table 3", SIZES, {
        "none (scratch)": (82.3, 82.6, 83.1, None),
    }, table_3),
    *block("3", f"{MAE}, appendix A.2 (without moving averages of the weights)", SIZES[:3], {
        "none (scratch), without EMA": (82.1, 81.5, 80.9),
    }, lambda row, column: scratch(BACKBONES[column], ema=None)),
    *block("3", f"{MAE}, table 3 (the rivals' own recipes; MoCo v3: DeiT's, 150 epochs)", SIZES, {
        "DINO": (82.8, None, None, None),
        "MoCo v3": (83.2, 84.1, None, None),
        "BEiT": (83.2, 85.2, None, None),
    }, table_3),
    *block("3", f"{MAE}, table 3", SIZES, {"MAE": (83.6, 85.9, 86.9, 87.8)}, table_3),
    *block("3", f"{FINETUNE_MD} (its released classifiers, evaluated anew)", SIZES[:3], {
        "MAE, released weights": (83.664, 85.952, 86.928),
    }, classifier),
    *block("12", f"{MAE}, table 12", SIZES[:3], {"MAE": (68.0, 75.8, 76.6), "BEiT": (None, 52.1, None)}, table_12),
    *block("12", f"{MAE}, table 12 (iGPT-L: its VQ-VAE variant; iGPT-XL: five layers)", ("iGPT-L", "iGPT-XL"), {
        "iGPT": (69.0, 72.0),
    }, table_12),
    *block("12", BEIT_TABLE_9, SIZES[:2], {"BEiT, as BEiT states it": (56.7, 73.5)}, table_12),
    *block("12", BEIT_TABLE_9, ("iGPT-L", "iGPT-XL"), {
        "iGPT, 48 px": (65.2, None), "iGPT, one layer": (None, 68.7), "iGPT, five layers": (None, 72.0),
    }, table_12),
    *block("12", IGPT, ("iGPT-L",), {"iGPT, 32 px": (60.3,)}, table_12),
    *block("12", f"{FINETUNE_MD} (PyTorch)", SIZES[:3], {"MAE, PyTorch": (67.8, 76.0, 77.2)}, table_12),
    *block(*each("13", f"{MAE}, table 13", VARIANTS[:1], SIZES), {
        "MAE": (51.7, 41.8, 33.8, 36.8), "supervised": (45.8, 42.3, 41.3, None),
    }, table_13),
    *block(*each("13", f"{MAE}, table 13", VARIANTS[1:], SIZES), {
        "MAE": (35.9, 57.1, 68.2, 76.7, 48.3, 59.9, 64.4, 66.5, 34.5, 45.3, 49.6, 50.9),
        "supervised": (27.2, 29.6, 33.1, None, 49.4, 50.9, 50.3, None, 35.6, 37.5, 38.0, None),
    }, table_13),
    *block("13", f"{MAE}, table 13 (the best before it, any architecture)", VARIANTS, {
        "previous best": (42.5, 35.8, 48.7, 36.0),
    }, Elsewhere(OTHER)),
)  # fmt: skip

IMAGENET = ABLATIONS + TABLE_2 + TRANSFER
