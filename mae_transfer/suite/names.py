"""How results are called in the paper's tables: methods, backbones, data sets, targets."""

from __future__ import annotations

import re
from typing import NamedTuple

from mae_transfer.results import Result

EVALUATED = "MAE, released weights"  # its classifiers, which are only evaluated
RELEASED: dict[str, tuple[str, ...]] = {
    "none": ("none (scratch)",), "mae": ("MAE",), "moco-v3": ("MoCo v3",), "dino": ("DINO",), "ibot": ("iBOT",),
    "mae-finetuned": (EVALUATED,),
    "beit": ("BEiT, ImageNet-22K",),  # the paper's BEiT learned from ImageNet-1K and was not released
    "beit-labels": ("BEiT, ImageNet-22K with labels",),
}  # fmt: skip
"""First word of Result.pretrain -> the method's names in the tables."""
FILES = {"mae_vit_": "mae", "moco_v3_": "moco-v3", "dino_vit_": "dino", "beit_": "beit"}
"""How the names of released files begin (checkpoints.RELEASED) -> the method."""
TARGETS = {"pixel": "pixel (w/o norm)", "norm_pixel": "pixel (w/ norm)", "pca": "PCA", "token": "dVAE token"}
"""Target of our own pretraining -> its row in tables 1d and 7."""
BACKBONES = {
    "vit_small/16": "ViT-S/16",
    "vit_base/16": "ViT-B/16",
    "vit_large/16": "ViT-L/16",
    "vit_huge/14": "ViT-H/14",
}
TOKENS_AT_448 = 32 * 32 + 1  # of a ViT-H/14 with its class token
FINE_GRAINED = {
    "inat2017": "iNat 2017", "inat2018": "iNat 2018", "inat2019": "iNat 2019", "places205": "Places205", "places365": "Places365",
}  # fmt: skip
DENSE_SETS = {"coco": "COCO", "coco2017": "COCO", "ade": "ADE20K", "ade20k": "ADE20K", "adechallengedata2016": "ADE20K"}
TUNED = {"ViT-B/16": 100, "ViT-L/16": 50, "ViT-H/14": 50}
"""Epochs of fine-tuning (MAE, table 9)."""
FROM_SCRATCH = {"ViT-B/16": 300, "ViT-L/16": 200, "ViT-H/14": 200}
"""Epochs from scratch (MAE, table 11)."""
PROBED = {"ViT-B/16": 90}
"""Epochs of linear probing, 50 where not named (MAE, table 10)."""
PARTLY_TUNED = 50  # epochs of partial fine-tuning (MAE, appendix A.1: the best of 50, 100 and 200)
IMAGENET_EPOCH = 1_281_167  # images of ImageNet-1K's training set
DETECTED, DETECTED_FROM_SCRATCH = 100, 400  # epochs on COCO (Li et al.; ViTDet)
DETECTED_HUGE = 75  # of ViT-H (ViTDet)
COCO_EPOCH = 117_266  # images of COCO 2017 that have objects
SEGMENTED = 120_000  # steps of 16 images on ADE20K: the paper's 100 epochs are 126,000, the public recipe has 160,000


class Method(NamedTuple):
    """What Result.pretrain says of one of our own pretraining runs: "MAE norm_pixel, random 75%, 800 ep"."""

    target: str
    mask: str
    hidden: str  # "75%"
    epochs: str


def method(pretrain: str) -> Method | None:
    """Return the parts of the name of one of our own pretrainings; None for any other."""
    found = re.fullmatch(r"MAE (\w+), (\w+) (\d+%), ([\d.e+]+) ep", pretrain)
    return Method(*found.groups()) if found else None


def paper_names(pretrain: str) -> tuple[str, ...]:
    """Return what the tables call a pretraining, () where they have no name for it; ours is "MAE" only with the paper's target, mask and length."""
    if method(pretrain) == ("norm_pixel", "random", "75%", "1600"):
        return ("MAE",)
    if pretrain.startswith("timm:"):
        return RELEASED.get(pretrain.rpartition(".")[2], ())  # vit_base_patch16_224.dino
    if pretrain == "mae_vit_large_visualize":  # raw pixels
        return ()
    if pretrain.endswith("_finetuned"):
        return RELEASED["mae-finetuned"]
    if pretrain.endswith("_ft22k"):
        return RELEASED["beit-labels"]
    return RELEASED.get(next((known for begin, known in FILES.items() if pretrain.startswith(begin)), pretrain), ())


def backbone(result: Result) -> str:
    """Return the paper's name of the backbone, or its own."""
    name = BACKBONES.get(result.backbone, result.backbone)
    return f"{name} at 448" if result.tokens_per_image == TOKENS_AT_448 and name == "ViT-H/14" else name


def dataset(name: str) -> str:
    """Return the paper's name of a data set, or its own."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if re.fullmatch(r"(imagenet|ilsvrc)(1k|2012)?", plain):
        return "ImageNet"
    return DENSE_SETS.get(plain) or FINE_GRAINED.get(plain) or name


def full_length(result: Result) -> bool:
    """Return whether a transfer was trained for as long as the published one, or only evaluated: a shortened run is no comparison."""
    fresh, first = result.pretrain == "none", result.protocol.partition("-")[0]
    if result.epochs == 0 and result.steps == 0:
        return True
    if result.task == "detect":
        whole = DETECTED_FROM_SCRATCH if fresh else DETECTED_HUGE if backbone(result) == "ViT-H/14" else DETECTED
        return detected_epochs(result) >= whole
    if result.task == "segment":
        return result.steps >= SEGMENTED
    epochs = result.epochs or round(result.images_seen / IMAGENET_EPOCH)  # of an evaluated training state
    if first == "finetune":
        return epochs == (FROM_SCRATCH if fresh else TUNED).get(backbone(result), epochs)
    return epochs >= {"linear": PROBED.get(backbone(result), 50), "partial": PARTLY_TUNED}.get(first, 0)


def detected_epochs(result: Result) -> float:
    """Return the epochs of a detector; an evaluated training state knows its images only, and is taken to have learned from COCO."""
    return result.epochs or result.images_seen / COCO_EPOCH
