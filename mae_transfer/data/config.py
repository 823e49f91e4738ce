"""The configs of data: which images a run uses, and how to crop them.

To add a data set or an augmentation, write one file and add its config to AnyImages or AnyAugmentation. The configs of
images with objects and of class maps stand with their transforms, in objects.py and maps.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator

from mae_transfer.bounds import BelowOne, Few, Portion, Sides, Whole
from mae_transfer.config import Schema, set_name
from mae_transfer.data.folders import FolderConfig, PhotosConfig
from mae_transfer.data.loader import Crops, Masking, Unreadable
from mae_transfer.data.regions import check_decoder
from mae_transfer.data.shapes import ShapesConfig
from mae_transfer.data.sources import SetConfig, Source, Split, check_labels, decoded_late, split
from mae_transfer.data.transforms import (
    SHORTER_SIDE,
    AnyAugmentation,
    Augment,
    CentreCrop,
    Enlarged,
    RandAugmentCrop,
    RandomCrop,
)
from mae_transfer.interfaces import ViewSpec

T = TypeVar("T", bound=Sized)
AnyImages = Annotated[FolderConfig | PhotosConfig | ShapesConfig, Field(discriminator="name")]
SELECTIONS = {"part", "first", "length", "skip_empty", "masks"}  # options that select from a set and do not identify it


class BaseDataConfig(Schema):
    """The folder of the images, and the policy for unreadable files."""

    if TYPE_CHECKING:
        train: SetConfig  # each kind of data has its own default

    root: str | None = None
    """Folder of the data set, or for images a pack of it. It is the default `root` of the data sets below."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with an unreadable file. "raise": stop the run. "skip": report it, then use another image instead
    (training) or leave it out (evaluation)."""
    max_unreadable: Whole = 100
    """Number of different unreadable files per process that "skip" accepts before it stops the run."""

    @property
    def name(self) -> str:
        """The data set's name in tables: the name of its folder, or the kind of generated images."""
        return set_name(self.root) if self.root else self.train.name

    def unreadable(self) -> Unreadable:
        """Return the policy for unreadable files. Its `files` record those found so far."""
        return Unreadable(limit=self.max_unreadable if self.on_error == "skip" else 0)


class ImagesConfig(BaseDataConfig):
    """Which images to use, and their size."""

    train: AnyImages = FolderConfig(split="train")
    """The training set."""
    val: AnyImages | None = None
    """The same for validation. None: no validation set."""
    size: Sides = 224
    """Input size of the encoder: pixels per side, or (height, width). Training resizes random crops of any aspect
    ratio to it, as torchvision does. Evaluation keeps the aspect ratio: it resizes the image until it covers this size,
    then crops the centre, as timm does."""


class DataConfig(ImagesConfig):
    """Which images to use, and how to crop them."""

    augmentation: AnyAugmentation = RandomCrop()
    """How training images are cropped and changed."""
    crops_per_image: Few = 1
    """Crops per decoded image. They are neighbours in one batch, and an epoch grows by this factor."""

    def leaves_one_crop(self, augment_on: Literal["worker", "device"]) -> bool:
        """Return whether workers can leave an image to the device: one crop, which nothing changes before that."""
        kind = self.augmentation
        changed = getattr(kind, "jitter", 0) or (isinstance(kind, RandAugmentCrop) and augment_on == "worker")
        return kind.one_box and not changed and self.crops_per_image == 1

    @model_validator(mode="after")
    def _usable(self) -> Self:
        training_views(self)  # reports incompatible options when the config is loaded
        return self


class LabelledDataConfig(DataConfig):
    """Labelled images: the share of labels used, the hold-out, and the evaluation crop."""

    label_fraction: Portion = 1.0
    """Share of each class's training images to use: 0.01 and 0.1 are the low-label protocols. The selection is fixed
    and does not depend on the seed."""
    holdout_fraction: BelowOne = 0.0
    """Share of those images, per class, to keep out of training and use for selection (of a learning rate, a probe or
    an epoch)."""
    shorter_side: Enlarged = SHORTER_SIDE
    """Evaluation resizes the image to just cover this many times the crop's size, then crops the centre: 256/224 by
    default, usually 1.0 above 224 px."""


