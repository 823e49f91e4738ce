"""ViTDet's simple feature pyramid (2203.16527, section 3): every level is made from the last map.

Legend: B batch, D channels of the map, C channels of the pyramid, H x W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.adapters.levels import LEVELS, AdapterConfig, Norm, doublings, normalize, rescale
from mae_transfer.bounds import Width
from mae_transfer.interfaces import Adapter, Features, Maps


class SimpleFPNConfig(AdapterConfig):
    """Levels from one map: x4 (ConvT - norm - GELU - ConvT), x2 (ConvT), x1 and x0.5 (max-pool) for a patch of 16.

    Each ConvT halves D. A 1x1 and a 3x3 convolution to C channels follow.
    """

    name: Literal["simple_fpn"] = "simple_fpn"
    channels: Width = 256
    """Channels C of the pyramid."""
    norm: Norm = "layer"
    """Norm of all layers (ViTDet: channel-wise LayerNorm). The 1x1 and 3x3 convolutions have no bias."""
    p6: bool = True
    """Whether the pyramid ends with a subsampled p5, for a detector's largest anchors."""

    def build(self, maps: Maps) -> SimpleFPN:
        return SimpleFPN(maps, self)


class SimpleFPN(Adapter):
    """The adapter of SimpleFPNConfig."""

    def __init__(self, maps: Maps, cfg: SimpleFPNConfig) -> None:
        """Create the layers for a backbone's maps.

        Raises:
            ValueError: a hierarchical backbone, or a patch that cannot be scaled to strides 4..32 by factors of 2.
        """
        super().__init__()
        channels, norm, p6 = cfg.channels, cfg.norm, cfg.p6
        if len(set(maps.strides)) > 1:
            raise ValueError(
                f"simple_fpn needs a plain backbone, but this one has maps of strides {maps.strides}; use tap_fpn"
            )
        self.taps = (len(maps.strides) - 1,)
        self.channels, self.p6 = channels, p6
        self.strides = {**LEVELS, **({"p6": 64} if p6 else {})}
        times = [doublings(maps.strides[-1], stride) for stride in LEVELS.values()]
        self.levels = nn.ModuleList(_level(maps.channels[-1], k, channels, norm) for k in times)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, C, H / stride, W / stride), finest first."""
        levels = [level(features.maps[-1]) for level in self.levels]
        if self.p6:
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return dict(zip(self.strides, levels, strict=True))


def _level(width: int, times: int, channels: int, norm: Norm) -> nn.Sequential:
    scale, width = rescale(width, times, norm, narrow=True)
    return nn.Sequential(
        *scale,
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        normalize(norm, channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        normalize(norm, channels),
    )
