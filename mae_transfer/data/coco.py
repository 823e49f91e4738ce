"""Images with annotated objects: COCO 2017's layout, or any COCO-format json with any folder of images.

The json is parsed once and stored in a few arrays. Loader workers would copy millions of small Python objects, because
reference counts write to shared memory pages. Outlines are stored exactly, as bytes, and become runs of pixels
(core.runs) when an image is read.

Legend: N images and A objects of the set, n objects of one image, H x W pixels. A label is the rank of its category id
(COCO's ids 1..90 have gaps).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mae_transfer.bounds import Count, Probability
from mae_transfer.core.runs import Size, from_counts, to_counts
from mae_transfer.data.coco_rules import Examined, Json, examine
from mae_transfer.data.decode import UnreadableImage, decode_file
from mae_transfer.data.reports import refuse, report_on_main
from mae_transfer.data.sources import FolderSetConfig, select_part
from mae_transfer.interfaces import Objects


class AnnotatedImage(NamedTuple):
    """One stored image, before any augmentation."""

    image: Tensor  # (3, H, W) uint8 RGB
    objects: Objects
    image_id: int  # as in the json, for predictions


class ObjectSource(Protocol):
    """A set of images with objects. Loader workers receive a pickled copy, so it should be small."""

    classes: tuple[str, ...]  # names by label
    image_ids: np.ndarray  # (N,) int64, image id by index

    @property
    def has_masks(self) -> bool:
        """Whether `objects` gives masks."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> AnnotatedImage:
        """Return image `index` with its objects. UnreadableImage names a file that cannot be used."""
        ...

    def objects(self, index: int) -> Objects:
        """Return the annotated objects of image `index`, without decoding the image if possible."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Return H, W of image `index`, without reading it."""
        ...

    def where(self, index: int) -> str:
        """Return the path of image `index`, for messages."""
        ...

    def ground_truth(self) -> Json:
        """Return the set in COCO's json format, for evaluation."""
        ...


class CocoConfig(FolderSetConfig):
    """A set of images with objects."""

    name: Literal["coco"] = "coco"
    split: str = "train2017"
    """Name of the image folder root/split and of the json root/annotations/instances_split.json, as in COCO 2017."""
    annotations: str | None = None
    """Path of another json, relative to root."""
    images: str | None = None
    """Another folder of images, relative to root. File names in the json may contain subfolders."""
    masks: bool = True
    """True: decode the masks; objects without a valid outline are left out, counted and reported. False: use boxes."""
    skip_empty: bool = False
    """Leave out images without objects other than crowd regions, as detectron2 does in training."""
    first: Count | None = None
    """Use only this many images, in the order of their ids."""
    part: tuple[Probability, Probability] = (0.0, 1.0)
    """Use only the images between two fractions of a fixed random order, for instance (0.0, 0.9) for training and
    (0.9, 1.0) for the hold-out."""

    def open(self) -> Coco:
        return Coco(self)


