"""Images with annotated objects: COCO 2017's layout, or any COCO-format json beside any folder of images.

The json is parsed once. What the loader's workers are sent is a handful of arrays: millions of small Python objects would be copied into every
worker by their reference counts. Outlines stay the json's own text, as exact and smaller than their numbers, and are decoded when an image is read.

Legend: N images, A objects of the set, n of one image, H x W pixels of an image; a label is the rank of its category id (COCO's 1..90 has gaps).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mae_transfer.data.decode import UnreadableImage, decode

LOG = logging.getLogger(__name__)
CHECK = "tools/prepare_data.py check lists every defect"


class Objects(NamedTuple):
    """What is annotated in one image."""

    boxes: Tensor  # (n, 4) float32 x0, y0, x1, y1 in pixels, as annotated: neither clipped to the image nor free of empty ones
    labels: Tensor  # (n,) int64 index into `classes`
    crowd: Tensor  # (n,) bool: a region of many, to be ignored in training
    masks: Tensor | None  # (n, H, W) uint8, 1 = object; None where they were not asked for


class Annotated(NamedTuple):
    """One image as it is stored, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    objects: Objects
    image_id: int  # the json's own, for predictions


class Coco:
    """A set of images with objects, in the order of their ids.

    Args:
        root: the data set's folder.
        split: names the images' folder root/split and the json root/annotations/instances_split.json, as COCO 2017 has them.
        annotations: another json, relative to root.
        images: another folder of images, relative to root; file names may have folders of their own.
        masks: decode the objects' masks; objects without a valid outline are then left out, counted and reported.
        skip_empty: leave out images without any object other than crowd regions, as detectron2 does in training.
    Raises:
        ValueError: names the file that is missing or broken, or what in it contradicts itself.
    """

    def __init__(
        self,
        *,
        root: str,
        split: str = "train2017",
        annotations: str | None = None,
        images: str | None = None,
        masks: bool = True,
        skip_empty: bool = False,
    ) -> None:
        self.json, self.folder = locate(root, split, annotations, images)
        self.masks = masks
        content = load_json(self.json)
        try:
            categories = sorted(content["categories"], key=lambda category: category["id"])
            self.category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
            self.classes = tuple(str(category.get("name", category["id"])) for category in categories)
            self._fill(sorted(content["images"], key=lambda image: image["id"]), content["annotations"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.json}: {type(error).__name__}: {error}; {CHECK}") from error
        if skip_empty:
            self._keep(np.flatnonzero(np.add.reduceat(np.append(~self._crowd, 0), self._starts[:-1]) * np.diff(self._starts) > 0))
        if not len(self):
            raise ValueError(f"{self.json} has no image{' with objects' if skip_empty else ''}; {CHECK}")

    def _fill(self, images: list[dict[str, Any]], objects: list[dict[str, Any]]) -> None:
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self.sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)  # (N, 2) H, W
        self._names = _Texts([image["file_name"] for image in images])
        for what, ids in (("image", self.image_ids), ("category", self.category_ids)):
            if len(np.unique(ids)) < len(ids):
                raise ValueError(f"{len(ids) - len(np.unique(ids))} {what} ids are there twice")
        if self.masks:
            objects = _outlined(objects, self.json)
        owners = _ranks([a["image_id"] for a in objects], self.image_ids, "image")
        order = np.argsort(owners, kind="stable")
        objects = [objects[i] for i in order]
        self._starts = np.searchsorted(owners[order], np.arange(len(images) + 1))  # objects starts[i]:starts[i + 1] are image i's
        self._labels = _ranks([a["category_id"] for a in objects], self.category_ids, "category")
        self._crowd = np.array([bool(a.get("iscrowd", 0)) for a in objects], dtype=bool)
        corners = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)  # x, y, width, height in the json
        self._boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1).astype(np.float32)
        self._outlines = _Texts([json.dumps(a["segmentation"]) if self.masks else "" for a in objects])

    def _keep(self, kept: np.ndarray) -> None:
        self._spans = kept

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, index: int) -> Annotated:
        """Return image `index` with its objects; UnreadableImage names a file that cannot be decoded or is not of the size that the json says."""
        path = self.where(index)
        image = decode(Path(path).read_bytes(), where=path)
        height, width = (int(side) for side in self.sizes[index])
        if image.shape[1:] != (height, width):
            raise UnreadableImage(f"{path} has {image.shape[2]}x{image.shape[1]} pixels, {self.json.name} says {width}x{height}")
        return Annotated(image, self.objects(index), int(self.image_ids[index]))
