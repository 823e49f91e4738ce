"""Arithmetic of float32 products: IEEE or TF32, with or without autocast. No other module sets torch's flags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Matmul = Literal["ieee", "tf32"]


@contextmanager
def float32_products(matmul: Matmul) -> Iterator[None]:
    """Set the arithmetic of float32 matrix products and convolutions on CUDA, then restore torch's flags.

    torch's default is mixed: TF32 (10 bits of mantissa) for convolutions, IEEE for matrix products. The two flags exist
    in every torch >= 2.6.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = matmul == "tf32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in the tensors' own type, in IEEE arithmetic and without autocast, for reproducible results."""
    with float32_products("ieee"), torch.autocast(device.type, enabled=False):
        yield


class FullLinear(nn.Linear):
    """A linear layer that ignores autocast and computes in the type of its weights: for scores and box offsets."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class FullConv2d(nn.Conv2d):
    """A convolution that ignores autocast and computes in the type of its weights."""

    def __init__(self, layer: nn.Conv2d) -> None:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        options: dict[str, Any] = {name: getattr(layer, name) for name in names}
        super().__init__(**options, bias=layer.bias is not None, padding_mode=layer.padding_mode, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def in_full(model: nn.Module, *names: str) -> None:
    """Replace layers of a library's heads by a FullLinear or FullConv2d with the same parameters."""
    for name in names:
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, FullLinear(layer) if isinstance(layer, nn.Linear) else FullConv2d(layer))
