"""Frozen features: k-NN, linear and attentive probes on ImageNet-1K, and k-NN over patches on ADE20K.

A column is a protocol and its data. Most numbers are of protocols that this package does not repeat: efficient-probing
selects the epoch, k and the temperature on the images that it reports, others do not say what they select on.
"""

from __future__ import annotations

from mae_transfer.suite.published.entry import SIZES, Published, Values, block
from mae_transfer.suite.published.imagenet import FINETUNE_MD
from mae_transfer.suite.published.measured import (
    BACKBONES,
    BASE,
    DINO,
    DINO_S,
    IBOT,
    IBOT_S,
    LARGE,
    MAE_FILES,
    MOCO,
    Elsewhere,
    How,
    Measured,
    Start,
    mae,
    probed,
    voted,
)

KNN, LINEAR, EFFICIENT, CROSS = (f"{protocol}, ImageNet" for protocol in ("k-NN", "linear", "efficient", "cross"))
PATCHES = "frozen-knn, ADE20K"
PROBES = "README of billpsomas/efficient-probing (frozen weights)"
BEST_ON_VALIDATION = f"{PROBES}; epoch, k and temperature are selected on the validation images"
DINO_README = "README of facebookresearch/dino"
DINOV2_README = "README of facebookresearch/dinov2"
CAPI = "README of facebookresearch/capi"
DINOV2 = {
    "DINOv2, ViT-S/14": Start(released=("dinov2_vit_small", "vit_small_patch14_dinov2.lvd142m")),
    "DINOv2, ViT-B/14": Start(released=("dinov2_vit_base", "vit_base_patch14_dinov2.lvd142m")),
    "DINOv2, ViT-L/14": Start(released=("dinov2_vit_large", "vit_large_patch14_dinov2.lvd142m")),
}
WEIGHTS = {
    "MAE, ViT-B/16": Start(released=MAE_FILES[BASE]), "MAE, ViT-L/16": Start(released=MAE_FILES[LARGE]),
    "DINO, ViT-S/16": DINO_S, "DINO, ViT-B/16": DINO, "MoCo v3, ViT-B/16": MOCO, **DINOV2,
    "iBOT, ViT-S/16": IBOT_S, "iBOT, ViT-B/16": IBOT, "iBOT, ViT-L/16": Start(released=("ibot_vit_large",)),
    "DINOv3, ViT-B/16": Start(released=("vit_base_patch16_dinov3.lvd1689m",)),
    "DINOv3, ViT-L/16": Start(released=("vit_large_patch16_dinov3.lvd1689m",)),
    "CLIP, ViT-B/16": Start(released=("vit_base_patch16_clip_quickgelu_224.openai",)),
    "CLIP, ViT-L/14": Start(released=("vit_large_patch14_clip_quickgelu_224.openai",)),
    "EVA-02, ViT-L/14": Start(released=("eva02_large_patch14_224.mim_in22k",)),
    "Hiera, Hiera-B": Start(released=("hiera_base_224.mae",)),
    "Hiera, Hiera-L": Start(released=("hiera_large_224.mae",)),
    "Hiera, Hiera-H": Start(released=("hiera_huge_224.mae",)),
}  # fmt: skip
"""Released weights of the rows, by the names that a run records."""
PROBED: Values = {
    "MAE, ViT-S/16": (18.0, 47.1, 64.6), "MAE, ViT-B/16": (35.6, 67.8, 75.5), "MAE, ViT-L/16": (48.1, 76.0, 79.5),
    "SimMIM, ViT-B/16": (8.6, 47.1, 64.9), "MaskFeat, ViT-B/16": (15.9, 62.2, 71.8),
    "MaskFeat, ViT-L/16": (5.7, 40.9, 69.6), "BEiT v2, ViT-B/16": (70.1, 79.0, 81.4),
    "EVA-02, ViT-L/14": (74.0, 82.8, 83.6), "CAPI, ViT-L/14, ImageNet-1K": (72.9, 81.9, 83.0),
    "Hiera, Hiera-B": (39.8, 69.2, 75.7), "Hiera, Hiera-L": (38.8, 74.1, 78.5), "Hiera, Hiera-H": (34.7, 77.3, 79.9),
    "I-JEPA, ViT-H/14": (68.1, 78.1, 79.0), "MoCo v3, ViT-B/16": (66.8, 75.7, 76.5),
    "DINO, ViT-B/16": (71.6, 77.2, 77.4), "iBOT, ViT-B/16": (73.6, 78.7, 79.0), "iBOT, ViT-L/16": (73.9, 80.5, 80.0),
    "DINOv2, ViT-B/14": (79.3, 83.5, 84.0), "DINOv2, ViT-L/14": (81.0, 85.2, 85.6),
    "DINOv3, ViT-B/16": (79.6, 83.9, 84.1), "DINOv3, ViT-L/16": (83.4, 86.6, 87.0),
    "CLIP, ViT-B/16": (65.7, 77.9, 78.0), "CLIP, ViT-L/14": (73.5, 82.5, 83.2),
}  # fmt: skip
"""k-NN, linear and efficient probe of billpsomas/efficient-probing."""


