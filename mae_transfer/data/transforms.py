"""Augmentations for pretraining (MAE, table 1e) and classification, and the evaluation view, on uint8 images.

Each augmentation draws one crop, one flip and one jitter and renders them at every requested size, so all views show
the same content. Random numbers come from the global generators of torch, Python and numpy, which the loader seeds per
sample.

Legend: H x W pixels of the stored image, S x T pixels of a view. A box is (top, left, height, width) in pixels of the
stored image.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import InterpolationMode as Mode
from torchvision.transforms.v2 import functional as F

from mae_transfer.bounds import Factor, Portion, Probability, real
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.core.patches import sides
from mae_transfer.interfaces import Interpolation, ViewSpec

Box = tuple[int, int, int, int]

Enlarged = Annotated[float, real(least=1.0, most=16.0)]  # the crop must lie within the resized image
LONGEST = 32  # times the shorter side: longer images are cropped first; a panorama is 4 times as long as high
# checked here, because timm ignores unknown parts of a policy
POLICY = re.compile(r"rand(-(m\d+|n\d+|p(0?\.\d+|[01])|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3a|3aw)))*")
SHORTER_SIDE = 256 / 224  # evaluation resizes to 256 and crops 224 (MAE, A.1)


class Augmentation(Protocol):
    """Turns an image (3, H, W) uint8 into views, (3, S, T) uint8 each. The first view is the encoder's."""

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]: ...


