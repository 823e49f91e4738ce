"""The heads of joint embedding. They are trained with the encoder and thrown away after it.

Legend: V views, B batch, D width of the input, K width of the output. `...` are any dimensions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02


class PrototypeHead(nn.Module):
    """An MLP, a vector of unit length, and its similarity to K prototypes of unit length (DINO, DINOHead)."""

    def __init__(self, dim: int, *, hidden: int, bottleneck: int, out: int, layers: int, fixed_norm: bool) -> None:
        """Create the head.

        fixed_norm: prototypes keep unit length (norm_last_layer); else each has a trained length, 1 at first, with
            weight decay, as weight_g in DINO.
        """
        super().__init__()
        modules: list[nn.Module] = []
        for before, after in pairwise((dim, *[hidden] * (layers - 1), bottleneck)):
            linear = nn.Linear(before, after)
            nn.init.trunc_normal_(linear.weight, std=STD)
            nn.init.zeros_(linear.bias)
            modules += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.prototypes = nn.Parameter(torch.empty(out, bottleneck).uniform_(-(bottleneck**-0.5), bottleneck**-0.5))
        self.length = nn.Parameter(torch.ones(out, 1), requires_grad=not fixed_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the similarities (..., K) of x (..., D)."""
        return self.compare(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """Return the vectors of unit length, (..., bottleneck)."""
        return F.normalize(self.mlp(x), dim=-1)

    def compare(self, embedded: Tensor) -> Tensor:
        """Return the similarities (..., K) of embedded vectors."""
        return F.linear(embedded, F.normalize(self.prototypes, dim=1) * self.length)

    def last_layer(self) -> list[nn.Parameter]:
        """Return the parameters of the prototypes."""
        return [self.prototypes, self.length]


class ProjectionHead(nn.Module):
    """An MLP with batch norms, whose statistics are those of one view (MoCo v3, MoBY).

    The norms keep no running statistics. They are those of the batch also in eval mode, as a teacher needs.
    """

    def __init__(self, dim: int, *, hidden: int, out: int, layers: int, bias: bool, last_norm: bool) -> None:
        """Create the head.

        last_norm: a batch norm without parameters after the last layer.
        """
        super().__init__()
        modules: list[nn.Module] = []
        for before, after in pairwise((dim, *[hidden] * (layers - 1), out)):
            norm = nn.BatchNorm1d(after, affine=len(modules) < 3 * (layers - 1), track_running_stats=False)
            modules += [nn.Linear(before, after, bias=bias), norm, nn.ReLU()]
        self.mlp = nn.Sequential(*modules[: -1 if last_norm else -2])

    def forward(self, x: Tensor) -> Tensor:
        """Return (V, B, K) for x (V, B, D)."""
        return torch.stack([self.mlp(view) for view in x])
