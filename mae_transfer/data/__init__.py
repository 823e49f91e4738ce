"""Data sets, augmentations and the resumable loader.

To add a data set or an augmentation, write one file and add one line to DATASETS or AUGMENTATIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

from pydantic import model_validator

from mae_transfer.bounds import BelowOne, Few, Portion, Sides
from mae_transfer.config import Spec, build, check
from mae_transfer.data.ade import Ade, Mapped, MapSource
from mae_transfer.data.coco import Annotated, Coco, ObjectSource
from mae_transfer.data.decode import UnreadableImage
from mae_transfer.data.dense_shapes import ShapesMaps, ShapesObjects
from mae_transfer.data.folders import Folder, Photos
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
    MAP_SETS,
    MapBatch,
    MapCrops,
    MapDataConfig,
    MapViews,
    Scales,
    open_map_set,
    open_maps,
)
from mae_transfer.data.objects import (
    OBJECT_SETS,
    SCENE_TRANSFORMS,
    ObjectDataConfig,
    SceneBatch,
    Scenes,
    open_objects,
    open_one,
    scenes,
)
from mae_transfer.data.places import Places, opened, rooted, same_classes
from mae_transfer.data.shapes import Shapes
from mae_transfer.data.sources import PrecomputedLabels, Sample, Source, Split, Subset, check_labels, pick_evenly, split
from mae_transfer.data.transforms import (
    SHORTER_SIDE,
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
    "AUGMENTATIONS",
    "DATASETS",
    "MAP_SETS",
    "OBJECT_SETS",
    "SCENE_TRANSFORMS",
    "Ade",
    "Annotated",
    "Augmentation",
    "Coco",
    "Crops",
    "DataConfig",
    "Delivery",
    "EvalKeys",
    "Folder",
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
    "PrecomputedLabels",
    "Sample",
    "Samples",
    "Scales",
    "SceneBatch",
    "Scenes",
    "Shapes",
    "ShapesMaps",
    "ShapesObjects",
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

DATASETS: Mapping[str, Callable[..., Source]] = {"folder": Folder, "photos": Photos, "shapes": Shapes}
AUGMENTATIONS: Mapping[str, Callable[..., Augmentation]] = {
    "none": CentreCrop,
    "fixed_crop": FixedCrop,
    "random_crop": RandomCrop,
    "byol_crop": ByolCrop,
    "rand_augment": RandAugmentCrop,
}


class DataConfig(Places):
    """Which images to use, and how to crop them."""

    choices: ClassVar = {"train": DATASETS, "val": DATASETS, "augmentation": AUGMENTATIONS}

    train: Spec = Spec.model_validate({"name": "folder", "split": "train"})
    """An entry of DATASETS with its options."""
    val: Spec | None = None
    """The same for validation. None: no validation set."""
    size: Sides = 224
    """Input size of the encoder: pixels per side, or (height, width). Training resizes random crops of any aspect
    ratio to it, as torchvision does. Evaluation keeps the aspect ratio: it resizes the image until it covers this size,
    then crops the centre, as timm does."""
    augmentation: Spec = Spec(name="random_crop")
    """An entry of AUGMENTATIONS with its options."""
    crops_per_image: Few = 1
    """Crops per decoded image. They are neighbours in one batch, and an epoch grows by this factor."""

    @model_validator(mode="after")
    def _entries_exist(self) -> Self:
        for spec in filter(None, (self.train, self.val)):
            check(DATASETS, rooted(DATASETS, spec, self.root or "unset"))
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


def open_source(spec: Spec, root: str | None) -> Source:
    """Return the data set of a spec. `root` (data.root) is the default for a data set that takes a root."""
    return opened(DATASETS, spec, root)


def open_sources(cfg: DataConfig) -> tuple[Source, Source | None]:
    """Return the training and the validation set."""
    return open_source(cfg.train, cfg.root), open_source(cfg.val, cfg.root) if cfg.val else None


def training_views(cfg: DataConfig, extra: Sequence[ViewSpec] = ()) -> Augmentation:
    """Return the training augmentation: the encoder's view, then the `extra` views that a target needs."""
    return build(AUGMENTATIONS, cfg.augmentation, (ViewSpec(cfg.size, "bicubic"), *extra))


def evaluation_views(
    cfg: DataConfig, extra: Sequence[ViewSpec] = (), *, shorter_side: float = SHORTER_SIDE
) -> Augmentation:
    """Return the evaluation views: resize to just cover `shorter_side` times the size, then crop the centre."""
    return CentreCrop((ViewSpec(cfg.size, "bicubic"), *extra), shorter_side=shorter_side)