class CentreCrop:
    """Resize the image with its aspect ratio kept until it just covers a frame, then crop the centre.

    This is the evaluation view, and 'none' in table 1e. For square views it resizes the shorter side; for others it is
    timm's rule (ResizeKeepRatio, CenterCrop). Nothing is random.

    Args:
        views: size and filter of each view, the encoder's first.
        shorter_side: size of the frame / size of the view. 1.0 crops as little as possible, the usual choice above
            224 px.
    """

    def __init__(self, views: Sequence[ViewSpec], *, shorter_side: Enlarged = SHORTER_SIDE) -> None:
        if shorter_side < 1:
            raise ValueError(
                f"shorter_side = {shorter_side}: the crop would be larger than the image; give 1.0 or more"
            )
        self.views, self.shorter_side = tuple(views), shorter_side

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._render(image, view) for view in self.views)

    def _render(self, image: Tensor, view: ViewSpec) -> Tensor:
        image = _limit_length(image)
        height, width = image.shape[-2:]
        size = sides(view.size)
        high, wide = (round(side * self.shorter_side) for side in size)
        covering = (high, high * width // height) if high * width >= wide * height else (wide * height // width, wide)
        resized = resize(image, covering, view.interpolation)
        crop: Tensor = F.center_crop(resized, list(size))
        return crop.contiguous()


def _limit_length(image: Tensor) -> Tensor:
    """Crop an image to LONGEST times its shorter side, because resizing a very thin image would fill the memory."""
    most = LONGEST * min(image.shape[-2:])
    middle: Tensor = F.center_crop(image, [min(length, most) for length in image.shape[-2:]])
    return middle


class RandomCrop:
    """Crop a random share of the image, resize it to the view, flip at random: 'crop, rand size' in MAE, table 1e.

    Args:
        views: size and filter of each view, the encoder's first.
        scale: range of the crop's share of the image area.
        aspect: range of the crop's width / height.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast and saturation jitter. The paper's '+ color jit' gives no value; BEiT
            uses 0.4.
        interpolation: of the encoder's view. SimMIM uses bilinear, MAE and BEiT use bicubic.
    """

    def __init__(
        self,
        views: Sequence[ViewSpec],
        *,
        scale: tuple[Portion, Portion] = (0.2, 1.0),
        aspect: tuple[Factor, Factor] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
        jitter: Probability = 0.0,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.scale, self.aspect = _crop_range(scale, aspect)
        self.views = (views[0]._replace(interpolation=interpolation), *views[1:])
        self.flip, self.jitter = flip, _strength(jitter)

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        box = RandomResizedCrop.get_params(image, self.scale, self.aspect)
        return render(image, box, self.views, flip=_chance(self.flip), jitter=draw_jitter(self.jitter))


class FixedCrop:
    """Crop a box of fixed size and of the view's aspect ratio at a random position, flip at random.

    This is 'crop, fixed size' in MAE, table 1e, which does not give the size.

    Args:
        views: size and filter of each view, the encoder's first.
        shorter_side: side of the largest possible box / side of the crop; 256/224 as in evaluation.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast and saturation jitter.
    """

    def __init__(
        self,
        views: Sequence[ViewSpec],
        *,
        shorter_side: Enlarged = SHORTER_SIDE,
        flip: Probability = 0.5,
        jitter: Probability = 0.0,
    ) -> None:
        if shorter_side < 1:
            raise ValueError(
                f"shorter_side = {shorter_side}: the crop would be larger than the image; give 1.0 or more"
            )
        self.views, self.shorter_side, self.flip, self.jitter = tuple(views), shorter_side, flip, _strength(jitter)

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        high, wide = sides(self.views[0].size)
        scale = min(height / high, width / wide) / self.shorter_side
        h, w = (max(1, round(side * scale)) for side in (high, wide))
        top, left = (int(torch.randint(0, length - side + 1, ())) for length, side in ((height, h), (width, w)))
        return render(image, (top, left, h, w), self.views, flip=_chance(self.flip), jitter=draw_jitter(self.jitter))


class ByolCrop:
    """Crop a random share of the image as BYOL does, flip at random: linear probing (MAE, table 10).

    The box is drawn once, and a side that does not fit is shortened. Torchvision's crop draws again until the box fits.

    Args:
        views: size and filter of each view, the encoder's first.
        scale: range of the crop's share of the image area.
        aspect: range of the crop's width / height, drawn log-uniformly.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        views: Sequence[ViewSpec],
        *,
        scale: tuple[Portion, Portion] = (0.08, 1.0),
        aspect: tuple[Factor, Factor] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
    ) -> None:
        self.views, self.scale, self.aspect, self.flip = tuple(views), *_crop_range(scale, aspect), flip

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        area = height * width * random.uniform(*self.scale)
        ratio = math.exp(random.uniform(*map(math.log, self.aspect)))
        h, w = (
            max(1, min(side, round(wanted)))
            for side, wanted in ((height, math.sqrt(area / ratio)), (width, math.sqrt(area * ratio)))
        )
        box = random.randint(0, height - h), random.randint(0, width - w), h, w
        return render(image, box, self.views, flip=_chance(self.flip))


class RandAugmentCrop:
    """Crop, flip, then RandAugment as timm draws it (fine-tuning: MAE, table 9).

    Args:
        views: exactly one view, the encoder's. RandAugment cannot repeat its operations for a second view.
        policy: timm's RandAugment policy: magnitude, its standard deviation, and operations whose strength increases
            with the magnitude.
        mean: fill colour, per channel in [0, 1], of pixels that a rotation or translation uncovers.
        scale: range of the crop's share of the image area.
        aspect: range of the crop's width / height.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        views: Sequence[ViewSpec],
        *,
        policy: str = "rand-m9-mstd0.5-inc1",
        mean: tuple[Probability, ...] = IMAGENET.mean,
        scale: tuple[Portion, Portion] = (0.08, 1.0),
        aspect: tuple[Factor, Factor] = (3 / 4, 4 / 3),
        flip: Probability = 0.5,
    ) -> None:
        if len(views) != 1:
            raise ValueError(
                f"rand_augment renders one view, got {len(views)}: use another augmentation for this target "
                "(random_crop)"
            )
        if not POLICY.fullmatch(policy):
            raise ValueError(
                f"policy = {policy!r}: write it as in timm, 'rand-m9-mstd0.5-inc1', with parts m, n, p, mstd, mmax, "
                "inc or t"
            )
        self.crop = RandomCrop(views, scale=scale, aspect=aspect, flip=flip)
        fill = tuple(min(255, round(255 * value)) for value in mean)
        self.augment = rand_augment_transform(
            policy,
            {
                "translate_const": int(min(sides(views[0].size)) * 0.45),
                "img_mean": fill,
                "interpolation": Image.Resampling.BICUBIC,
            },
        )
        for operation in self.augment.ops:
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        picture = Image.fromarray(self.crop(image)[0].permute(1, 2, 0).numpy())
        return (torch.from_numpy(np.array(self.augment(picture))).permute(2, 0, 1).contiguous(),)


Jitter = Sequence[tuple[Callable[[Tensor, float], Tensor], float]]


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest `bits` of each value. With 0 bits the image is black, as in the reference.

    Pillow raises an error for 0 bits since 13.0. No other operation of timm differs between Pillow 10.4 and 13.0.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = posterize(image, bits)
    return posterized


def render(
    image: Tensor, box: Box, views: Sequence[ViewSpec], *, flip: bool, jitter: Jitter = ()
) -> tuple[Tensor, ...]:
    """Crop a box of an image (3, H, W) uint8 and render it once per view, (3, S, T) uint8.

    Jitter is applied before resizing, so that all views share it.
    """
    crop = F.crop(image, *box)
    for adjust, factor in jitter:
        crop = adjust(crop, factor)
    resized = (resize(crop, sides(view.size), view.interpolation) for view in views)
    return tuple((view.flip(-1) if flip else view).contiguous() for view in resized)


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize an image (3, H, W) uint8 to `size` (height, width), antialiased. Lanczos is done by PIL."""
    if interpolation == "lanczos":
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        return torch.from_numpy(np.array(picture.resize(size[::-1], Image.Resampling.LANCZOS))).permute(2, 0, 1)
    resized: Tensor = F.resize(image, list(size), Mode(interpolation), antialias=True)
    return resized


def draw_jitter(strength: float) -> Jitter:
    """Return the operations of one colour jitter in random order, factors from [1 - strength, 1 + strength]."""
    if strength == 0:
        return ()
    span = [1 - strength, 1 + strength]
    order, *factors, _ = ColorJitter.get_params(span, span, span, None)
    adjusts = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    return [(adjusts[int(i)], float(factors[int(i)])) for i in order if i < len(adjusts)]


def _crop_range(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[list[float], list[float]]:
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"scale {scale}, aspect {aspect}: give 0 < smallest <= largest, and a scale of at most 1")
    return list(scale), list(aspect)


def _strength(jitter: float) -> float:
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter = {jitter}: give a strength from 0 (none) to 1")
    return jitter


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)
