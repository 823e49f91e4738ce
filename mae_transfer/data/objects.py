"""Input of detectors: large-scale jitter, shortest-edge resizing, and batches for training and evaluation.

Random numbers come from the global generators, which the loader seeds per sample. Masks are resized by nearest
neighbour. So resizing and cropping select rows and columns of a mask's runs (core.runs), and no mask is rasterised. The
image is resized as a whole, then cropped.

Legend: H x W pixels, n objects of an image, B images of a batch. A size is (height, width).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from operator import gt
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import pad

from mae_transfer.bounds import Few, Pixels, Probability, Sides, Zoom
from mae_transfer.config import Part
from mae_transfer.core.patches import sides, size_of
from mae_transfer.core.runs import Size, extents, has_pixels, select_pixels
from mae_transfer.data.coco import AnnotatedImage, CocoConfig, ObjectSource
from mae_transfer.data.config import BaseDataConfig, check_holdout, check_not_empty
from mae_transfer.data.dense_shapes import ShapesObjectsConfig
from mae_transfer.data.loader import Samples
from mae_transfer.data.transforms import resize
from mae_transfer.interfaces import Objects, Tensors

EMPTY = 1e-5  # pixels: objects whose box is not wider and higher than this are removed, as in detectron2


class Scene(NamedTuple):
    """One image with its annotated objects."""

    image: Tensor  # (3, H, W) uint8
    objects: Objects  # in pixels of `image`


@dataclass(frozen=True)
class SceneBatch(Tensors):
    """The input of a detector's training step."""

    image: Tensor  # (B, 3, H, W) uint8; padded with zeros at the right and bottom
    sizes: tuple[Size, ...]  # of each image without padding; on the host
    objects: tuple[Objects, ...]  # of each image; masks have the size of the image without padding
    index: Tensor  # (B,) int64, indices of the images in the source


class SceneTransform(Part):
    """Transforms an image together with its objects."""

    flip: Probability = 0.5
    """Probability of a horizontal flip; 0 in evaluation."""

    @abstractmethod
    def __call__(self, scene: Scene) -> Scene: ...

    @abstractmethod
    def largest(self) -> Size:
        """Return the largest possible height and width of the output, to check the padded size before training."""


class LargeScaleJitter(SceneTransform):
    """Flip, resize by a random scale, and take a random crop of fixed size (LSJ in ViTDet, Li et al.).

    Smaller images are padded when the batch is formed.
    """

    name: Literal["large_scale_jitter"] = "large_scale_jitter"
    size: Sides = 1024
    """Pixels per side of the crop, or its height and width."""
    scale: tuple[Zoom, Zoom] = (0.1, 2.0)
    """Range of the random scale. The image is resized to fit into `scale` times the crop's size, with its aspect ratio
    kept; (1, 1): into the crop's size."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale = {self.scale}: give the smallest scale first")
        return self

    def __call__(self, scene: Scene) -> Scene:
        if torch.rand(()) < self.flip:
            scene = mirror(scene)
        drawn = float(torch.empty(()).uniform_(*self.scale))
        height, width = scene.image.shape[-2:]
        high, wide = sides(self.size)
        ratio = min(high * drawn / height, wide * drawn / width)
        scaled = max(1, round(height * ratio)), max(1, round(width * ratio))
        offset = float(torch.rand(()))  # one random number for both sides, as in detectron2
        top, left = round(offset * max(0, scaled[0] - high)), round(offset * max(0, scaled[1] - wide))
        return resize_scene(scene, scaled, window=(top, left, min(high, scaled[0]), min(wide, scaled[1])))

    def largest(self) -> Size:
        return sides(self.size)


class ShortestEdge(SceneTransform):
    """Flip, then resize the shorter side to a random length and limit the longer side: the classic recipe.

    With one length and without flip it is the view for evaluation.
    """

    name: Literal["shortest_edge"] = "shortest_edge"
    lengths: tuple[Pixels, ...] = (640, 672, 704, 736, 768, 800)
    """Lengths of the shorter side in pixels. One of them is drawn per image."""
    longest: Pixels = 1333
    """Maximum length of the longer side in pixels."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lengths or self.longest < max(self.lengths):
            raise ValueError(
                f"lengths = {self.lengths}, longest = {self.longest}: give at least one length, and none above "
                "`longest`"
            )
        return self

    def __call__(self, scene: Scene) -> Scene:
        if self.flip and torch.rand(()) < self.flip:
            scene = mirror(scene)
        length = self.lengths[int(torch.randint(len(self.lengths), ()))] if len(self.lengths) > 1 else self.lengths[0]
        height, width = scene.image.shape[-2:]
        ratio = min(length / min(height, width), self.longest / max(height, width))
        return resize_scene(scene, (max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))))

    def largest(self) -> Size:
        return self.longest, self.longest


AnySceneTransform = Annotated[LargeScaleJitter | ShortestEdge, Field(discriminator="name")]
AnyObjects = Annotated[CocoConfig | ShapesObjectsConfig, Field(discriminator="name")]


def mirror(scene: Scene) -> Scene:
    """Return the scene flipped horizontally."""
    boxes, masks = scene.objects.boxes, scene.objects.masks
    height, width = scene.image.shape[-2:]
    flipped = boxes.clone()
    flipped[:, [0, 2]] = width - boxes[:, [2, 0]]
    if masks is not None:
        masks = select_pixels(masks, (height, width), np.arange(height), np.arange(width)[::-1])
    return Scene(scene.image.flip(-1), replace(scene.objects, boxes=flipped, masks=masks))


