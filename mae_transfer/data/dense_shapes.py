"""The generated scenes of data/shapes.py with objects for detection and class maps for segmentation.

Both can be written to disk, in COCO's and ADE20K's layout.

Legend: S pixels per side, n visible objects of a scene.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from mae_transfer.bounds import Count, Pixels
from mae_transfer.core.runs import from_mask, rasterize, stack_runs
from mae_transfer.data.ade import CLASSES_FILE, MappedImage
from mae_transfer.data.coco import AnnotatedImage, encode_runs
from mae_transfer.data.coco_rules import Json
from mae_transfer.data.shapes import GeneratedScene, ScenesConfig, Shapes
from mae_transfer.interfaces import Objects
from mae_transfer.seeding import fold

SMALLEST = 4  # visible pixels of an object; smaller ones are left out
QUALITY = 95  # of the JPEGs


class _DenseScenesConfig(ScenesConfig):
    size: Pixels = 128
    """Pixels per side."""
    length: Count = 2000
    """Number of scenes."""


class ShapesObjectsConfig(_DenseScenesConfig):
    """Generated scenes with the boxes and masks of visible objects."""

    def open(self) -> ShapesObjects:
        return ShapesObjects(self)


class ShapesMapsConfig(_DenseScenesConfig):
    """Generated scenes with their class maps: 0 is the ground, 1 + k is the solid of class k."""

    def open(self) -> ShapesMaps:
        return ShapesMaps(self)


class ShapesObjects:
    """Generated scenes with the boxes and masks of visible objects. The interface is that of data.coco.Coco."""

    def __init__(self, cfg: ScenesConfig) -> None:
        self.shapes = Shapes(cfg)
        self.classes = self.shapes.classes
        self.image_ids = np.arange(1, cfg.length + 1)
        self.has_masks = True

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int) -> AnnotatedImage:
        """Return scene `index` with its objects."""
        scene = self.shapes.scene(index)
        return AnnotatedImage(_image(scene), _objects(scene), index + 1)

    def objects(self, index: int) -> Objects:
        """Return the visible objects of scene `index`."""
        return _objects(self.shapes.scene(index))

    def size(self, index: int) -> tuple[int, int]:
        """Return H, W of scene `index`."""
        return self.shapes.size, self.shapes.size

    def where(self, index: int) -> str:
        """Return the name of scene `index`, for messages."""
        return self.shapes.where(index)

    def ground_truth(self) -> Json:
        """Return all objects in COCO's format. This draws every scene."""
        return self.described(self.objects(index) for index in range(len(self)))

    def described(self, of_images: Iterable[Objects]) -> Json:
        """Return the objects of all scenes, in order, in COCO's format."""
        side = self.shapes.size
        entries = [
            entry
            for image_id, objects in enumerate(of_images, start=1)
            for entry in _entries(objects, image_id, (side, side))
        ]
        return {
            "info": {"description": f"generated shapes, seed {self.shapes.seed}, {side} pixels"},
            "categories": [{"id": k, "name": name} for k, name in enumerate(self.classes, start=1)],
            "images": [
                {"id": k, "file_name": _file(k), "height": side, "width": side} for k in self.image_ids.tolist()
            ],
            "annotations": [{"id": k, **entry} for k, entry in enumerate(entries, start=1)],
        }


class ShapesMaps:
    """Generated scenes with their class maps: 0 is the ground, 1 + k is the solid of class k."""

    def __init__(self, cfg: ScenesConfig) -> None:
        self.shapes = Shapes(cfg)
        self.classes = ("ground", *self.shapes.classes)

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int) -> MappedImage:
        """Return scene `index` with its class map."""
        scene = self.shapes.scene(index)
        return MappedImage(_image(scene), torch.from_numpy(scene.classes))

    def where(self, index: int) -> str:
        """Return the name of scene `index`, for messages."""
        return self.shapes.where(index)


def write_coco(root: Path, *, train: int, val: int, size: int, seed: int = 0) -> None:
    """Write scenes in COCO 2017's layout: train2017/, val2017/ and annotations/instances_*.json.

    The same arguments give the same files.
    """
    for split, length in (("train2017", train), ("val2017", val)):
        source = ShapesObjectsConfig(size=size, length=length, seed=fold(seed, split)).open()
        _write_text(
            root / "annotations" / f"instances_{split}.json",
            json.dumps(source.described(_write_images(source, root / split))),
        )


def write_ade(root: Path, *, train: int, val: int, size: int, seed: int = 0) -> None:
    """Write scenes in ADE20K's layout: training/ and validation/ in images/ and annotations/, and the class list.

    In the maps 1 is the ground. 0 is not used.
    """
    for split, length in (("training", train), ("validation", val)):
        source = ShapesMapsConfig(size=size, length=length, seed=fold(seed, split)).open()
        _write_text(root / CLASSES_FILE, "\n".join(source.classes) + "\n")
        for index in track(range(length), description=split):
            sample, name = source.read(index), _file(index + 1)
            _write_image(root / "images" / split / name, sample.image)
            target = (root / "annotations" / split / name).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((sample.labels + 1).numpy()).save(target)


def _write_images(source: ShapesObjects, folder: Path) -> Iterator[Objects]:
    """Write every scene's image and yield its objects."""
    for index in track(range(len(source)), description=folder.name):
        scene = source.read(index)
        _write_image(folder / _file(scene.image_id), scene.image)
        yield scene.objects


def _image(scene: GeneratedScene) -> Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1)


def _objects(scene: GeneratedScene) -> Objects:
    """Return the objects with at least SMALLEST visible pixels."""
    numbers = np.arange(1, len(scene.kinds) + 1)
    seen = (scene.instances[None] == numbers[:, None, None]).sum(axis=(1, 2)) >= SMALLEST
    runs = [from_mask(scene.instances == number, scene.instances.shape) for number in numbers[seen]]
    boxes, labels = torch.from_numpy(scene.boxes[seen]).float(), torch.from_numpy(scene.kinds[seen])
    return Objects(boxes, labels, torch.zeros(len(labels), dtype=torch.bool), stack_runs(runs, scene.instances.shape))


def _entries(objects: Objects, image_id: int, size: tuple[int, int]) -> Iterator[Json]:
    """Yield the objects of an image in COCO's json format, without ids."""
    assert objects.masks is not None
    areas = rasterize(objects.masks, size).sum(dim=(1, 2)).tolist()
    for box, label, area, runs in zip(
        objects.boxes.tolist(), objects.labels.tolist(), areas, objects.masks, strict=True
    ):
        yield {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": area,
            "iscrowd": 0,
            "segmentation": encode_runs(runs, size),
        }


def _file(number: int) -> str:
    return f"{number:012d}.jpg"


def _write_image(path: Path, image: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=QUALITY)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
