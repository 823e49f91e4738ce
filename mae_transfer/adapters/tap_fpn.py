"""A pyramid from maps at several depths: Li et al. for detection (2111.11429, section 2.2), BEiT and MAE for UperNet.

Legend: B batch, D_k channels of map k, C channels of the pyramid, H x W pixels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from mae_transfer.adapters.levels import LEVELS, NORMS, UP_TO_DOWN, AdapterConfig, Norm, chosen, doublings, rescale
from mae_transfer.bounds import FewOrNone, Width
from mae_transfer.interfaces import Adapter, Features, Maps


class TapFPNConfig(AdapterConfig):
    """Four maps, each scaled to its level, and optionally an FPN.

    With a patch of 16, the maps of a plain ViT are scaled x4 (ConvT - norm - GELU - ConvT), x2 (ConvT), x1 (no layer)
    and x0.5 (max-pool); their widths do not change. Maps of a hierarchical backbone already have these strides.
    """

    name: Literal["tap_fpn"] = "tap_fpn"
    taps: tuple[FewOrNone, ...] | None = None
    """The four maps to use, 0-based. None: those after d/4, d/2, 3d/4 and d blocks, or the stages of strides 4..32.
    UperNet uses 3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L."""
    norm: Norm = "group"
    """Norm between the transposed convolutions (MIMDet: GroupNorm of 32; UperNet: "batch")."""
    fpn: Width | None = 256
    """Channels C of the FPN. None: no FPN, the maps keep their channels (UperNet)."""
    fpn_norm: Norm | None = None
    """Norm after each convolution of the FPN (Li et al.: "batch"). None: no norm, but biases."""
    p6: bool = False
    """Whether the FPN ends with a subsampled p5, for a detector's largest anchors."""
    scales: Literal["stride", "relative"] = "stride"
    """Scales of the maps. "stride": p2..p5 have strides 4..32 for any patch. "relative": x4, x2, x1, x0.5 for any
    patch, also 14."""

    def build(self, maps: Maps) -> TapFPN:
        return TapFPN(maps, self)


class TapFPN(Adapter):
    """The adapter of TapFPNConfig."""

    def __init__(self, maps: Maps, cfg: TapFPNConfig) -> None:
        """Create the layers for a backbone's maps.

        Raises:
            ValueError: not four maps, not in order, or they cannot be scaled to their strides; p6 without FPN.
        """
        super().__init__()
        norm, fpn, fpn_norm, p6 = cfg.norm, cfg.fpn, cfg.fpn_norm, cfg.p6
        if p6 and fpn is None:
            raise ValueError("p6=True subsamples the p5 of an FPN, but fpn=None; set the FPN's channels (fpn=256)")
        self.taps = chosen(cfg.taps if cfg.taps is not None else default_taps(maps), maps)
        if len(self.taps) != len(LEVELS):
            raise ValueError(f"taps {self.taps}: a pyramid of p2..p5 needs {len(LEVELS)} maps; give {len(LEVELS)} taps")
        strides = [maps.strides[tap] for tap in self.taps]
        plain = len(set(strides)) == 1
        if cfg.scales == "relative":
            times = UP_TO_DOWN if plain else (0,) * len(LEVELS)
            self.strides = {name: stride / 2**k for name, stride, k in zip(LEVELS, strides, times, strict=True)}
        else:
            times = tuple(doublings(stride, wanted) for stride, wanted in zip(strides, LEVELS.values(), strict=True))
            self.strides = dict(LEVELS)
        widths = [maps.channels[tap] for tap in self.taps]
        self.scale = nn.ModuleList(rescale(width, k, norm)[0] for width, k in zip(widths, times, strict=True))
        self.fpn = None
        if fpn is not None:
            last = LastLevelMaxPool() if p6 else None
            self.fpn = FeaturePyramidNetwork(
                widths, fpn, extra_blocks=last, norm_layer=NORMS[fpn_norm] if fpn_norm else None
            )
        if p6:
            self.strides["p6"] = 2 * self.strides["p5"]
        self.widths = widths if fpn is None else [fpn] * len(self.strides)
        self.channels = self.widths[-1]

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, C, H / stride, W / stride), finest first; without FPN, C is the map's D_k (`widths`)."""
        pyramid = {name: scale(x) for name, scale, x in zip(LEVELS, self.scale, features.maps, strict=True)}
        if self.fpn is not None:
            pyramid = self.fpn(pyramid)
        return dict(zip(self.strides, pyramid.values(), strict=True))


def default_taps(maps: Maps) -> tuple[int, ...]:
    """Return the maps after d/4, d/2, 3d/4 and d blocks of a plain backbone (Li et al.).

    For a hierarchical backbone, return the maps of strides 4..32.
    """
    if len(set(maps.strides)) > 1:
        return tuple(i for i, stride in enumerate(maps.strides) if stride in LEVELS.values())
    return tuple(len(maps.strides) * (i + 1) // len(LEVELS) - 1 for i in range(len(LEVELS)))
