"""The levels of a pyramid, p2..p5 at strides 4..32, and the layers that bring a map to the stride of its level.

Legend: D channels of a map; a doubling is a factor of 2 in height and width, a negative one a halving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2
from typing import Literal, NamedTuple

from timm.layers.norm import LayerNorm2d
from torch import nn

from mae_transfer.interfaces import Backbone

LEVELS: dict[str, int] = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # name -> stride in pixels
UP_TO_DOWN = (2, 1, 0, -1)  # doublings of one map for the four levels of a pyramid, whatever the patch

Norm = Literal[
    "group", "layer", "batch"
]  # "batch" is SyncBN where the assembly of the model synchronises it over ranks


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(32, channels),
    "layer": lambda channels: LayerNorm2d(
        channels, eps=1e-6
    ),  # over channels only: GroupNorm(1) would pool over the image too
    "batch": nn.BatchNorm2d,
}


class Maps(NamedTuple):
    """What a backbone can hand out, shallow to deep."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]  # pixels per cell; all equal: a plain ViT


def maps_of(backbone: Backbone) -> Maps:
    """Return the maps that `taps` index: those that the backbone declares (`channels`, `strides`), else one per block, as a plain ViT has them."""
    channels, strides = getattr(backbone, "channels", None), getattr(backbone, "strides", None)
    if channels is None or strides is None:
        return Maps((backbone.dim,) * backbone.depth, (backbone.patch,) * backbone.depth)
    return Maps(tuple(channels), tuple(strides))


def doublings(stride: int, wanted: int) -> int:
    """Return how often a map of this stride must be doubled to have the wanted one; ValueError where that is no whole number."""
    times = log2(stride / wanted)
    if not times.is_integer():
        raise ValueError(
            f"a map of stride {stride} does not become one of stride {wanted} by factors of 2: load the backbone with another patch "
            "(changes: {'patch': 16}), or scale relative to the patch (tap_fpn with scales='relative')"
        )
    return round(times)


def rescale(channels: int, times: int, norm: Norm, *, narrow: bool = False) -> tuple[nn.Sequential, int]:
    """Return the layers that double a map (B, D, h, w) `times`, and the channels they end with: D, or D / 2^times where `narrow`.

    Up: transposed convolutions 2x2 of stride 2 with norm and GELU between them; down: one max-pool; 0: nothing.
    """
    layers: list[nn.Module] = [nn.MaxPool2d(2**-times)] if times < 0 else []
    for step in range(times):
        out = channels // 2 if narrow else channels
        layers += [normalize(norm, channels), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2))
        channels = out
    return nn.Sequential(*layers), channels


def normalize(norm: Norm, channels: int) -> nn.Module:
    """Return the norm layer; ValueError where the channels do not fit it."""
    if norm == "group" and channels % 32:
        raise ValueError(
            f"norm 'group' is GroupNorm(32), and {channels} channels are no multiple of 32; choose 'layer'"
        )
    return NORMS[norm](channels)


def chosen(taps: Sequence[int], maps: Maps) -> tuple[int, ...]:
    """Return the taps as a tuple; ValueError unless they rise and end with the last map, without which the blocks behind would never train."""
    count = len(maps.strides)
    if list(taps) != sorted(set(taps)) or not taps or taps[0] < 0 or taps[-1] != count - 1:
        raise ValueError(
            f"taps {tuple(taps)}: name maps 0..{count - 1} of this backbone, each once, in rising order, the last one included"
        )
    return tuple(taps)
