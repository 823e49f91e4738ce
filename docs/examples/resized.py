"""The last map resized to each level, then a 1x1 convolution. Legend: B batch, C channels of the pyramid."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.adapters.levels import LEVELS, AdapterConfig
from mae_transfer.bounds import Width
from mae_transfer.interfaces import Adapter, Features, Maps


class ResizedConfig(AdapterConfig):
    """p2..p5 from one map of a plain backbone by bilinear resizing; scale is not learned."""

    name: Literal["resized"] = "resized"
    channels: Width = 256
    """Channels of the pyramid."""

    def build(self, maps: Maps) -> Resized:
        return Resized(maps, self)


class Resized(Adapter):
    """The adapter of ResizedConfig."""

    def __init__(self, maps: Maps, cfg: ResizedConfig) -> None:
        super().__init__()
        if len(set(maps.strides)) > 1:
            raise ValueError(f"resized needs a plain backbone, this one has strides {maps.strides}; choose tap_fpn")
        self.taps = (len(maps.strides) - 1,)
        self.channels = channels = cfg.channels
        self.strides = dict(LEVELS)
        self.scales = [maps.strides[-1] / stride for stride in LEVELS.values()]
        self.project = nn.ModuleList(nn.Conv2d(maps.channels[-1], channels, kernel_size=1) for _ in LEVELS)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, C, H / stride, W / stride), finest first."""
        last = features.maps[-1]
        sizes = [(round(last.shape[2] * scale), round(last.shape[3] * scale)) for scale in self.scales]
        resized = [F.interpolate(last, size, mode="bilinear") for size in sizes]
        levels = [project(level) for project, level in zip(self.project, resized, strict=True)]
        return dict(zip(self.strides, levels, strict=True))
