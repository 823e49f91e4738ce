"""RandAugment: applied by timm and PIL in a worker, or drawn there and applied in batches on the device.

timm draws the same operations either way. On x86-64, what the device computes equals PIL's result bit for bit. Where a
processor fuses a multiplication with an addition, values can differ by one grey level.

Legend: B images of H x W pixels in a batch, n of them that one kind of operation changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from torch import Tensor

from mae_transfer.interfaces import Batch, Operations

RAMP = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
"""Every grey level once."""
Affine = tuple[float, float, float, float, float, float]
"""Output pixel (x, y) shows (a x + b y + c, d x + e y + f); pixel centres are at 1/2."""


class DrawnOperation(NamedTuple):
    """An operation that timm has drawn for an image. Names are timm's, without "Increasing"."""

    name: str
    apply: Callable[..., Image.Image]
    args: tuple[float, ...]
    fill: tuple[int, int, int]  # colour of pixels that are uncovered


@cache
def rand_augment(policy: str, mean: tuple[float, ...], side: int) -> RandAugment:
    """Return timm's RandAugment for images whose shorter side has this many pixels."""
    settings = {
        "translate_const": int(side * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    augment: RandAugment = rand_augment_transform(policy, settings)
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest `bits` of each value. With 0 bits the image is black, as in the reference.

    Pillow raises an error for 0 bits since 13.0. No other operation of timm differs between Pillow 10.4 and 13.0.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = posterize(image, bits)
    return posterized


@cache
def recorder(policy: str, mean: tuple[float, ...], side: int) -> Callable[[tuple[()]], tuple[DrawnOperation, ...]]:
    """Return a RandAugment that draws as `rand_augment` does. Called with (), it returns what it has drawn."""
    augment = copy.deepcopy(rand_augment(policy, mean, side))
    for operation in augment.ops:
        operation.aug_fn = partial(_record, operation.name.removesuffix("Increasing"), operation.aug_fn)
    return augment


def _record(
    name: str,
    apply: Callable[..., Image.Image],
    drawn: tuple[DrawnOperation, ...],
    *args: float,
    fillcolor: Any,
    **_: Any,
) -> tuple[DrawnOperation, ...]:
    return (*drawn, DrawnOperation(name, apply, args, fillcolor))


def pack_operations(drawn: Sequence[Sequence[DrawnOperation]], height: int, width: int) -> Operations:
    """Return what was drawn for each image of a batch: the first operation of every image, then the second ..."""
    rows = [
        (place, *_encode(operation, height, width), image)
        for image, operations in enumerate(drawn)
        for place, operation in enumerate(operations)
    ]
    rows.sort(key=lambda row: row[:2])
    return Operations(
        kinds=tuple((kind, len(list(group))) for (_, kind), group in groupby(rows, key=lambda row: row[:2])),
        images=torch.tensor([image for *_, image in rows], dtype=torch.int64),
        numbers=torch.from_numpy(np.array([numbers for *_, numbers, _ in rows]).reshape(-1, 32)),
    )


def _encode(operation: DrawnOperation, height: int, width: int) -> tuple[str, np.ndarray]:
    """Return the kind of an operation, and its numbers, (32,) float64."""
    name, apply, args, fill = operation
    numbers: Sequence[float] = args
    if name in AFFINE:
        name, numbers = "Affine", (*AFFINE[name](args[0], width, height), *fill)
    elif name == "Desaturate":
        name, numbers = "Color", (min(1.0, max(0.0, 1.0 - args[0])),)
    elif name == "GaussianBlur":
        numbers = box_weights(args[0])
    elif name not in APPLY:
        return "Table", np.asarray(apply(RAMP, *args)).copy().view(np.float64)[0]
    return name, np.pad(np.array(numbers, dtype=np.float64), (0, 32 - len(numbers)))


def rotation(degrees: float, width: int, height: int) -> Affine:
    """Return the rotation about the centre of an image. PIL rounds it to 15 digits."""
    angle = -math.radians(degrees % 360)
    cosine, sine, minus_sine = (round(value, 15) for value in (math.cos(angle), math.sin(angle), -math.sin(angle)))
    x, y = width / 2, height / 2
    return cosine, sine, cosine * -x + sine * -y + x, minus_sine, cosine, minus_sine * -x + cosine * -y + y


AFFINE: dict[str, Callable[[float, int, int], Affine]] = {
    "Rotate": rotation,
    "ShearX": lambda factor, width, height: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor, width, height: (1, 0, 0, factor, 1, 0),
    "TranslateXRel": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "TranslateYRel": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
}


def box_weights(sigma: float) -> tuple[int, int, int]:
    """Return the weights, times 2**24, of a pixel and of its neighbours 1 and 2 pixels away in a box filter.

    Three of them approximate a Gaussian of at most 2 pixels (Gwosdek et al., 2011, as PIL computes it in float32).
    """
    variance = np.float32(sigma) * np.float32(sigma) / np.float32(3)
    whole = np.float32(math.floor((math.sqrt(12 * float(variance) + 1) - 1) / 2))
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    inner = int(np.float32(1 << 24) / ((whole + rest) * 2 + 1))
    outer = ((1 << 24) - (2 * int(whole) + 1) * inner) // 2
    return (inner, inner, outer) if whole else (inner, outer, 0)


def finish_crops(batch: Batch) -> Batch:
    """Return the batch with the operations that the workers left to the device."""
    if batch.operations is None:
        return batch
    return replace(batch, image=apply_operations(batch.image, batch.operations), operations=None)


def apply_operations(images: Tensor, operations: Operations) -> Tensor:
    """Return images (B, 3, H, W) uint8 with their operations. The host knows all shapes."""
    images, counts = images.clone(), [count for _, count in operations.kinds]
    parts = zip(operations.kinds, operations.images.split(counts), operations.numbers.split(counts), strict=True)
    for (kind, _), places, numbers in parts:
        images.index_copy_(0, places, APPLY[kind](images.index_select(0, places), numbers))
    return images


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Return the images (n, 3, H, W) with each value replaced by that in a table, (n, 1 or 3, 256) uint8."""
    return tables.expand(-1, 3, -1).gather(2, images.flatten(2).long()).view_as(images)


def stretch(images: Tensor, _: Tensor) -> Tensor:
    """Stretch the values of each channel to [0, 255]."""
    low, high = (value.double() for value in images.flatten(2).aminmax(dim=2, keepdim=True))
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = torch.full_like(low, 255) / (high - low)
    tables = torch.where(low < high, (levels * scale + -low * scale).clamp(0, 255), levels)
    return look_up(images, tables.to(torch.uint8))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Change the values of each channel so that their histogram is nearly flat."""
    values = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int64, device=images.device)
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values, one.expand_as(values))
    brightest = histogram.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    tables = (step // 2 + histogram.cumsum(2) - histogram) // step.clamp(min=1)
    levels = torch.arange(256, device=images.device)
    return look_up(images, torch.where(step > 0, tables.clamp(max=255), levels).to(torch.uint8))


def blend(base: Tensor, images: Tensor, numbers: Tensor) -> Tensor:
    """Return base + factor * (images - base), cut off to whole numbers. The factors are the first column."""
    base, factor = base.float(), numbers[:, 0, None, None, None].float()
    return (base + factor * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


def greys(images: Tensor) -> Tensor:
    """Return grey images (n, 1, H, W) int32, ITU-R 601 in 16 bits."""
    red, green, blue = images.int().split(1, dim=1)
    grey: Tensor = (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
    return grey


def change_contrast(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend images with the mean of their grey image."""
    grey = greys(images)
    pixels = grey[0].numel()
    return blend((2 * grey.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels), images, numbers)


def change_colour(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend images with their grey image."""
    return blend(greys(images), images, numbers)


def sharpen(images: Tensor, numbers: Tensor) -> Tensor:
    """Blend images with their mean over 3 x 3 pixels, of which the middle one counts 5 times. The edge has none."""
    smooth = images.int()
    sums = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:] + 4 * smooth[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (2 * sums + 13) // 26
    return blend(smooth, images, numbers)


def blur(images: Tensor, numbers: Tensor) -> Tensor:
    """Filter three times along each axis with `box_weights`. Edges are repeated."""
    middle, near, far = numbers[:, :3, None, None, None].long().unbind(1)
    values = images.long()
    for axis in (3, 2):
        places, last = torch.arange(values.shape[axis], device=images.device), values.shape[axis] - 1
        steps = {step: (places + step).clamp(0, last) for step in (-2, -1, 1, 2)}
        for _ in range(3):
            at = {step: values.index_select(axis, there) for step, there in steps.items()}
            sums = values * middle + (at[-1] + at[1]) * near + (at[-2] + at[2]) * far
            values = (sums + (1 << 23)) >> 24
    return values.to(torch.uint8)


def transform(images: Tensor, numbers: Tensor) -> Tensor:
    """Transform images by maps, the first 6 columns, with a fill colour, the next 3. Cubic interpolation as in PIL."""
    height, width = images.shape[2:]
    a, b, c, d, e, f, *fill = numbers[:, :9, None, None].unbind(1)
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + 0.5
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    x, y = (a * x + b * y + c), (d * x + e * y + f)  # (n, H, W)
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).unsqueeze(1)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    right_by, down_by = ((part - whole).flatten(1).unsqueeze(1) for part, whole in ((x, left), (y, top)))
    columns = [(left + step).clamp(0, width - 1).long() for step in range(-1, 3)]
    values = images.flatten(2).short()
    rows = []
    for step in range(-1, 3):
        row = (top + step).clamp(0, height - 1).long() * width
        places = ((row + column).flatten(1).unsqueeze(1).expand(-1, 3, -1) for column in columns)
        rows.append(_cubic([values.gather(2, place) for place in places], right_by))
    found = _cubic(rows, down_by).clamp_(0, 255).to(torch.uint8).view_as(images)
    return torch.where(inside, found, torch.stack(fill, dim=1).to(torch.uint8))


def _cubic(points: Sequence[Tensor], by: Tensor) -> Tensor:
    """Interpolate between the middle two of four points (by = 0 to 1) with the cubic kernel of a = -1."""
    before, here, after, beyond = points
    second = 2 * (before - here) + after - beyond
    third = here - before - after + beyond
    return here + by * (after - before + by * (second + by * third))


APPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Affine": transform,
    "AutoContrast": stretch,
    "Color": change_colour,
    "Contrast": change_contrast,
    "Equalize": equalize,
    "GaussianBlur": blur,
    "Sharpness": sharpen,
    "Table": lambda images, numbers: look_up(images, numbers.view(torch.uint8).unsqueeze(1)),
}
"""How the device applies a kind of operation to images (n, 3, H, W) uint8, with its numbers (n, 32)."""
