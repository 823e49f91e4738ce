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
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import InterpolationMode as Mode
from torchvision.transforms.v2 import functional as F

from mae_transfer.bounds import Factor, Portion, Probability, real
from mae_transfer.config import Part
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.core.patches import sides
from mae_transfer.data.decode import Box, Undecoded, upright
from mae_transfer.data.rand_augment import DrawnOperation, rand_augment, recorder
from mae_transfer.data.regions import Region, leave
from mae_transfer.interfaces import Interpolation, ViewSpec

Enlarged = Annotated[float, real(least=1.0, most=16.0)]  # the crop must lie within the resized image
LONGEST = 32  # times the shorter side: longer images are cropped first; a panorama is 4 times as long as high
# checked here, because timm ignores unknown parts of a policy
POLICY = re.compile(r"rand(-(m\d+|n\d+|p(0?\.\d+|[01])|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3a|3aw)))*")
SHORTER_SIDE = 256 / 224  # evaluation resizes to 256 and crops 224 (MAE, A.1)


Augment = Callable[[Tensor], tuple[Tensor, ...]]
"""Turns an image (3, H, W) uint8 into views, (3, S, T) uint8 each. The first view is the encoder's."""


class Augmentation(Part):
    """How an image becomes views, which all show the same crop."""

    one_box: ClassVar[bool] = False
    """Whether `render` uses only the shape of the image and one box of its pixels, so that it takes Undecoded."""

    def build(self, views: Sequence[ViewSpec]) -> Augment:
        """Return the augmentation for views of these sizes and filters, the encoder's first."""
        return partial(self.render, views=tuple(views))

    @abstractmethod
    def render(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        """Return the views of an image."""


class CentreCrop(Augmentation):
    """Resize the image with its aspect ratio kept until it just covers a frame, then crop the centre.

    This is the evaluation view, and 'none' in table 1e. For square views it resizes the shorter side; for others it is
    timm's rule (ResizeKeepRatio, CenterCrop). Nothing is random.
    """

    name: Literal["none"] = "none"
    shorter_side: Enlarged = SHORTER_SIDE
    """Size of the frame / size of the view. 1.0 crops as little as possible, the usual choice above 224 px."""

    def render(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        image = _limit_length(image)
        return tuple(self._cropped(image, view) for view in views)

    def _cropped(self, image: Tensor, view: ViewSpec) -> Tensor:
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


class FixedCrop(Augmentation):
    """Crop a box of fixed size and of the view's aspect ratio at a random position, flip at random.

    This is 'crop, fixed size' in MAE, table 1e, which does not give the size.
    """

    one_box = True
    name: Literal["fixed_crop"] = "fixed_crop"
    shorter_side: Enlarged = SHORTER_SIDE
    """Side of the largest possible box / side of the crop; 256/224 as in evaluation."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Probability = 0.0
    """Strength of brightness, contrast and saturation jitter."""

    def render(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        high, wide = sides(views[0].size)
        scale = min(height / high, width / wide) / self.shorter_side
        h, w = (max(1, round(side * scale)) for side in (high, wide))
        top, left = (int(torch.randint(0, length - side + 1, ())) for length, side in ((height, h), (width, w)))
        return render(image, (top, left, h, w), views, flip=_chance(self.flip), jitter=draw_jitter(*3 * (self.jitter,)))


class _ShareCrop(Augmentation):
    """A crop of a random share of the image."""

    one_box = True
    scale: tuple[Portion, Portion] = (0.08, 1.0)
    """Range of the crop's share of the image area."""
    aspect: tuple[Factor, Factor] = (3 / 4, 4 / 3)
    """Range of the crop's width / height."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1] or self.aspect[0] > self.aspect[1]:
            raise ValueError(f"scale = {self.scale}, aspect = {self.aspect}: give the smallest value of each first")
        return self


class RandomCrop(_ShareCrop):
    """Crop a random share of the image, resize it to the view, flip at random: 'crop, rand size' in MAE, table 1e."""

    name: Literal["random_crop"] = "random_crop"
    scale: tuple[Portion, Portion] = (0.2, 1.0)
    """Range of the crop's share of the image area."""
    jitter: Probability = 0.0
    """Strength of brightness, contrast and saturation jitter. The paper's '+ color jit' gives no value; BEiT uses 0.4.
    """
    interpolation: Interpolation = "bicubic"
    """Filter of the encoder's view. SimMIM uses bilinear, MAE and BEiT use bicubic."""

    def render(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        views = (views[0]._replace(interpolation=self.interpolation), *views[1:])
        box = RandomResizedCrop.get_params(image, list(self.scale), list(self.aspect))
        return render(image, box, views, flip=_chance(self.flip), jitter=draw_jitter(*3 * (self.jitter,)))


class ByolCrop(_ShareCrop):
    """Crop a random share of the image as BYOL does, flip at random: linear probing (MAE, table 10).

    The box is drawn once, with a log-uniform aspect; a side that does not fit is shortened. Torchvision's crop draws
    again until the box fits.
    """

    name: Literal["byol_crop"] = "byol_crop"

    def render(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        area = height * width * random.uniform(*self.scale)
        ratio = math.exp(random.uniform(*map(math.log, self.aspect)))
        h, w = (
            max(1, min(side, round(wanted)))
            for side, wanted in ((height, math.sqrt(area / ratio)), (width, math.sqrt(area * ratio)))
        )
        box = random.randint(0, height - h), random.randint(0, width - w), h, w
        return render(image, box, views, flip=_chance(self.flip))


class RandAugmentCrop(_ShareCrop):
    """Crop, flip, then RandAugment as timm draws it (fine-tuning: MAE, table 9). It renders one view, the encoder's."""

    name: Literal["rand_augment"] = "rand_augment"
    policy: str = "rand-m9-mstd0.5-inc1"
    """Timm's RandAugment policy: magnitude, its standard deviation, and operations whose strength increases with the
    magnitude."""
    mean: tuple[Probability, ...] = IMAGENET.mean
    """Fill colour, per channel in [0, 1], of pixels that a rotation or translation uncovers."""

    @model_validator(mode="after")
    def _known_policy(self) -> Self:
        if not POLICY.fullmatch(self.policy):
            raise ValueError(
                f"policy = {self.policy!r}: write it as in timm, 'rand-m9-mstd0.5-inc1', with parts m, n, p, mstd, "
                "mmax, inc or t"
            )
        return self

    def build(self, views: Sequence[ViewSpec]) -> Augment:
        if len(views) != 1:
            raise ValueError(
                f"rand_augment renders one view, got {len(views)}: use another augmentation for this target "
                "(random_crop)"
            )
        return super().build(views)

    def render(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        (crop,) = self.crop(image, views=views)
        augment = rand_augment(self.policy, self.mean, min(crop.shape[1:]))
        picture = augment(Image.fromarray(crop.permute(1, 2, 0).numpy()))
        return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(),)

    def crop(self, image: Tensor, *, views: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
        """Return the view before RandAugment."""
        box = RandomResizedCrop.get_params(image, list(self.scale), list(self.aspect))
        return render(image, box, views, flip=_chance(self.flip))

    def draw(self, crop: Tensor) -> tuple[DrawnOperation, ...]:
        """Draw the operations that `render` would apply to the crop."""
        return recorder(self.policy, self.mean, min(crop.shape[1:]))(())


AnyAugmentation = Annotated[
    CentreCrop | FixedCrop | RandomCrop | ByolCrop | RandAugmentCrop, Field(discriminator="name")
]
Jitter = Sequence[tuple[Callable[[Tensor, float], Tensor], float]]


def render(
    image: Tensor, box: Box, views: Sequence[ViewSpec], *, flip: bool, jitter: Jitter = ()
) -> tuple[Tensor, ...]:
    """Crop a box of an image (3, H, W) uint8 and render it once per view, (3, S, T) uint8.

    Jitter is applied before resizing, so that all views share it. If the crop is left to the device, the one view is a
    LeftCrop.
    """
    if isinstance(image, Undecoded) and image.left:
        (view,) = views
        return (leave(image, box, view, size=sides(view.size), flip=flip),)
    crop = image.crop(*box) if isinstance(image, Undecoded) else F.crop(image, *box)
    crop = crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # resizing is faster if a pixel's colours are adjacent
    for adjust, factor in jitter:
        crop = adjust(crop, factor)
    return tuple(_view(crop, view, flip=flip) for view in views)


def finish_region(pixels: Tensor, region: Region) -> Tensor:
    """Return the view of a region, (3, S, T) uint8, given its pixels as they are stored, (3, h, w) uint8."""
    return _view(upright(pixels, region.turn), region.view, flip=region.flip)


def _view(crop: Tensor, view: ViewSpec, *, flip: bool) -> Tensor:
    resized = resize(crop, sides(view.size), view.interpolation)
    return (resized.flip(-1) if flip else resized).contiguous()


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize an image (3, H, W) uint8 to `size` (height, width), antialiased. Lanczos is done by PIL."""
    if interpolation == "lanczos":
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        return torch.from_numpy(np.array(picture.resize(size[::-1], Image.Resampling.LANCZOS))).permute(2, 0, 1)
    resized: Tensor = F.resize(image, list(size), Mode(interpolation), antialias=True)
    return resized


def draw_jitter(brightness: float, contrast: float, saturation: float, hue: float = 0.0) -> Jitter:
    """Return the operations of one colour jitter in random order.

    The factors are from [1 - strength, 1 + strength], the shift of the hue from [-hue, hue] turns. A shift needs images
    in [0, 1]; the other operations also take uint8.
    """
    if not any((brightness, contrast, saturation, hue)):
        return ()
    spans = ([1 - strength, 1 + strength] for strength in (brightness, contrast, saturation))
    order, *factors = ColorJitter.get_params(*spans, [-hue, hue] if hue else None)
    adjusts = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, shift_hue)
    return [(adjusts[i], factor) for i in order.tolist() if (factor := factors[i]) is not None]


def shift_hue(image: Tensor, turns: float | Tensor) -> Tensor:
    """Turn the hue (HSV) of images (..., 3, H, W) in [0, 1] by a share of the colour circle, (..., 1, 1) of a batch.

    The result equals torchvision's adjust_hue to rounding, in a third of its time.
    """
    red, green, blue = image.unbind(-3)
    top, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = top - low
    # the hue in sixths of the circle, times the chroma: counted from red (0), green (2) or blue (4)
    from_green, from_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    hue = torch.where(top == red, green - blue, torch.where(top == green, from_green, from_blue))
    hue.div_(chroma.clamp(min=1e-6)).add_(6 * turns)
    hue.sub_(torch.floor(hue / 6), alpha=6)
    # of the chroma, per channel; each is clipped to [0, 1]
    shares = torch.stack([hue - 3, hue - 2, hue - 4], dim=-3)
    for_red, for_green, for_blue = shares.unbind(-3)
    for_red.abs_().sub_(1)
    for_green.abs_().neg_().add_(2)
    for_blue.abs_().neg_().add_(2)
    return shares.clamp_(0, 1).mul_(chroma.unsqueeze(-3)).add_(low.unsqueeze(-3))


def gaussian(sigma: float, reach: int) -> list[float]:
    """Return the weights of a pixel and of its neighbours 1, 2 ... pixels away, at most `reach`, which sum to one.

    Neighbours beyond 3 sigma have none.
    """
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(min(math.ceil(3 * sigma), reach) + 1)]
    total = 2 * sum(weights) - weights[0]
    return [weight / total for weight in weights]


def blur(image: Tensor, weights: Sequence[float | Tensor]) -> Tensor:
    """Convolve images (..., H, W) of floats with `gaussian` weights along both axes; edges are reflected.

    The weights are numbers, or tensors that broadcast over a batch. The result equals torchvision's gaussian_blur with
    a kernel of 2 * ceil(3 * sigma) + 1 pixels to rounding, in a quarter of its time. PIL approximates the Gaussian by
    three box filters.
    """
    reach = len(weights) - 1
    image = pad(image, [reach] * 4, mode="reflect")
    for axis in (-2, -1):
        length = image.shape[axis] - 2 * reach
        blurred = image.narrow(axis, reach, length) * weights[0]
        for step, weight in enumerate(weights[1:], start=1):
            for start in (reach - step, reach + step):
                part = image.narrow(axis, start, length)
                _ = blurred.addcmul_(part, weight) if isinstance(weight, Tensor) else blurred.add_(part, alpha=weight)
        image = blurred
    return image


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)
