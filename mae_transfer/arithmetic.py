"""Arithmetic of float32 products: IEEE or TF32, with or without autocast. No other module sets torch's flags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

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

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class FullConv2d(nn.Conv2d):
    """A convolution that ignores autocast and computes in the type of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def in_full(layer: nn.Module) -> None:
    """Turn the last layer of a library's head into a FullLinear or FullConv2d, in place."""
    full: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FullLinear, nn.Conv2d: FullConv2d}
    layer.__class__ = full[type(layer)]
