"""Maps of a backbone as they are, behind a batch norm each: what a linear head on a frozen trunk reads.

Legend: B batch, D_k channels of map k, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from mae_transfer.adapters.levels import Maps, chosen
from mae_transfer.interfaces import Features


class NormedTaps(nn.Module):
    """The maps of some blocks, each channel normalised over the batch (the batch norm trains; DINOv2's linear segmentation does the same)."""

    def __init__(self, maps: Maps, *, taps: tuple[int, ...] | None = None) -> None:
        """Make the norms. taps: the maps to take, 0-based; None: the last one. ValueError for maps that the backbone does not have."""
        super().__init__()
        self.taps = chosen(taps if taps is not None else (len(maps.strides) - 1,), maps)
        self.strides: dict[str, float] = {f"map{tap}": maps.strides[tap] for tap in self.taps}
        self.widths = [maps.channels[tap] for tap in self.taps]
        self.channels = self.widths[-1]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in self.widths)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, D_k, H / stride, W / stride)."""
        return {name: norm(x) for name, norm, x in zip(self.strides, self.norms, features.maps, strict=True)}
