"""Methods side by side on ImageNet-1K, as their own papers and repositories state them: linear probing, fine-tuning, k-NN, share of patches seen.

The recipes differ (epochs, crops, data): a survey of what was published, not a comparison under one protocol.
"""

from __future__ import annotations

from mae_transfer.suite.published.entry import MAE, Published, block

LINEAR, TUNED, KNN = "linear", "fine-tuning", "k-NN"
SEEN = "share of patches that the encoder sees"
DINO = "README of facebookresearch/dino"
MMPRETRAIN = "mmpretrain, README of configs/mae"
MOBY = "MoBY, arXiv 2105.04553, abstract (300 epochs; its first README said 72.5 for DeiT-S)"
BEIT = "README of microsoft/unilm's beit"

METHODS: tuple[Published, ...] = (
    *block("survey", f"{MAE}, table 12", (LINEAR,), {"iGPT, iGPT-L": (69.0,), "iGPT, iGPT-XL": (72.0,), "BEiT, ViT-L/16": (52.1,)}),
    *block("survey", "ViT, arXiv 2010.11929, section 4.6 (pretrained on JFT-300M)", (TUNED,), {"MPP, ViT-B/16": (79.9,)}),
    *block("survey", "README of facebookresearch/moco-v3", (TUNED,), {"MoCo v3, ViT-S/16": (81.4,), "MoCo v3, ViT-B/16": (83.2,)}),
    *block("survey", f"{MAE}, table 3", (TUNED,), {"MoCo v3, ViT-L/16": (84.1,), "DINO, ViT-B/16": (82.8,)}),
    *block("survey", "MoCo v3, arXiv 2104.02057", (LINEAR,), {"MoCo v3, ViT-S/16": (73.2,), "MoCo v3, ViT-B/16": (76.7,)}),
    *block("survey", f"{MAE}, figure 9 (no block tuned)", (LINEAR,), {"MoCo v3, ViT-L/16": (77.6,)}),
    *block("survey", MOBY, (LINEAR,), {"MoBY, DeiT-S/16": (72.8,), "MoBY, Swin-T": (75.0,)}),
    *block("survey", DINO, (LINEAR, KNN), {
        "DINO, ViT-S/16": (77.0, 74.5), "DINO, ViT-B/16": (78.2, 76.1), "DINO, ViT-S/8": (79.7, 78.3), "DINO, ViT-B/8": (80.1, 77.4),
    }),
    *block("survey", "README of bytedance/ibot", (KNN, LINEAR, TUNED), {
        "iBOT, ViT-S/16": (75.2, 77.9, 82.3), "iBOT, ViT-B/16": (77.1, 79.5, 84.0), "iBOT, ViT-L/16": (78.0, 81.0, 84.8),
    }),
    *block("survey", "README of microsoft/esvit", (LINEAR, KNN), {
        "EsViT, Swin-T/W7": (78.0, 75.7), "EsViT, Swin-S/W7": (79.5, 77.7), "EsViT, Swin-B/W7": (80.4, 78.9),
        "EsViT, Swin-T/W14": (78.7, 77.0), "EsViT, Swin-S/W14": (80.8, 79.1), "EsViT, Swin-B/W14": (81.3, 79.3),
    }),
    *block("survey", f"{MAE}, table 3", (TUNED,), {"BEiT, ViT-B/16": (83.2,), "BEiT, ViT-L/16": (85.2,)}),
    *block("survey", BEIT, (TUNED,), {
        "BEiT, ViT-B/16, ImageNet-22K": (83.7,), "BEiT, ViT-L/16, ImageNet-22K": (86.0,), "BEiT, ViT-B/16, ImageNet-22K with labels": (85.2,),
        "BEiT, ViT-L/16, ImageNet-22K with labels": (87.4,), "BEiT, ViT-L/16 at 512, ImageNet-22K with labels": (88.6,),
    }),
    *block("survey", f"{MAE}, tables 3 and 12", (LINEAR, TUNED), {
        "MAE, ViT-B/16": (68.0, 83.6), "MAE, ViT-L/16": (75.8, 85.9), "MAE, ViT-H/14": (76.6, 86.9), "MAE, ViT-H/14 at 448": (None, 87.8),
    }),
)  # fmt: skip

PATCHES: tuple[Published, ...] = (
    *block("survey", "the method's own definition: what is masked is replaced by a mask token, or nothing is masked", (SEEN,), {
        "iGPT, iGPT-L": (100.0,), "MPP, ViT-B/16": (100.0,), "MoCo v3, ViT-B/16": (100.0,), "MoBY, Swin-T": (100.0,), "DINO, ViT-B/16": (100.0,),
        "iBOT, ViT-B/16": (100.0,), "EsViT, Swin-B/W14": (100.0,), "BEiT, ViT-B/16": (100.0,),
    }),
    *block("survey", f"{MAE}, section 3 (75% hidden, no mask token in the encoder)", (SEEN,), {"MAE, ViT-B/16": (25.0,)}),
)  # fmt: skip

OTHERS: tuple[Published, ...] = (
    *block("survey", MMPRETRAIN, (TUNED, LINEAR), {
        "MAE, ViT-B/16, mmpretrain, 300 ep": (83.1, 60.8), "MAE, ViT-B/16, mmpretrain, 400 ep": (83.3, 62.5),
        "MAE, ViT-B/16, mmpretrain, 800 ep": (83.3, 65.1), "MAE, ViT-B/16, mmpretrain, 1600 ep": (83.5, 67.1),
        "MAE, ViT-L/16, mmpretrain, 400 ep": (85.2, 70.7), "MAE, ViT-L/16, mmpretrain, 800 ep": (85.4, 73.7),
        "MAE, ViT-L/16, mmpretrain, 1600 ep": (85.7, 75.5),
        "MAE, ViT-H/14, mmpretrain": (86.9, None), "MAE, ViT-H/14 at 448, mmpretrain": (87.3, None),
    }),
    *block("survey", "EasyCV", (TUNED,), {
        "MAE, ViT-B/16, EasyCV, 400 ep": (83.13,), "MAE, ViT-B/16, EasyCV, 1600 ep": (83.55,), "MAE, ViT-L/16, EasyCV, 1600 ep": (85.70,),
    }),
    *block("survey", "openmixup", (TUNED,), {"MAE, ViT-B/16, openmixup, 400 ep": (83.1,)}),
    *block("survey", "CrossMAE", (TUNED,), {
        "CrossMAE, ViT-S/16": (79.3,), "CrossMAE, ViT-B/16": (83.7,), "CrossMAE, ViT-L/16": (85.4,), "CrossMAE, ViT-H/14": (86.3,),
    }),
    *block("survey", "lightly, ImageNet benchmarks (batch 256)", (LINEAR, TUNED, KNN), {"MAE, ViT-B/16, lightly, 100 ep": (46.0, 81.3, 11.2)}),
)  # fmt: skip

SURVEY = METHODS + PATCHES + OTHERS
