"""ImageGPT (Chen et al., ICML 2020): a causal transformer over the colours of an image, as a backbone.

Each pixel of a small image becomes the nearest of K colours. The transformer predicts a pixel from those before it, in
raster order, so its input is shifted by one: a start token, then all pixels but the last. The features of layer l are
the input of block l, normalised by that block's first norm; the paper averages them over the pixels. A middle layer is
best, so the model is cut there (`depth`).

Legend: B batch, N = side * side pixels, D width, K colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mae_transfer.arithmetic import exact
from mae_transfer.interfaces import Backbone, Features

EPS = 1e-5


class CausalAttention(nn.Module):
    """Self-attention of each token to itself and the tokens before it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) for x (B, N, D)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class CausalBlock(nn.Module):
    """A pre-norm block of GPT-2 whose norms do not subtract the mean."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=EPS), nn.RMSNorm(dim, eps=EPS)
        self.attn, self.mlp = CausalAttention(dim, heads), Mlp(dim, hidden, act_layer=QuickGELU)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) for x (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ImageGPT(Backbone):
    """The first `depth` blocks of an ImageGPT. A patch is one pixel, and there is no class token."""

    def __init__(
        self, clusters: Tensor, *, dim: int, depth: int, heads: int, hidden: int, side: int, final_norm: bool = True
    ) -> None:
        """Create a model with random weights.

        Args:
            clusters: the colours, (K, 3), on the scale of normalised images.
            hidden: width of the MLPs.
            side: pixels per side of an image.
            final_norm: False: no norm after the blocks.
        """
        super().__init__()
        self.dim, self.depth, self.patch, self.side = dim, depth, 1, side
        self.clusters: Tensor
        self.register_buffer("clusters", clusters.float())
        self.token_embed = nn.Embedding(len(clusters) + 1, dim)  # the last one is the start token
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dim))
        self.blocks = nn.ModuleList(CausalBlock(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=EPS) if final_norm else nn.Identity()

    def tokens(self, images: Tensor) -> Tensor:
        """Return the index of the nearest colour of each pixel, (B, N) int64, for normalised images (B, 3, H, W)."""
        with torch.no_grad(), exact(images.device):
            pixels = images.to(self.clusters.dtype).flatten(2).transpose(1, 2)
            return (self.clusters.square().sum(1) - 2 * pixels @ self.clusters.T).argmin(-1)

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the outputs of the blocks `taps`, (B, D, side, side) each; see Backbone.

        Raises:
            ValueError: the images have another size, or the model has no such tap.
        """
        if images.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"{self.name()} takes images of {self.side} x {self.side} pixels, got {tuple(images.shape[-2:])}: set "
                f"data.size={self.side}"
            )
        taps = list(taps or (self.depth - 1,))
        if not all(0 <= tap < self.depth for tap in taps) or taps != sorted(set(taps)):
            raise ValueError(f"taps {tuple(taps)}: give blocks 0..{self.depth - 1}, each once, in rising order")
        tokens = self.tokens(images)
        shifted = torch.cat([torch.full_like(tokens[:, :1], len(self.clusters)), tokens[:, :-1]], dim=1)
        x = self.token_embed(shifted) + self.pos_embed
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in taps:
                maps.append((self.norm(x) if norm else x).transpose(1, 2).unflatten(2, (self.side, self.side)))
        return Features(tuple(maps), None)

    def name(self) -> str:
        return f"igpt_{self.dim}_layer_{self.depth}"

    def layer_of(self, name: str) -> int:
        if name not in dict(self.named_parameters()):
            raise ValueError(f"{name!r} is not a parameter of this {self.name()}")
        stem, _, rest = name.partition(".")
        return 1 + int(rest.partition(".")[0]) if stem == "blocks" else self.depth + 1 if stem == "norm" else 0

    def no_weight_decay(self) -> set[str]:
        """Return the embeddings."""
        return {"token_embed.weight", "pos_embed"}
