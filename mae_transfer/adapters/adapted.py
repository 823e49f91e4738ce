"""A backbone and its adapter as one module: images in, pyramid out, as torchvision's detectors take it.

Legend: B batch, C channels of the pyramid, H x W pixels.
"""

from __future__ import annotations

from math import ceil, lcm

from torch import Tensor, nn

from mae_transfer.interfaces import Adapter, Backbone


class AdaptedBackbone(nn.Module):
    """Backbone -> taps -> adapter. `out_channels` is what torchvision asks for; `size_divisor` divides the sides of images that it takes."""

    backbone: Backbone
    adapter: Adapter

    def __init__(self, backbone: Backbone, adapter: Adapter) -> None:
        """Join an nn.Module that is a Backbone with one that is an Adapter made for its maps."""
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        self.depth = backbone.depth
        self.out_channels = adapter.channels
        coarsest = [stride for name, stride in adapter.strides.items() if name != "p6"][
            -1
        ]  # p6 subsamples p5 and takes odd sides
        self.size_divisor = lcm(backbone.patch, ceil(coarsest))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return name -> (B, C, H / stride, W / stride) for normalised images (B, 3, H, W)."""
        return self.adapter(self.backbone(images, taps=self.adapter.taps))

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, as the backbone counts them; the adapter comes after. ValueError for an unknown name."""
        part, _, rest = name.partition(".")
        if part == "backbone":
            return self.backbone.layer_of(rest)
        if part == "adapter":
            return self.depth + 1
        raise ValueError(f"{name!r} is no parameter of this pyramid")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass; ValueError for a backbone that cannot."""
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(
                f"{type(self.backbone).__name__} cannot recompute activations: run.checkpoint_activations=False"
            )
        switch(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the backbone's parameters that recipes spare from weight decay."""
        spared: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in spared}
