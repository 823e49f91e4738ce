"""The MAE paper's numbers on ImageNet-1K and its variants: tables 1, 2, 3, 12 and 13, figures 5, 7 and 9. Top-1 % where nothing else is said."""

from __future__ import annotations

from mae_transfer.suite.published.entry import MAE, SIZES, Published, block, each

BOTH = ("fine-tuning", "linear")
VARIANTS = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch")
BLOCKS = ("0", "half", "1", "2", "4", "6", "12", "18", "24")
LARGE = "ViT-L/16, 800 epochs"
FIGURE_5 = f"{MAE}, figure 5 ({LARGE}; the figure's labels in text order)"
COST = ("fine-tuning", "hours on 128 TPU-v3 cores", "speed-up")

ABLATIONS: tuple[Published, ...] = (
    *block("1a", f"{MAE}, table 1a ({LARGE})", BOTH, {
        "1 block": (84.8, 65.5), "2 blocks": (84.9, 70.0), "4 blocks": (84.9, 71.9), "8 blocks": (84.9, 73.5), "12 blocks": (84.4, 73.3),
    }),
    *block("1b", f"{MAE}, table 1b ({LARGE})", BOTH, {
        "128-d": (84.9, 69.1), "256-d": (84.8, 71.3), "512-d": (84.9, 73.5), "768-d": (84.4, 73.1), "1024-d": (84.3, 73.1),
    }),
    *block("1c", f"{MAE}, table 1c ({LARGE})", BOTH, {"encoder w/ [M]": (84.2, 59.6), "encoder w/o [M]": (84.9, 73.5)}),
    *block("1c", f"{MAE}, table 1c ({LARGE})", ("relative FLOPs",), {"encoder w/ [M]": (3.3,), "encoder w/o [M]": (1.0,)}, unit="x"),
    *block("1d", f"{MAE}, table 1d ({LARGE})", BOTH, {
        "pixel (w/o norm)": (84.9, 73.5), "pixel (w/ norm)": (85.4, 73.9), "PCA": (84.6, 72.3), "dVAE token": (85.3, 71.6),
    }),
    *block("1e", f"{MAE}, table 1e ({LARGE})", BOTH, {
        "none": (84.0, 65.7), "crop, fixed size": (84.7, 73.1), "crop, rand size": (84.9, 73.5), "crop + color jit": (84.3, 71.9),
    }),
    *block("1f", f"{MAE}, table 1f ({LARGE})", BOTH, {
        "random 75%": (84.9, 73.5), "block 50%": (83.9, 72.3), "block 75%": (82.8, 63.9), "grid 75%": (84.0, 66.0),
    }),
    *block("figure 5", FIGURE_5, tuple(f"{ratio}%" for ratio in (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)), {
        "fine-tuning": (83.2, 83.4, 83.4, 84.7, 84.9, 85.0, 84.9, 84.9, 84.5, 83.0),
        "linear": (54.6, 58.9, 61.7, 67.0, 69.9, 71.8, 73.2, 73.5, 71.8, 66.1),
    }),
    *block("figure 7", f"{MAE}, figure 7 (ViT-L/16)", tuple(f"{epochs} epochs" for epochs in (100, 200, 400, 800, 1600)), {
        "fine-tuning": (82.3, 83.3, 84.3, 84.9, 85.1), "linear": (57.3, 64.4, 69.7, 73.5, 75.1),
    }),
    *block("figure 9", f"{MAE}, figure 9 (ViT-L/16, the figure's labels matched to its ticks in order)", BLOCKS, {
        "MAE": (73.5, 79.1, 81.0, 83.1, 84.2, 84.4, 84.6, 84.7, 84.9),
        "MoCo v3": (77.6, None, 79.9, 80.8, 81.6, 81.9, 83.2, 83.8, 84.1),
    }),
    *block("baseline", f"{MAE}, section 4 (ViT-L/16)", ("fine-tuning",), {
        "scratch, original recipe": (76.5,), "scratch, the paper's recipe": (82.5,), "MAE, 800 epochs": (84.9,),
    }),
)  # fmt: skip

TABLE_2: tuple[Published, ...] = (
    *block("2", f"{MAE}, table 2 (800 epochs)", COST[:1], {
        "ViT-L/16, w/ [M], 8 blocks": (84.2,), "ViT-L/16, 8 blocks": (84.9,), "ViT-L/16, 1 block": (84.8,),
        "ViT-H/14, 8 blocks": (85.8,), "ViT-H/14, 1 block": (85.9,),
    }),
    *block("2", f"{MAE}, table 2 (800 epochs)", COST[1:2], {
        "ViT-L/16, w/ [M], 8 blocks": (42.4,), "ViT-L/16, 8 blocks": (15.4,), "ViT-L/16, 1 block": (11.6,),
        "ViT-H/14, 8 blocks": (34.5,), "ViT-H/14, 1 block": (29.3,),
    }, unit="h"),
    *block("2", f"{MAE}, table 2 (the paper's own estimate)", COST[1:2], {"ViT-H/14, w/ [M], 8 blocks": (119.6,)}, unit="h"),
    *block("2", f"{MAE}, table 2", COST[2:], {
        "ViT-L/16, 8 blocks": (2.8,), "ViT-L/16, 1 block": (3.7,), "ViT-H/14, 8 blocks": (3.5,), "ViT-H/14, 1 block": (4.1,),
    }, unit="x"),
)  # fmt: skip

TRANSFER: tuple[Published, ...] = (
    *block("3", f"{MAE}, table 3", SIZES, {
        "none (scratch)": (82.3, 82.6, 83.1, None),
        "DINO": (82.8, None, None, None),
        "MoCo v3": (83.2, 84.1, None, None),
        "BEiT": (83.2, 85.2, None, None),
        "MAE": (83.6, 85.9, 86.9, 87.8),
    }),
    *block("3", "README of facebookresearch/mae (its released weights, evaluated anew)", SIZES[:3], {
        "MAE, released weights": (83.664, 85.952, 86.928),
    }),
    *block("12", f"{MAE}, table 12", SIZES[:3], {"MAE": (68.0, 75.8, 76.6), "BEiT": (None, 52.1, None)}),
    *block("12", f"{MAE}, table 12", ("iGPT-L", "iGPT-XL"), {"iGPT": (69.0, 72.0)}),
    *block("12", "README of facebookresearch/mae (PyTorch)", SIZES[:3], {"MAE, PyTorch": (67.8, 76.0, 77.2)}),
    *block(*each("13", f"{MAE}, table 13", VARIANTS[:1], SIZES), {
        "MAE": (51.7, 41.8, 33.8, 36.8), "supervised": (45.8, 42.3, 41.3, None),
    }),
    *block(*each("13", f"{MAE}, table 13", VARIANTS[1:], SIZES), {
        "MAE": (35.9, 57.1, 68.2, 76.7, 48.3, 59.9, 64.4, 66.5, 34.5, 45.3, 49.6, 50.9),
        "supervised": (27.2, 29.6, 33.1, None, 49.4, 50.9, 50.3, None, 35.6, 37.5, 38.0, None),
    }),
)  # fmt: skip

IMAGENET = ABLATIONS + TABLE_2 + TRANSFER
