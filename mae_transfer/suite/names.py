"""How results are called in the paper's tables: backbones, data sets, targets, pretrainings."""

from __future__ import annotations

import re
from typing import NamedTuple

from mae_transfer.results import Result
from mae_transfer.suite.match import data_title, setting
from mae_transfer.suite.published import measured

TARGETS = {target.settings["target.name"][0]: row for row, target in measured.TARGETS.items()}
"""Target of our own pretraining -> its row in tables 1d and 7."""
BACKBONES = {ours: papers for papers, ours in measured.BACKBONES.items()}
BACKBONES["vit_huge/16"] = "ViT-H/14"  # ViTDet resamples its patches of 14 pixels to 16
TOKENS_AT_448 = 32 * 32 + 1  # of a ViT-H/14 with its class token
FINE_GRAINED = {title.replace(" ", "").lower(): title for title in measured.FINE_GRAINED}
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
