"""How results are called in the paper's tables: backbones, data sets, targets, pretrainings."""

from __future__ import annotations

import re
from typing import NamedTuple

from mae_transfer.results import Result
from mae_transfer.suite.match import data_title, setting

TARGETS = {"pixel": "pixel (w/o norm)", "norm_pixel": "pixel (w/ norm)", "pca": "PCA", "token": "dVAE token"}
"""Target of our own pretraining -> its row in tables 1d and 7."""
BACKBONES = {
    "vit_small/16": "ViT-S/16",
    "vit_base/16": "ViT-B/16",
    "vit_large/16": "ViT-L/16",
    "vit_huge/14": "ViT-H/14",
    "vit_huge/16": "ViT-H/14",  # ViTDet resamples its patches of 14 pixels to 16
}
TOKENS_AT_448 = 32 * 32 + 1  # of a ViT-H/14 with its class token
FINE_GRAINED = {
    "inat2017": "iNat 2017",
    "inat2018": "iNat 2018",
    "inat2019": "iNat 2019",
    "places205": "Places205",
    "places365": "Places365",
}
FOLDERS = {
    "imagenet": "ImageNet", "imagenet1k": "ImageNet", "ilsvrc": "ImageNet", "ilsvrc2012": "ImageNet",
    "coco": "COCO", "coco2017": "COCO", "ade": "ADE20K", "ade20k": "ADE20K", "adechallengedata2016": "ADE20K",
    **FINE_GRAINED,
}  # fmt: skip
"""Usual folder names, for the titles of results that have no record. Nothing is compared by them."""
SCRATCH = "none (scratch)"


class Pretraining(NamedTuple):
    """What the record says of a pretraining by this suite."""

    target: str
    mask: str
    hidden: str
    """Share of hidden patches: "75%"."""
    epochs: str


def pretraining(result: Result) -> Pretraining | None:
    """Return what a pretraining of this suite did, from its own result or a transfer's.

    It is None for other weights and for results without a record.
    """
    made = result.record
    if made is not None and result.task != "pretrain":
        made = made.pretraining()
    target = setting(made.recipe, "target.name") if made else None
    if made is None or target is None:
        return None
    mask, ratio = setting(made.recipe, "mask.name"), setting(made.recipe, "mask.ratio")
    return Pretraining(str(target), str(mask), f"{0.75 if ratio is None else ratio:.0%}", f"{made.epochs:g}")


def backbone(result: Result) -> str:
    """Return the paper's name of the backbone, or its own."""
    name = BACKBONES.get(result.backbone, result.backbone)
    return f"{name} at 448" if result.tokens_per_image == TOKENS_AT_448 and name == "ViT-H/14" else name


def dataset(name: str) -> str:
    """Return the paper's name of a data set by the usual names of its folder, or its own."""
    return FOLDERS.get(re.sub(r"[^a-z0-9]", "", name.lower()), name)


def data_of(result: Result) -> str:
    """Return the paper's name of the data set that a result was evaluated on, by its counts; else its own.

    Without a record the name of the folder counts.
    """
    if result.record is None:
        return dataset(result.dataset)
    return data_title(result.record) or result.dataset
