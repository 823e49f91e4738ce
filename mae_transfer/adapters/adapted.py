"""A backbone and its adapter as one module from images to a pyramid.

Legend: B batch, C channels of the pyramid, H x W pixels.
"""

from __future__ import annotations

from math import ceil, lcm

from torch import Tensor

from mae_transfer.interfaces import Adapter, Backbone, Model


class AdaptedBackbone(Model):
    """Backbone -> taps -> adapter. Image sides must be multiples of `size_divisor`."""

    def __init__(self, backbone: Backbone, adapter: Adapter) -> None:
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        self.out_channels = adapter.channels  # torchvision's detectors read it
        # p6 does not count: it subsamples p5, whose sides may be odd.
        coarsest = [stride for name, stride in adapter.strides.items() if name != "p6"][-1]
        self.size_divisor = lcm(backbone.patch, ceil(coarsest))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return name -> (B, C, H / stride, W / stride) for normalised images (B, 3, H, W)."""
        return self.adapter(self.backbone(images, taps=self.adapter.taps))

    @property
    def encoder(self) -> Backbone:
        return self.backbone
