"""Views for joint embedding: wide and narrow crops of each image, with flips and colours of their own.

Each view of an image has draws of its own, which follow those of the views before it. The loader seeds them by the
image's key, so a view is a pure function of seed, epoch, image and the number of the view.

Legend: B images, G wide and L narrow views, S x T and s x t pixels of a wide and a narrow view, N patches of a wide
view.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from mae_transfer.bounds import Factor, Few, FewOrNone, Portion, Probability, Sides, real
from mae_transfer.config import Schema
from mae_transfer.core.masks import ViewMask
from mae_transfer.core.patches import sides
from mae_transfer.data.config import ImagesConfig
from mae_transfer.data.decode import Box
from mae_transfer.data.loader import Samples
from mae_transfer.data.sources import Sample, Source
from mae_transfer.data.transforms import Jitter, blur, draw_jitter, gaussian, render, shift_hue
from mae_transfer.interfaces import Hidden, Looks, Views, ViewSpec

Strength = Probability
HueShift = Annotated[float, real(least=0.0, most=0.5)]
Sigma = Annotated[float, real(above=0.0, most=64.0)]
PerView = tuple[Probability, Probability, Probability]
BASES = {F.adjust_brightness: (0, 0), F.adjust_contrast: (0, 1), F.adjust_saturation: (1, 0)}
"""What a change by the factor f mixes with 1 - f: the grey image, or the mean of it; nothing is black."""


class Look(NamedTuple):
    """Where one view is cropped, and how its colours change, in this order (DINO, main_dino.py)."""

    box: Box
    flip: bool
    jitter: Jitter
    grey: bool
    sigma: float  # standard deviation of the blur in pixels; 0: no blur
    solarise: bool

    def crop(self, image: Tensor, view: ViewSpec) -> Tensor:
        """Return the view without flip and colours, (3, S, T) uint8, of an image (3, H, W) uint8."""
        (crop,) = render(image, self.box, [view], flip=False)
        return crop

    def render(self, image: Tensor, view: ViewSpec) -> Tensor:
        """Return the view, (3, S, T) uint8, of an image (3, H, W) uint8. Colours are rounded once, at the end."""
        crop = self.crop(image, view)
        values = (crop.flip(-1) if self.flip else crop) / 255
        for adjust, factor in self.jitter:
            values = adjust(values, factor)
        if self.grey:
            values = F.rgb_to_grayscale(values, num_output_channels=3)
        if self.sigma:
            values = blur(values, gaussian(self.sigma, min(values.shape[-2:]) - 1))
        if self.solarise:
            values = torch.minimum(values, 1 - values)  # inverts values of at least 1/2
        return (values * 255).round_().to(torch.uint8)


class MultiCrop(Schema):
    """Wide views that teacher and student see, and narrow views for the student alone.

    The crops are those of DINO (section 3.1). The colours are those of BYOL (table 6), which DINO, iBOT, MoCo v3, MoBY
    and EsViT share: one wide view is always blurred and never solarised, the other the reverse.
    """

    later = frozenset({"interpolation"})

    wide: Few = 2
    """Number of wide views. Their size is that of the encoder's input."""
    narrow: FewOrNone = 8
    """Number of narrow views; 0: none, as in MoCo v3."""
    narrow_size: Sides = 96
    """Size of a narrow view: pixels per side, or (height, width). A multiple of the patch."""
    wide_scale: tuple[Portion, Portion] = (0.4, 1.0)
    """Range of a wide crop's share of the image area."""
    narrow_scale: tuple[Portion, Portion] = (0.05, 0.4)
    """Range of a narrow crop's share of the image area."""
    aspect: tuple[Factor, Factor] = (3 / 4, 4 / 3)
    """Range of a crop's width / height."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter that resizes a crop: "bicubic" as in DINO, iBOT and EsViT; "bilinear" as in MoCo v3's and MoBY's code."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[Strength, Strength, Strength, HueShift] = (0.4, 0.4, 0.2, 0.1)
    """Strength of brightness, contrast and saturation jitter, and the greatest shift of the hue in turns."""
    jitter_share: Probability = 0.8
    """Probability of the jitter."""
    grey: Probability = 0.2
    """Probability that a view loses its colours."""
    blur: PerView = (1.0, 0.1, 0.5)
    """Probability of a Gaussian blur: of the first wide view, of other wide views, and of narrow views."""
    sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the view."""
    solarise: PerView = (0.0, 0.2, 0.0)
    """Probability that values above one half are inverted, for the same views."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for key in ("wide_scale", "narrow_scale", "aspect", "sigma"):
            least, most = getattr(self, key)
            if least > most:
                raise ValueError(f"{key} = {(least, most)}: give the smaller value first")
        for key in ("narrow_size", "narrow_scale") if not self.narrow else ():
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise ValueError(f"{key} = {value} has no effect with narrow = 0: leave it out, or set narrow")
        return self

    def draw(self, image: Tensor, view: int) -> Look:
        """Draw the look of a view of an image (..., H, W); the wide views come first."""
        kind = min(view, 1) if view < self.wide else 2
        scale = self.narrow_scale if kind == 2 else self.wide_scale
        return Look(
            RandomResizedCrop.get_params(image, list(scale), list(self.aspect)),
            random.random() < self.flip,
            draw_jitter(*self.jitter) if random.random() < self.jitter_share else (),
            random.random() < self.grey,
            random.uniform(*self.sigma) if random.random() < self.blur[kind] else 0.0,
            random.random() < self.solarise[kind],
        )


class ViewsConfig(ImagesConfig):
    """Which images to use, and how each becomes several views. `size` is that of a wide view."""

    views: MultiCrop = MultiCrop()
    """How training images become views."""


class DrawnViews(NamedTuple):
    """The views of one image."""

    wide: Tensor  # (G, 3, S, T) uint8
    narrow: Tensor | None  # (L, 3, s, t) uint8
    looks: list[Look]  # of all views, if flips and colours are left to the device
    hidden: list[np.ndarray]  # (h, w) bool of each wide view; empty: nothing is hidden
    label: int | np.ndarray


@dataclass(frozen=True, kw_only=True)
class MultiCrops(Samples[Sample, DrawnViews]):
    """Images as wide and narrow views, with what is hidden of the wide ones, as Views."""

    source: Source
    crops: MultiCrop
    size: Sides  # of a wide view
    mask: ViewMask | None = None
    grid: tuple[int, int] = (0, 0)  # patches of a wide view, for the mask
    augment_on: Literal["worker", "device"] = "worker"  # "device": the batch has looks

    def draw(self, sample: Sample, rng: np.random.Generator) -> DrawnViews:
        """Return the views of one image. Masks are drawn apart from crops and colours."""
        cfg, later = self.crops, self.augment_on == "device"
        looks = [cfg.draw(sample.image, view) for view in range(cfg.wide + cfg.narrow)]
        sizes = [self.size] * cfg.wide + [cfg.narrow_size] * cfg.narrow
        views = [
            (look.crop if later else look.render)(sample.image, ViewSpec(size, cfg.interpolation))
            for look, size in zip(looks, sizes, strict=True)
        ]
        wide, narrow = torch.stack(views[: cfg.wide]), torch.stack(views[cfg.wide :]) if cfg.narrow else None
        hidden = [self.mask(self.grid, rng) for _ in range(cfg.wide)] if self.mask else []
        return DrawnViews(wide, narrow, looks if later else [], hidden, sample.label)

    def collate(self, drawn: list[DrawnViews], images: Tensor) -> Views:
        """Return the views of the images as one batch, view by view."""
        narrow = [one.narrow for one in drawn if one.narrow is not None]
        return Views(
            wide=torch.stack([one.wide for one in drawn], dim=1),
            narrow=torch.stack(narrow, dim=1) if narrow else None,
            hidden=pack_masks([one.hidden for one in drawn]) if self.mask else None,
            label=torch.from_numpy(np.stack([one.label for one in drawn])),
            index=images,
            looks=self._looks(drawn) if self.augment_on == "device" else (),
        )

    def _looks(self, drawn: list[DrawnViews]) -> tuple[Looks, Looks | None]:
        """Return the looks of the wide and of the narrow views, view by view."""
        cfg = self.crops
        views = list(zip(*(one.looks for one in drawn), strict=True))
        wide, narrow = ([look for view in part for look in view] for part in (views[: cfg.wide], views[cfg.wide :]))
        reach = math.ceil(3 * cfg.sigma[1])
        return (
            to_looks(wide, min(reach, min(sides(self.size)) - 1)),
            to_looks(narrow, min(reach, min(sides(cfg.narrow_size)) - 1)) if narrow else None,
        )


def to_looks(looks: Sequence[Look], reach: int) -> Looks:
    """Return flips and colours as tensors. reach: how many pixels to each side a blur may use."""
    turns = np.zeros((len(looks), 4), dtype=np.float32)
    mix = np.tile(np.array([1, 0, 0], dtype=np.float32), (len(looks), 4, 1))
    weights = np.tile(np.eye(1, reach + 1, dtype=np.float32), (len(looks), 1))
    for view, look in enumerate(looks):
        place = 0
        for adjust, factor in look.jitter:
            if adjust is shift_hue:
                turns[view, place] = factor
            else:
                grey, mean = BASES[adjust]
                mix[view, place] = factor, (1 - factor) * grey, (1 - factor) * mean
                place += 1
        if look.grey:
            mix[view, -1] = 0, 1, 0
        if look.sigma:
            own = gaussian(look.sigma, reach)
            weights[view, : len(own)] = own
    return Looks(
        flip=torch.tensor([look.flip for look in looks]),
        turns=torch.from_numpy(turns),
        mix=torch.from_numpy(mix),
        blur=torch.from_numpy(weights),
        solarise=torch.tensor([look.solarise for look in looks]),
    )


def apply_looks(views: Tensor, looks: Looks) -> Tensor:
    """Return views (V, B, 3, S, T) uint8 with their flips and colours, which are rounded once, at the end.

    Every view goes through every operation, so shapes are static and a compiler can fuse all of it.
    """
    flip, turned, solarise = (
        chosen[..., None, None, None] for chosen in (looks.flip, looks.turns != 0, looks.solarise)
    )
    images = views.flatten(0, 1)
    images = torch.where(flip, images.flip(-1), images) / 255
    turns, weights, blurs = (part.to(images.dtype)[..., None, None] for part in (looks.turns, looks.mix, looks.blur))
    for place in range(weights.shape[1]):
        images = torch.where(turned[:, place], shift_hue(images, turns[:, place]), images)
        images = mix(images, weights[:, place])
    images = blur(images, blurs.unsqueeze(-1).unbind(1))
    images = torch.where(solarise, torch.minimum(images, 1 - images), images)
    return (images * 255).round().to(torch.uint8).view(views.shape)


def finish_views(views: Views, apply: Callable[[Tensor, Looks], Tensor] = apply_looks) -> Views:
    """Return the views with the looks that the workers left to the device. apply: `apply_looks`, possibly compiled."""
    if not views.looks:
        return views
    wide, narrow = views.looks
    return replace(
        views,
        wide=apply(views.wide, wide),
        narrow=None if views.narrow is None or narrow is None else apply(views.narrow, narrow),
        looks=(),
    )


def mix(images: Tensor, weights: Tensor) -> Tensor:
    """Mix images (n, 3, H, W) in [0, 1] with their grey image and the mean of it, by weights (n, 3, 1, 1).

    With f = 1 + strength, (f, 0, 0) is torchvision's brightness, (f, 0, 1 - f) its contrast and (f, 1 - f, 0) its
    saturation; (0, 1, 0) is grey and (1, 0, 0) changes nothing.
    """
    own, grey, mean = weights[:, :, None].unbind(1)
    greys: Tensor = F.rgb_to_grayscale(images)
    return (images * own + greys * grey + greys.mean(dim=(-3, -2, -1), keepdim=True) * mean).clamp(0, 1)


def pack_masks(masks: list[list[np.ndarray]]) -> Hidden:
    """Return the hidden patches of a batch, given the masks (h, w) of the wide views of each image."""
    hidden = torch.from_numpy(np.stack(masks, axis=1)).flatten(2)  # (G, B, N)
    weight = (1 / hidden.sum(dim=2, keepdim=True, dtype=torch.float32)).expand_as(hidden)[hidden]
    return Hidden(hidden.flatten().nonzero()[:, 0], weight)
