"""Maps of a backbone with a batch norm each, for a linear head on a frozen backbone.

Legend: B batch, D_k channels of map k, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from mae_transfer.adapters.levels import chosen
from mae_transfer.interfaces import Adapter, Features, Maps


class NormedTaps(Adapter):
    """The maps of some blocks after a trained batch norm each, as in DINOv2's linear segmentation."""

    def __init__(self, maps: Maps, *, taps: tuple[int, ...] | None = None) -> None:
        """Create the norms. taps: 0-based maps; None: the last one. ValueError if the backbone lacks one of them."""
        super().__init__()
        self.taps = chosen(taps if taps is not None else (len(maps.strides) - 1,), maps)
        self.strides = {f"map{tap}": maps.strides[tap] for tap in self.taps}
        self.widths = [maps.channels[tap] for tap in self.taps]
        self.channels = self.widths[-1]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in self.widths)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Return name -> (B, D_k, H / stride, W / stride)."""
        return {name: norm(x) for name, norm, x in zip(self.strides, self.norms, features.maps, strict=True)}
