"""The levels of a pyramid, p2..p5 at strides 4..32, and the layers that scale a map to the stride of its level.

Legend: D channels of a map. A doubling is a factor of 2 in height and width; a negative one is a halving.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import log2
from typing import Literal

from timm.layers.norm import LayerNorm2d
from torch import nn

from mae_transfer.config import Part
from mae_transfer.interfaces import Adapter, Maps

LEVELS: dict[str, int] = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # name -> stride in pixels
UP_TO_DOWN = (2, 1, 0, -1)  # doublings of one map for the four levels, for any patch size

Norm = Literal["group", "layer", "batch"]  # "batch" becomes SyncBN when the model is assembled for several ranks


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(32, channels),
    "layer": lambda channels: LayerNorm2d(channels, eps=1e-6),  # over channels; GroupNorm(1) also pools over the image
    "batch": nn.BatchNorm2d,
}


class AdapterConfig(Part):
    """An adapter of a config."""

    @abstractmethod
    def build(self, maps: Maps) -> Adapter:
        """Return the adapter for these maps of a backbone. ValueError if they do not fit."""


def doublings(stride: int, wanted: int) -> int:
    """Return the number of doublings from a stride to the wanted one; ValueError if it is not a whole number."""
    times = log2(stride / wanted)
    if not times.is_integer():
        raise ValueError(
            f"a map of stride {stride} cannot be scaled to stride {wanted} by factors of 2: load the backbone with "
            "another patch (changes: {'patch': 16}), or scale relative to the patch (tap_fpn with scales='relative')"
        )
    return round(times)


def rescale(channels: int, times: int, norm: Norm, *, narrow: bool = False) -> tuple[nn.Sequential, int]:
    """Return the layers that double a map (B, D, h, w) `times`, and their output channels.

    These are D, or D / 2^times if `narrow`.
    Up: transposed convolutions 2x2 of stride 2 with norm and GELU between them; down: one max-pool; 0: no layer.
    """
    layers: list[nn.Module] = [nn.MaxPool2d(2**-times)] if times < 0 else []
    for step in range(times):
        out = channels // 2 if narrow else channels
        layers += [normalize(norm, channels), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2))
        channels = out
    return nn.Sequential(*layers), channels


def normalize(norm: Norm, channels: int) -> nn.Module:
    """Return the norm layer; ValueError if it does not support this number of channels."""
    if norm == "group" and channels % 32:
        raise ValueError(
            f"norm 'group' is GroupNorm(32), but {channels} channels are not a multiple of 32; choose 'layer'"
        )
    return NORMS[norm](channels)


def chosen(taps: Sequence[int], maps: Maps) -> tuple[int, ...]:
    """Return the taps as a tuple.

    Raises:
        ValueError: the taps do not rise or do not end with the last map; blocks after the last tap would not train.
    """
    count = len(maps.strides)
    if list(taps) != sorted(set(taps)) or not taps or taps[0] < 0 or taps[-1] != count - 1:
        raise ValueError(
            f"taps {tuple(taps)}: give maps 0..{count - 1} of this backbone, each once, in rising order, and include "
            "the last one"
        )
    return tuple(taps)