def said_by(whose: str) -> How:
    """Return what numbers of a protocol that this package does not repeat were measured with."""
    return lambda row, _: Elsewhere(whose, WEIGHTS.get(row.partition(" (")[0], Start()))


def released_mae(row: str, _: str) -> Measured:
    """Return MAE's linear probe of the released weights or of the same pretraining."""
    backbone = BACKBONES[row.partition(" (")[0].partition(", ")[2]]
    return probed(backbone, mae(backbone))


def of_dino(row: str, _: str) -> Measured:
    """Return DINO's k-NN of the released weights or of the same pretraining."""
    name = row.partition(" (")[0]
    return voted(BACKBONES[name.partition(", ")[2]], WEIGHTS[name])


FROZEN: tuple[Published, ...] = (
    *block("frozen", FINETUNE_MD, (LINEAR,), {
        f"MAE, {size} (its authors)": (value,) for size, value in zip(SIZES, (67.8, 76.0, 77.2), strict=False)
    }, released_mae),
    *block("frozen", BEST_ON_VALIDATION, (KNN, LINEAR, EFFICIENT), PROBED,
           said_by("efficient-probing's protocol: epoch, k and temperature are selected on the validation images")),
    *block("frozen", f"{DINO_README}; k = 20: help of its eval_knn.py", (KNN,), {
        "DINO, ViT-S/16 (its authors)": (74.5,), "DINO, ViT-B/16 (its authors)": (76.1,),
    }, of_dino),
    *block("frozen", DINO_README, (LINEAR,), {"DINO, ViT-B/16 (its authors)": (78.2,)}, said_by("DINO's own protocol")),
    *block("frozen", "README of bytedance/ibot", (KNN, LINEAR), {
        "iBOT, ViT-S/16 (its authors)": (75.2, 77.9), "iBOT, ViT-B/16 (its authors)": (77.1, 79.5),
        "iBOT, ViT-L/16 (its authors)": (78.0, 81.0),
    }, said_by("iBOT's own protocol")),
    *block("frozen", DINOV2_README, (KNN, LINEAR), {
        "DINOv2, ViT-S/14 (its authors)": (79.0, 81.1), "DINOv2, ViT-B/14 (its authors)": (82.1, 84.5),
        "DINOv2, ViT-L/14 (its authors)": (83.5, 86.3),
    }, said_by("DINOv2's own protocol")),
    *block("frozen", CAPI, (PATCHES, CROSS), {
        "CAPI, ViT-L/14, ImageNet-1K (its authors)": (29.2, 82.9),
        "CAPI, ViT-L/14, ImageNet-22K (its authors)": (29.7, 83.6),
        "CAPI, ViT-L/14, LVD-142M (its authors)": (32.1, 83.8), "CAPI, ViT-L/14, Places205 (its authors)": (35.2, 79.2),
    }, said_by("CAPI's own protocol")),
)  # fmt: skip
