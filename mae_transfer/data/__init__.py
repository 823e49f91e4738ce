"""Images: data sets, augmentations and the resumable loader.

What joint embedding, detection and segmentation add is imported from its modules: crops, coco, objects, ade, maps,
dense_shapes.
"""

from mae_transfer.data.config import (
    AnyImages,
    BaseDataConfig,
    DataConfig,
    ImagesConfig,
    LabelledDataConfig,
    evaluation_views,
    open_labelled,
    open_source,
    open_sources,
    training_crops,
    training_views,
)
from mae_transfer.data.decode import UnreadableImage
from mae_transfer.data.folders import Folder, FolderConfig, PhotosConfig
from mae_transfer.data.loader import (
    Crops,
    EvalKeys,
    Key,
    Masking,
    Order,
    Samples,
    TrainKeys,
    Unreadable,
    Workers,
    batches,
)
from mae_transfer.data.shapes import Shapes, ShapesConfig
from mae_transfer.data.sources import (
    PrecomputedLabels,
    Sample,
    SetConfig,
    Source,
    Subset,
    pick_evenly,
    split,
)
from mae_transfer.data.transforms import (
    AnyAugmentation,
    Augment,
    CentreCrop,
    FixedCrop,
    RandAugmentCrop,
    RandomCrop,
)

__all__ = [
    "AnyAugmentation",
    "AnyImages",
    "Augment",
    "BaseDataConfig",
    "CentreCrop",
    "Crops",
    "DataConfig",
    "EvalKeys",
    "FixedCrop",
    "Folder",
    "FolderConfig",
    "ImagesConfig",
    "Key",
    "LabelledDataConfig",
    "Masking",
    "Order",
    "PhotosConfig",
    "PrecomputedLabels",
    "RandAugmentCrop",
    "RandomCrop",
    "Sample",
    "Samples",
    "SetConfig",
    "Shapes",
    "ShapesConfig",
    "Source",
    "Subset",
    "TrainKeys",
    "Unreadable",
    "UnreadableImage",
    "Workers",
    "batches",
    "evaluation_views",
    "open_labelled",
    "open_source",
    "open_sources",
    "pick_evenly",
    "split",
    "training_crops",
    "training_views",
]
