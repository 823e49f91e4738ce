"""A pyramid from several depths of the backbone: Li et al.'s for detection (2111.11429, section 2.2), BEiT's and MAE's for UperNet.

Legend: B batch, D_k channels of map k, C channels of the pyramid, H x W pixels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from mae_transfer.adapters.levels import LEVELS, NORMS, UP_TO_DOWN, Maps, Norm, chosen, doublings, rescale
from mae_transfer.bounds import FewOrNone, Width
from mae_transfer.interfaces import Features


class TapFPN(nn.Module):
    """Four maps, each scaled to its level, then an FPN where one is wanted.

    A plain ViT's maps are scaled x4 (ConvT - norm - GELU - ConvT), x2 (ConvT), x1 (nothing) and x0.5 (max-pool), widths kept, for a patch of 16. A
    hierarchical backbone's have their strides already and go to the FPN as they are.
    """

    def __init__(
        self,
        maps: Maps,
        *,
        taps: tuple[FewOrNone, ...] | None = None,
        norm: Norm = "group",
        fpn: Width | None = 256,
        fpn_norm: Norm | None = None,
        p6: bool = False,
        scales: Literal["stride", "relative"] = "stride",
    ) -> None:
        """Make the layers.

        Args:
            maps: what the backbone can hand out.
            taps: the four maps to take, 0-based; None: those after d/4, d/2, 3d/4 and d blocks, or the stages of strides 4..32. UperNet takes
                3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L.
            norm: between the transposed convolutions (MIMDet: GroupNorm of 32; UperNet: "batch").
            fpn: its channels C; None: no FPN, the maps keep their channels (UperNet).
            fpn_norm: after each convolution of the FPN (Li et al.: "batch"); None: none, biases instead.
            p6: whether the FPN ends with p5 subsampled, for a detector's largest anchors.
            scales: "stride": p2..p5 have strides 4..32 whatever the patch; "relative": x4, x2, x1, x0.5 of any patch, 14 included.
        Raises:
            ValueError: maps that are not four, not in order, or not to be scaled to their strides; p6 without FPN.
        """
        super().__init__()
        if p6 and fpn is None:
            raise ValueError("p6=True subsamples the FPN's p5, and fpn=None asks for none; give its channels (fpn=256)")
        self.taps = chosen(taps if taps is not None else default_taps(maps), maps)
        if len(self.taps) != len(LEVELS):
            raise ValueError(f"taps {self.taps}: a pyramid of p2..p5 takes {len(LEVELS)} maps")
        strides = [maps.strides[tap] for tap in self.taps]
        plain = len(set(strides)) == 1
        if scales == "relative":
            times = UP_TO_DOWN if plain else (0,) * len(LEVELS)
            self.strides: dict[str, float] = {
                name: stride / 2**k for name, stride, k in zip(LEVELS, strides, times, strict=True)
            }
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
        """Return name -> (B, C, H / stride, W / stride), finest first; without FPN, C is the map's own D_k (`widths`)."""
        pyramid = {name: scale(x) for name, scale, x in zip(LEVELS, self.scale, features.maps, strict=True)}
        if self.fpn is not None:
            pyramid = self.fpn(pyramid)
        return dict(zip(self.strides, pyramid.values(), strict=True))


def default_taps(maps: Maps) -> tuple[int, ...]:
    """Return the maps after d/4, d/2, 3d/4 and d blocks of a plain backbone (Li et al.), or those of strides 4..32 of a hierarchical one."""
    if len(set(maps.strides)) > 1:
        return tuple(i for i, stride in enumerate(maps.strides) if stride in LEVELS.values())
    return tuple(len(maps.strides) * (i + 1) // len(LEVELS) - 1 for i in range(len(LEVELS)))
