"""Methods side by side on ImageNet-1K, as their own papers and repositories state them.

Columns: linear probing, fine-tuning, k-NN, share of patches seen.
The recipes differ (epochs, crops, data): a survey of what was published, not a comparison under one protocol.
"""

from __future__ import annotations

from mae_transfer.suite.published.entry import MAE, Published, block
from mae_transfer.suite.published.frozen import DINO_README, PROBED, PROBES
from mae_transfer.suite.published.imagenet import BEIT_TABLE_9, IGPT, at_size
from mae_transfer.suite.published.measured import (
    BACKBONES,
    DINO,
    DINO_S,
    ESVIT_T,
    IBOT,
    IBOT_S,
    JOINT,
    MOBY_T,
    MOCO,
    MOCO_S,
    Elsewhere,
    Measured,
    Start,
    mae,
    probed,
)

LINEAR, TUNED, KNN = "linear", "fine-tuning", "k-NN"
FOUR_BLOCKS = "linear, four blocks"  # a probe on the features of the last four blocks
EFFICIENT = "efficient probe"
SEEN = "share of patches that the encoder sees, at least"
BEIT_FILES = Start(released=("beit_base", "beit_large", "beit_base_ft22k", "beit_large_ft22k"))
MOCO_README = "README of facebookresearch/moco-v3"
MOCO_PAPER = "MoCo v3, arXiv 2104.02057"
MMPRETRAIN = "mmpretrain, README of configs/mae"
MOBY = "MoBY, arXiv 2105.04553, abstract (300 epochs; its first README said 72.5 for DeiT-S)"
BEIT = "README of microsoft/unilm's beit"
BEIT_PAPER = "BEiT, arXiv 2106.08254 (pretrained on ImageNet-1K, fine-tuned at 384 px)"

STARTS = {
    "MoCo v3, ViT-S/16": MOCO_S, "MoCo v3, ViT-B/16": MOCO, "MoCo v3, ViT-L/16": Start(own=JOINT["MoCo v3"]),
    "DINO, ViT-S/16": DINO_S, "DINO, ViT-B/16": DINO,
    "iBOT, ViT-S/16": IBOT_S, "iBOT, ViT-B/16": IBOT, "iBOT, ViT-L/16": Start(released=("ibot_vit_large",)),
    "MoBY, Swin-T": MOBY_T, "MoBY, DeiT-S/16": Start(released=("moby_deit_small",)),
    "EsViT, Swin-T/W7": ESVIT_T,
}  # fmt: skip
"""Weights of the rows of joint embedding."""


def own(method: str, start: Start | None = None) -> Elsewhere:
    """Return what a method's own paper or repository measured with."""
    return Elsewhere(f"{method}'s own recipe", start or Start())


def of_row(row: str, _: str) -> Elsewhere:
    """Return the same of a row, "DINO, ViT-S/16", with its weights."""
    return own(row.partition(", ")[0], STARTS.get(row))


def of_mae(row: str, column: str) -> Measured:
    """Return what tables 3 and 12 were measured with: "MAE, ViT-B/16"."""
    size = row.partition(", ")[2]
    return at_size(size) if column == TUNED else probed(BACKBONES[size], mae(BACKBONES[size]))


