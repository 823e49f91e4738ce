"""Data sets, augmentations and the resumable loader.

To add a data set or an augmentation, write one file and add its config to AnyImages or AnyAugmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from mae_transfer.bounds import BelowOne, Few, Portion, Sides
from mae_transfer.data.ade import Ade, AdeConfig, Mapped, MapSource
from mae_transfer.data.coco import AnnotatedImage, Coco, CocoConfig, ObjectSource
from mae_transfer.data.decode import UnreadableImage
from mae_transfer.data.dense_shapes import ShapesMaps, ShapesMapsConfig, ShapesObjects, ShapesObjectsConfig
from mae_transfer.data.folders import Folder, FolderConfig, Photos, PhotosConfig
from mae_transfer.data.loader import (
    Crops,
    Delivery,
    EvalKeys,
    Key,
    Masking,
    Order,
    Samples,
    TrainKeys,
    Unreadable,
    batches,
)
from mae_transfer.data.maps import (
    AnyMaps,
    MapBatch,
    MapCrops,
    MapDataConfig,
    MapViews,
    Scales,
    open_map_set,
    open_maps,
)
from mae_transfer.data.objects import (
    AnyObjects,
    AnySceneTransform,
    ObjectDataConfig,
    SceneBatch,
    Scenes,
    open_objects,
    open_one,
    scenes,
)
from mae_transfer.data.places import FolderSetConfig, Places, SetConfig, check_filled, same_classes
from mae_transfer.data.shapes import Shapes, ShapesConfig
from mae_transfer.data.sources import PrecomputedLabels, Sample, Source, Split, Subset, check_labels, pick_evenly, split
from mae_transfer.data.transforms import (
    SHORTER_SIDE,
    AnyAugmentation,
    Augment,
    Augmentation,
    ByolCrop,
    CentreCrop,
    Enlarged,
    FixedCrop,
    RandAugmentCrop,
    RandomCrop,
)
from mae_transfer.interfaces import ViewSpec

__all__ = [
    "Ade",
    "AdeConfig",
    "AnnotatedImage",
    "AnyAugmentation",
    "AnyImages",
    "AnyMaps",
    "AnyObjects",
    "AnySceneTransform",
    "Augment",
    "Augmentation",
    "ByolCrop",
    "CentreCrop",
    "Coco",
    "CocoConfig",
    "Crops",
    "DataConfig",
    "Delivery",
    "EvalKeys",
    "FixedCrop",
    "Folder",
    "FolderConfig",
    "FolderSetConfig",
    "Key",
    "LabelledDataConfig",
    "MapBatch",
    "MapCrops",
    "MapDataConfig",
    "MapSource",
    "MapViews",
    "Mapped",
    "Masking",
    "ObjectDataConfig",
    "ObjectSource",
    "Order",
    "Photos",
    "PhotosConfig",
    "PrecomputedLabels",
    "RandAugmentCrop",
    "RandomCrop",
    "Sample",
    "Samples",
    "Scales",
    "SceneBatch",
    "Scenes",
    "SetConfig",
    "Shapes",
    "ShapesConfig",
    "ShapesMaps",
    "ShapesMapsConfig",
    "ShapesObjects",
    "ShapesObjectsConfig",
    "Source",
    "Split",
    "Subset",
    "TrainKeys",
    "Unreadable",
    "UnreadableImage",
    "batches",
    "evaluation_views",
    "open_labelled",
    "open_map_set",
    "open_maps",
    "open_objects",
    "open_one",
    "open_source",
    "open_sources",
    "pick_evenly",
    "same_classes",
    "scenes",
    "split",
    "training_views",
]

AnyImages = Annotated[FolderConfig | PhotosConfig | ShapesConfig, Field(discriminator="name")]


class DataConfig(Places):
    """Which images to use, and how to crop them."""

    train: AnyImages = FolderConfig(split="train")
    """The training set."""
    val: AnyImages | None = None
    """The same for validation. None: no validation set."""
    size: Sides = 224
    """Input size of the encoder: pixels per side, or (height, width). Training resizes random crops of any aspect
    ratio to it, as torchvision does. Evaluation keeps the aspect ratio: it resizes the image until it covers this size,
    then crops the centre, as timm does."""
    augmentation: AnyAugmentation = RandomCrop()
    """How training images are cropped and changed."""
    crops_per_image: Few = 1
    """Crops per decoded image. They are neighbours in one batch, and an epoch grows by this factor."""

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
        same_classes(train.classes, val.classes)
    return split(train, label_fraction=cfg.label_fraction, holdout_fraction=cfg.holdout_fraction), check_labels(
        val, of="validation"
    )


def open_source(part: AnyImages, root: str | None) -> Source:
    """Return a data set. `root` (data.root) is the default for one that takes a root. ValueError if it is empty."""
    return check_filled(part.completed({"root": root}).open(), part)


def open_sources(cfg: DataConfig) -> tuple[Source, Source | None]:
    """Return the training and the validation set."""
    return open_source(cfg.train, cfg.root), open_source(cfg.val, cfg.root) if cfg.val else None


def training_views(cfg: DataConfig, extra: Sequence[ViewSpec] = ()) -> Augment:
    """Return the training augmentation: the encoder's view, then the `extra` views that a target needs."""
    return cfg.augmentation.build((ViewSpec(cfg.size, "bicubic"), *extra))


def evaluation_views(cfg: DataConfig, extra: Sequence[ViewSpec] = (), *, shorter_side: float = SHORTER_SIDE) -> Augment:
    """Return the evaluation views: resize to just cover `shorter_side` times the size, then crop the centre."""
    return CentreCrop(shorter_side=shorter_side).build((ViewSpec(cfg.size, "bicubic"), *extra))
