"""A backbone and its adapter as one module from images to a pyramid, with the interface of torchvision's detectors.

Legend: B batch, C channels of the pyramid, H x W pixels.
"""

from __future__ import annotations

from math import ceil, lcm

from torch import Tensor, nn

from mae_transfer.interfaces import Adapter, Backbone


class AdaptedBackbone(nn.Module):
    """Backbone -> taps -> adapter.

    `out_channels` is the attribute that torchvision expects. Image sides must be multiples of `size_divisor`.
    """

    backbone: Backbone
    adapter: Adapter

    def __init__(self, backbone: Backbone, adapter: Adapter) -> None:
        """Join a Backbone and an Adapter for its maps; both must be nn.Modules."""
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        self.depth = backbone.depth
        self.out_channels = adapter.channels
        # p6 does not count: it subsamples p5, whose sides may be odd.
        coarsest = [stride for name, stride in adapter.strides.items() if name != "p6"][-1]
        self.size_divisor = lcm(backbone.patch, ceil(coarsest))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return name -> (B, C, H / stride, W / stride) for normalised images (B, 3, H, W)."""
        return self.adapter(self.backbone(images, taps=self.adapter.taps))

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: the backbone's ids; the adapter comes after. ValueError if unknown."""
        part, _, rest = name.partition(".")
        if part == "backbone":
            return self.backbone.layer_of(rest)
        if part == "adapter":
            return self.depth + 1
        raise ValueError(f"{name!r} is not a parameter of this pyramid")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass; ValueError if the backbone does not support it."""
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(
                f"{type(self.backbone).__name__} cannot recompute activations: set run.checkpoint_activations=False"
            )
        switch(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the backbone's parameters without weight decay."""
        exempt: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in exempt}