def resize_scene(scene: Scene, size: Size, *, window: tuple[int, int, int, int] | None = None) -> Scene:
    """Resize a scene (bilinear and antialiased; masks: nearest), then crop `window` (top, left, height, width).

    Boxes are shifted and clipped. Objects outside the window are removed.
    """
    top, left, height, width = window or (0, 0, *size)
    image = resize(scene.image, size, "bilinear") if size != tuple(scene.image.shape[-2:]) else scene.image
    image = image[:, top : top + height, left : left + width].contiguous()
    rows, columns = (
        ((torch.arange(first, first + count) + 0.5) * (was / now)).long().clamp_(max=was - 1)
        for first, count, was, now in zip((top, left), (height, width), scene.image.shape[-2:], size, strict=True)
    )
    masks = scene.objects.masks
    if masks is not None:
        masks = select_pixels(masks, (scene.image.shape[-2], scene.image.shape[-1]), rows.numpy(), columns.numpy())
    scale = torch.tensor([size[1] / scene.image.shape[-1], size[0] / scene.image.shape[-2]]).repeat(2)
    boxes = scene.objects.boxes * scale - torch.tensor([left, top, left, top])
    return Scene(image, clip_objects(replace(scene.objects, boxes=boxes, masks=masks), (height, width)))


def clip_objects(objects: Objects, size: Size) -> Objects:
    """Clip objects to an image of this size, and remove those that are outside.

    If the border cuts an object, its box becomes the box of the visible mask; without masks, the box is clipped.
    """
    boxes = clip_boxes_to_image(objects.boxes, size)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > EMPTY).all(dim=1)
    if objects.masks is not None:
        kept &= has_pixels(objects.masks)
        cut = kept & (boxes != objects.boxes).any(dim=1)
        boxes[cut] = extents(objects.masks[cut], size)
    return replace(objects, boxes=boxes).apply(lambda part: part[kept])


@dataclass(frozen=True, kw_only=True)
class Scenes(Samples[AnnotatedImage, Scene]):
    """Scenes transformed and padded to one size: a SceneBatch."""

    source: ObjectSource
    transform: SceneTransform
    square: int | tuple[int, int] | None  # size that images are padded to; None: as large as the batch requires
    divisor: int  # of the padded sides, if `square` is None
    training: bool  # True: leave out crowd regions. False: leave out all objects; evaluation reads its own ground truth

    def draw(self, sample: AnnotatedImage, rng: np.random.Generator) -> Scene:
        """Return the scene transformed."""
        wanted = ~sample.objects.crowd if self.training else torch.zeros_like(sample.objects.crowd)
        return self.transform(Scene(sample.image, sample.objects.apply(lambda part: part[wanted])))

    def collate(self, drawn: list[Scene], images: Tensor) -> SceneBatch:
        """Return the scenes as a batch, padded with zeros at the right and bottom."""
        sizes = tuple((scene.image.shape[-2], scene.image.shape[-1]) for scene in drawn)
        needed = (-(-max(lengths) // self.divisor) * self.divisor for lengths in zip(*sizes, strict=True))
        height, width = needed if self.square is None else sides(self.square)
        margins = [(width - w, height - h) for h, w in sizes]
        padded = torch.stack([pad(scene.image, [0, 0, *margin]) for scene, margin in zip(drawn, margins, strict=True)])
        return SceneBatch(padded, sizes, tuple(scene.objects for scene in drawn), images)


class ObjectDataConfig(BaseDataConfig):
    """Which images with objects to use, and how to resize them."""

    train: AnyObjects = CocoConfig(split="train2017", skip_empty=True)
    """The training set."""
    val: AnyObjects = CocoConfig(split="val2017")
    """The same for validation."""
    holdout: AnyObjects | None = None
    """The same for the images on which select="best" chooses the state: a part of the training set, or another set."""
    augmentation: AnySceneTransform = LargeScaleJitter()
    """How training images are transformed."""
    view: AnySceneTransform = ShortestEdge(lengths=(1024,), longest=1024, flip=0.0)
    """The same for evaluation."""
    square: Sides | None = 1024
    """Padded image size in training and evaluation: pixels per side, or (height, width). Smaller sizes cost up to 1 AP.
    None: pad to the largest image of the batch. For a size that is not square, use `large_scale_jitter`, which fits
    images into it; as the `view` give it scale=(1.0, 1.0) and flip=0.0."""
    crops_per_image: Few = 1
    """Crops per decoded image. They are neighbours in one batch, and an epoch grows by this factor."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        check_holdout(self.holdout, {"train": self.train, "val": self.val})
        for transform in (self.augmentation, self.view):
            high, wide = transform.largest()
            if self.square is not None and any(map(gt, (high, wide), sides(self.square))):
                raise ValueError(
                    f"{transform.name} gives images of up to {size_of(high, wide)} pixels, but data.square = "
                    f"{self.square}: raise data.square or lower the size"
                )
        return self


def open_object_set(part: AnyObjects, root: str | None, *, masks: bool) -> ObjectSource:
    """Return one set. ValueError if it is empty."""
    return check_not_empty(part.completed({"root": root, "masks": masks}).open(), part)


def build_samples(source: ObjectSource, cfg: ObjectDataConfig, *, seed: int, divisor: int, training: bool) -> Scenes:
    """Return the samples of a set, transformed as the config sets for training or evaluation."""
    transform = cfg.augmentation if training else cfg.view
    return Scenes(source=source, seed=seed, transform=transform, square=cfg.square, divisor=divisor, training=training)
