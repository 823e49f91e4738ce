"""How float32 products are computed: IEEE or TF32, inside autocast or outside. Torch keeps both as global state; nobody else sets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Matmul = Literal["ieee", "tf32"]


@contextmanager
def float32_products(matmul: Matmul) -> Iterator[None]:
    """Compute float32 matrix products and convolutions on CUDA so, and put torch's flags back afterwards.

    Torch's own default is neither: TF32 (10 bits of mantissa) for convolutions, IEEE for matrix products.
    The two flags exist in every torch >= 2.6.
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
    """Compute in the tensors' own type and in IEEE arithmetic, whatever autocast and policy surround it: for what must be the same in every run."""
    with float32_products("ieee"), torch.autocast(device.type, enabled=False):
        yield


class FullLinear(nn.Linear):
    """A linear layer that computes in its weights' type whatever autocast asks for: scores that are compared, offsets that are decoded."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class FullConv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def in_full(layer: nn.Module) -> None:
    """Make the last layer of a library's head a FullLinear or FullConv2d, in place."""
    full: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FullLinear, nn.Conv2d: FullConv2d}
    layer.__class__ = full[type(layer)]