METHODS: tuple[Published, ...] = (
    *block("survey", f"{MAE}, table 12 (iGPT-L: its VQ-VAE variant; iGPT-XL: five layers)", (LINEAR,), {
        "iGPT, iGPT-L": (69.0,), "iGPT, iGPT-XL": (72.0,), "BEiT, ViT-L/16": (52.1,),
    }, own("the method")),
    *block("survey", BEIT_TABLE_9, (LINEAR,), {
        "BEiT, ViT-B/16, as BEiT states it": (56.7,), "BEiT, ViT-L/16, as BEiT states it": (73.5,),
        "iGPT, iGPT-L, 48 px": (65.2,),
        "iGPT, iGPT-XL, one layer": (68.7,), "iGPT, iGPT-XL, five layers": (72.0,),
    }, own("the method")),
    *block("survey", IGPT, (LINEAR,), {"iGPT, iGPT-L, 32 px": (60.3,)}, own("iGPT")),
    *block("survey", "ViT, arXiv 2010.11929, section 4.6 (pretrained on JFT-300M, fine-tuned at 384 px)", (TUNED,), {
        "MPP, ViT-B/16 at 384": (79.9,),
    }, own("ViT")),
    *block("survey", f"{MOCO_README} (300 epochs)", (TUNED,), {
        "MoCo v3, ViT-S/16": (81.4,), "MoCo v3, ViT-B/16": (83.2,),
    }, of_row),
    *block("survey", f"{MAE}, table 3 (their own recipes; MoCo v3: DeiT's, 150 epochs)", (TUNED,), {
        "MoCo v3, ViT-L/16": (84.1,), "DINO, ViT-B/16": (82.8,),
    }, lambda row, _: own("the method", STARTS[row])),
    *block("survey", f"{MOCO_README} (300 epochs)", (LINEAR,), {
        "MoCo v3, ViT-S/16": (73.2,), "MoCo v3, ViT-B/16": (76.7,),
    }, of_row),
    *block("survey", f"{MOCO_PAPER} (the shorter of two pretrainings)", (LINEAR,), {
        "MoCo v3, ViT-S/16, paper, shorter": (72.5,), "MoCo v3, ViT-B/16, paper, shorter": (76.5,),
    }, own("MoCo v3")),
    *block("survey", f"{MOCO_PAPER} (the longer of two pretrainings)", (LINEAR,), {
        "MoCo v3, ViT-S/16, paper, longer": (73.4,), "MoCo v3, ViT-B/16, paper, longer": (76.7,),
    }, own("MoCo v3")),
    *block("survey", MOCO_PAPER, (LINEAR,), {
        "MoCo v3, ViT-H": (78.1,), "MoCo v3, ViT-BN-L/7": (81.0,),
    }, own("MoCo v3")),
    *block("survey", f"{MAE}, figure 9 (no block tuned)", (LINEAR,), {"MoCo v3, ViT-L/16": (77.6,)}, of_row),
    *block("survey", MOBY, (LINEAR,), {"MoBY, DeiT-S/16": (72.8,), "MoBY, Swin-T": (75.0,)}, of_row),
    *block("survey", DINO_README, (FOUR_BLOCKS, KNN), {
        "DINO, ViT-S/16": (77.0, 74.5), "DINO, ViT-S/8": (79.7, 78.3),
    }, of_row),
    *block("survey", DINO_README, (LINEAR, KNN), {
        "DINO, ViT-B/16": (78.2, 76.1), "DINO, ViT-B/8": (80.1, 77.4),
    }, of_row),
    *block("survey", "README of bytedance/ibot", (KNN, LINEAR, TUNED), {
        "iBOT, ViT-S/16": (75.2, 77.9, 82.3), "iBOT, ViT-B/16": (77.1, 79.5, 84.0), "iBOT, ViT-L/16": (78.0,
        81.0, 84.8),
    }, of_row),
    *block("survey", "README of microsoft/esvit", (FOUR_BLOCKS, KNN), {
        "EsViT, Swin-T/W7": (78.0, 75.7), "EsViT, Swin-S/W7": (79.5, 77.7), "EsViT, Swin-B/W7": (80.4, 78.9),
        "EsViT, Swin-T/W14": (78.7, 77.0), "EsViT, Swin-S/W14": (80.8, 79.1), "EsViT, Swin-B/W14": (81.3, 79.3),
    }, of_row),
    *block("survey", f"{MAE}, table 3 (BEiT's own recipe)", (TUNED,), {
        "BEiT, ViT-B/16": (83.2,), "BEiT, ViT-L/16": (85.2,),
    }, own("BEiT")),
    *block("survey", f"{MAE}, section 4.2, footnote (reproduced with BEiT's code)", (TUNED,), {
        "BEiT on pixels, ViT-L/16": (83.5,),
    }, own("BEiT")),
    *block("survey", BEIT_PAPER, (TUNED,), {
        "BEiT, ViT-B/16 at 384": (84.6,), "BEiT, ViT-L/16 at 384": (86.3,),
    }, own("BEiT")),
    *block("survey", BEIT, (TUNED,), {
        "BEiT, ViT-B/16, ImageNet-22K": (83.7,), "BEiT, ViT-L/16, ImageNet-22K": (86.0,),
        "BEiT, ViT-B/16, ImageNet-22K with labels": (85.2,),
        "BEiT, ViT-L/16, ImageNet-22K with labels": (87.4,), "BEiT, ViT-L/16 at 512, ImageNet-22K with labels": (88.6,),
    }, own("BEiT", BEIT_FILES)),
    *block("survey", "SimMIM, arXiv 2111.09886", (TUNED,), {"SimMIM, ViT-B/16": (83.8,)}, own("SimMIM")),
    *block("survey", "MaskFeat, arXiv 2112.09133", (TUNED,), {
        "MaskFeat, ViT-B/16": (84.0,), "MaskFeat, ViT-L/16": (85.7,),
    }, own("MaskFeat")),
    *block("survey", f"{MAE}, section 4.2 (512 px, any architecture)", (TUNED,), {
        "previous best, ImageNet-1K alone": (87.1,),
    }, Elsewhere("another architecture")),
    *block("survey", f"{MAE}, tables 3 and 12", (LINEAR, TUNED), {
        "MAE, ViT-B/16": (68.0, 83.6), "MAE, ViT-L/16": (75.8, 85.9), "MAE, ViT-H/14": (76.6, 86.9),
        "MAE, ViT-H/14 at 448": (None, 87.8),
    }, of_mae),
    *block("survey", PROBES, (KNN, LINEAR, EFFICIENT), {
        f"{row}, frozen": PROBED[row] for row in (
            "MAE, ViT-B/16", "MAE, ViT-L/16", "SimMIM, ViT-B/16", "MaskFeat, ViT-B/16", "iBOT, ViT-B/16",
            "DINO, ViT-B/16", "MoCo v3, ViT-B/16",
        )
    }, own("efficient-probing")),
)  # fmt: skip

