"""How float32 products are computed: IEEE or TF32, inside autocast or outside. Torch keeps both as global state; nobody else sets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

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