def open_labelled(cfg: LabelledDataConfig) -> tuple[Split, Source]:
    """Return the training set with its held-out part, and the validation set.

    Raises:
        ValueError: a set is missing or unlabelled, or the two sets have different classes.
    """
    train, val = open_sources(cfg)
    if val is None:
        raise ValueError(
            "data.val is not set: set it to a validation set, which is used for neither training nor selection"
        )
    if val.classes and train.classes:
        check_same_classes(train.classes, val.classes)
    return split(train, label_fraction=cfg.label_fraction, holdout_fraction=cfg.holdout_fraction), check_labels(
        val, of="validation"
    )


def open_source(part: AnyImages, root: str | None) -> Source:
    """Return a data set. `root` (data.root) is the default for one that takes a root. ValueError if it is empty."""
    return check_not_empty(part.completed({"root": root}).open(), part)


def open_sources(cfg: ImagesConfig) -> tuple[Source, Source | None]:
    """Return the training and the validation set."""
    return open_source(cfg.train, cfg.root), open_source(cfg.val, cfg.root) if cfg.val else None


def training_views(cfg: DataConfig, extra: Sequence[ViewSpec] = ()) -> Augment:
    """Return the training augmentation: the encoder's view, then the `extra` views that a target needs."""
    return cfg.augmentation.build((ViewSpec(cfg.size, "bicubic"), *extra))


def training_crops(
    cfg: DataConfig,
    source: Source,
    extra: Sequence[ViewSpec] = (),
    *,
    seed: int,
    masking: Masking | None = None,
    augment_on: Literal["worker", "device"] = "worker",
    decode_on: torch.device | None = None,
) -> Crops:
    """Return the augmented images of a source. An image of which one crop is used is decoded there only.

    Args:
        augment_on: "device" leaves RandAugment to `finish_crops`.
        decode_on: what decodes the crops, in the main process. None: the workers.
    Raises:
        ValueError: `decode_on` cannot decode, or would have to decode several views.
    """
    if decode_on is not None:
        if extra:
            raise ValueError("run.decode_on = 'device' decodes one view, but the target needs more: remove it")
        check_decoder(decode_on)
    late = cfg.augmentation.one_box and cfg.crops_per_image == 1
    views = training_views(cfg, extra)
    crops = Crops(
        source=decoded_late(source, leave=decode_on is not None) if late else source,
        augmentation=views,
        seed=seed,
        masking=masking,
        decode_on=decode_on,
    )
    if augment_on == "worker":
        return crops
    assert isinstance(cfg.augmentation, RandAugmentCrop), "the config allows no other augmentation on the device"
    plain = partial(cfg.augmentation.crop, views=(ViewSpec(cfg.size, "bicubic"),))
    return replace(crops, augmentation=plain, operations=cfg.augmentation.draw)


def evaluation_views(
    cfg: ImagesConfig, extra: Sequence[ViewSpec] = (), *, shorter_side: float = SHORTER_SIDE
) -> Augment:
    """Return the evaluation views: resize to just cover `shorter_side` times the size, then crop the centre."""
    return CentreCrop(shorter_side=shorter_side).build((ViewSpec(cfg.size, "bicubic"), *extra))


def check_not_empty(source: T, part: SetConfig) -> T:
    """Return the opened data set of a config; ValueError if it is empty."""
    if not len(source):
        raise ValueError(f"the data set {part.name!r} is empty; check its options: {part.model_dump()}")
    return source


def check_holdout(holdout: SetConfig | None, others: Mapping[str, SetConfig]) -> None:
    """Raise ValueError if the hold-out shares images with another set. `others`: sets by their key in the config."""
    if holdout is None:
        return
    for key, other in others.items():
        one, two = ({k: v for k, v in part.model_dump().items() if k not in SELECTIONS} for part in (holdout, other))
        (start, end), (low, high) = (getattr(part, "part", (0.0, 1.0)) for part in (holdout, other))
        if one == two and max(start, low) < min(end, high):
            raise ValueError(
                f"data.holdout shares images with data.{key}: use parts that do not overlap, for instance "
                "data.train.part=(0.0, 0.95) and data.holdout.part=(0.95, 1.0)"
            )


def check_same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raise ValueError if the classes of training and validation set differ in names or order."""
    if train != val:
        different = sorted(set(train) ^ set(val))[:5]
        how = f"only one set has {different}" if different else "the names are the same, but their order differs"
        raise ValueError(
            f"training set has {len(train)} classes, validation set {len(val)}; {how}: use the same list of classes"
        )