class Coco:
    """A set of images with objects, in the order of their ids."""

    def __init__(self, cfg: CocoConfig) -> None:
        """Read the json. ValueError names the missing or broken file, or the contradiction in it."""
        self.json, self.folder = locate(cfg)
        found = examine(load_json(self.json), masks=cfg.masks)
        refuse(found.defects, where=self.json)
        for defect in found.defects:
            report_on_main(f"{self.json}: {defect}")
        categories = sorted(found.categories, key=lambda category: category["id"])
        self.classes = list_classes(categories)
        self.category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        self._fill(found, cfg)
        if not len(self) or self._crowd.all():
            raise ValueError(
                f"{self.json}: none of its {len(self)} selected images has an object other than crowd regions; check "
                "that it is the right file"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def object_count(self) -> int:
        """Return the number of annotated objects in the images of this set."""
        return len(self._labels)

    @property
    def has_masks(self) -> bool:
        return self._outlines is not None

    def read(self, index: int) -> AnnotatedImage:
        """Return image `index` with its objects. UnreadableImage names a broken file, or one whose size differs."""
        path = self.where(index)
        image = decode_file(path)
        height, width = self.size(index)
        if image.shape[1:] != (height, width):
            raise UnreadableImage(
                f"{path} has {image.shape[2]} x {image.shape[1]} pixels, but {self.json.name} states "
                f"{width} x {height}: correct one of them"
            )
        return AnnotatedImage(image, self.objects(index), int(self.image_ids[index]))

    def objects(self, index: int) -> Objects:
        """Return the annotated objects of image `index`, without reading the image."""
        span, masks = self._span(index), None
        if self._outlines is not None:
            masks = decode_outlines(self.outlines(index), self.size(index))
        boxes, labels, crowd = (
            torch.from_numpy(values[span].copy()) for values in (self._boxes, self._labels, self._crowd)
        )
        return Objects(boxes, labels, crowd, masks)

    def outlines(self, index: int) -> list[Any]:
        """Return the outlines of image `index` as in the json: one list of polygons or run-length code per object."""
        if self._outlines is None:
            raise ValueError(f"outlines of {self.json} were not read; open it with masks=True")
        span = self._span(index)
        return [self._outlines[k] for k in range(span.start, span.stop)]

    def size(self, index: int) -> tuple[int, int]:
        """Return H, W of image `index`, from the json."""
        return int(self._sizes[index, 0]), int(self._sizes[index, 1])

    def where(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.folder / self._names[index])

    def ground_truth(self) -> Json:
        """Return this set in COCO's json format, without the objects that were left out for defects."""
        found, kept = examine(load_json(self.json), masks=self.has_masks), set(self.image_ids.tolist())
        images = [image for image in found.images if image["id"] in kept]
        objects = [one for one in found.objects if one["image_id"] in kept]
        return {"images": images, "categories": found.categories, "annotations": objects}

    def _fill(self, found: Examined, cfg: CocoConfig) -> None:
        images = sorted(found.images, key=lambda image: image["id"])
        images = [images[index] for index in select_part(len(images), cfg.part)]
        if cfg.skip_empty:
            shown = {one["image_id"] for one in found.objects if not one.get("iscrowd", 0)}
            images = [image for image in images if image["id"] in shown]
        images = images[: cfg.first]
        kept = {image["id"] for image in images}
        objects = [one for one in found.objects if one["image_id"] in kept]
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self._sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)
        self._names = _Packed(image["file_name"] for image in images)
        owners = np.searchsorted(self.image_ids, np.array([one["image_id"] for one in objects], dtype=np.int64))
        order = np.argsort(owners, kind="stable")
        # image i has the objects starts[i]:starts[i + 1]
        self._starts = np.searchsorted(owners[order], np.arange(len(images) + 1))
        self._describe([objects[k] for k in order.tolist()], masks=cfg.masks)

    def _describe(self, objects: list[Json], *, masks: bool) -> None:
        self._labels = np.searchsorted(
            self.category_ids, np.array([one["category_id"] for one in objects], dtype=np.int64)
        )
        self._crowd = np.array([bool(one.get("iscrowd", 0)) for one in objects], dtype=bool)
        corner, extent = np.split(
            np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4), 2, axis=1
        )
        self._boxes = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
        self._outlines = _Packed(one["segmentation"] for one in objects) if masks else None

    def _span(self, index: int) -> slice:
        return slice(int(self._starts[index]), int(self._starts[index + 1]))


def locate(cfg: CocoConfig) -> tuple[Path, Path]:
    """Return the json and the image folder of a split. ValueError if one is missing."""
    file = cfg.home / (cfg.annotations or f"annotations/instances_{cfg.split}.json")
    folder = cfg.home / (cfg.images or cfg.split)
    if not file.is_file():
        found = sorted(path.name for path in file.parent.glob("*.json")) if file.parent.is_dir() else []
        raise ValueError(
            f"no annotations {str(file)!r}; its folder contains: {', '.join(found) or 'no json'} (set data.root or "
            "`annotations`)"
        )
    if not folder.is_dir():
        raise ValueError(
            f"no image folder {str(folder)!r}; set `images` to the folder that contains the json's file names"
        )
    return file, folder


def load_json(path: Path) -> Json:
    """Return the content of a COCO-format json. ValueError for a file that is not json, or not in COCO's format."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken json: {error}; download or write it again") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise ValueError(f"{path} is not in COCO's format: it must contain the lists {', '.join(lists)}")
    return content


def list_classes(categories: Sequence[Json]) -> tuple[str, ...]:
    """Return the names of the categories in the order of their ids, which is that of the labels."""
    return tuple(category["name"] for category in sorted(categories, key=lambda category: category["id"]))


def decode_outlines(outlines: Sequence[Any], size: Size) -> Tensor:
    """Return the masks of valid outlines as runs of pixels, (n, R) int32."""
    return from_counts([_counts(outline, size) for outline in outlines], size)


def encode_runs(runs: Tensor, size: Size) -> dict[str, Any]:
    """Return the runs of one object (R,) as a compressed run-length code for json."""
    from pycocotools import mask

    encoded = mask.frPyObjects({"size": list(size), "counts": to_counts(runs, size)}, *size)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _counts(outline: Any, size: Size) -> str | list[int]:
    """Return the counts of an outline as one run-length code."""
    from pycocotools import mask

    if isinstance(outline, list):  # pycocotools reads four numbers as a box, so shorter polygons are invalid
        return str(mask.merge(mask.frPyObjects(outline, *size))["counts"], "ascii")
    counts: str | list[int] = outline["counts"]
    return counts


class _Packed:
    """A list of plain values in one block of bytes. Pickle is much faster than json text."""

    def __init__(self, values: Iterable[Any]) -> None:
        encoded = [pickle.dumps(value) for value in values]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        return pickle.loads(self._block[self._ends[index] : self._ends[index + 1]])