PATCHES: tuple[Published, ...] = (
    *block("survey", "the method's own definition: what is masked is replaced by a mask token", (SEEN,), {
        "iGPT, iGPT-L": (100.0,), "MPP, ViT-B/16 at 384": (100.0,), "BEiT, ViT-B/16": (100.0,),
    }, Elsewhere("no run: it is the method's definition")),
    *block("survey", f"{MAE}, section 4.1 (two views)", (SEEN,), {
        "MoCo v3, ViT-B/16": (200.0,), "MoBY, Swin-T": (200.0,),
    }, Elsewhere("no run: it is the method's definition")),
    *block("survey", f"{MAE}, section 4.1 (two views, and smaller ones: 200 % or more)", (SEEN,), {
        "DINO, ViT-B/16": (200.0,), "iBOT, ViT-B/16": (200.0,), "EsViT, Swin-B/W14": (200.0,),
    }, Elsewhere("no run: it is the method's definition")),
    *block("survey", f"{MAE}, section 3 (75% hidden, no mask token in the encoder)", (SEEN,), {
        "MAE, ViT-B/16": (25.0,),
    }, Elsewhere("no run: it is the method's definition")),
)  # fmt: skip

OTHERS: tuple[Published, ...] = (
    *block("survey", MMPRETRAIN, (TUNED, LINEAR), {
        "MAE, ViT-B/16, mmpretrain, 300 ep": (83.1, 60.8), "MAE, ViT-B/16, mmpretrain, 400 ep": (83.3, 62.5),
        "MAE, ViT-B/16, mmpretrain, 800 ep": (83.3, 65.1), "MAE, ViT-B/16, mmpretrain, 1600 ep": (83.5, 67.1),
        "MAE, ViT-L/16, mmpretrain, 400 ep": (85.2, 70.7), "MAE, ViT-L/16, mmpretrain, 800 ep": (85.4, 73.7),
        "MAE, ViT-L/16, mmpretrain, 1600 ep": (85.7, 75.5),
        "MAE, ViT-H/14, mmpretrain": (86.9, None), "MAE, ViT-H/14 at 448, mmpretrain": (87.3, None),
    }, own("mmpretrain")),
    *block("survey", "EasyCV", (TUNED,), {
        "MAE, ViT-B/16, EasyCV, 400 ep": (83.13,), "MAE, ViT-B/16, EasyCV, 1600 ep": (83.55,),
        "MAE, ViT-L/16, EasyCV, 1600 ep": (85.70,),
    }, own("EasyCV")),
    *block("survey", "openmixup, its model zoo's page", (TUNED,), {
        "MAE, ViT-B/16, openmixup, 400 ep": (83.1,),
    }, own("openmixup")),
    *block("survey", "openmixup, README of its config", (TUNED,), {
        "MAE, ViT-B/16, openmixup, 400 ep, config's README": (83.3,),
    }, own("openmixup")),
    *block("survey", "CrossMAE", (TUNED,), {
        "CrossMAE, ViT-S/16": (79.3,), "CrossMAE, ViT-B/16": (83.7,), "CrossMAE, ViT-L/16": (85.4,),
        "CrossMAE, ViT-H/14": (86.3,),
    }, own("CrossMAE")),
    *block("survey", "lightly, ImageNet benchmarks (batch 256)", (LINEAR, TUNED, KNN), {
        "MAE, ViT-B/16, lightly, 100 ep": (46.0, 81.3, 11.2),
    }, own("lightly")),
)  # fmt: skip

SURVEY = METHODS + PATCHES + OTHERS
