"""The encoder: one Vision Transformer with the options that transfer needs, in the parameter names of the released MAE weights.

Legend: B batch, C channels, H x W pixels, p patch side, N = h * w patches in raster order, M of them asked for, T leading tokens (0 or 1 class
token), L = T + M tokens, D width, R heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mae_transfer.config import Schema
from mae_transfer.core.patches import grid_of, patchify, take
from mae_transfer.core.positions import relative_index, relative_rows, resample, sincos_2d
from mae_transfer.interfaces import Features

NORM_EPS = 1e-6  # of every LayerNorm of the MAE release

CPU_HAS_AMX: bool = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()  # bf16 matrix units; not every torch >= 2.6 has a public name

SIZES: dict[str, tuple[int, int, int]] = {  # width, depth, heads
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}


class ViTConfig(Schema):
    """The architecture of an encoder."""

    size: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] | None = "vit_base"
    """A named size; None: the three numbers below."""
    dim: int | None = None
    """Width D; overrides the named size's."""
    depth: int | None = None
    """Blocks; overrides the named size's."""
    heads: int | None = None
    """Attention heads; overrides the named size's (it is not in the weights: MoCo v3's ViT-S has 12)."""
    patch: int = 16
    """Patch side p in pixels."""
    image_size: int | tuple[int, int] = 224
    """Pixels (one side, or H and W) that the position table is made for; other sizes resample it."""
    channels: int = 3
    """Input channels C."""
    mlp_ratio: float = 4.0
    """Width of the MLP over D."""
    class_token: bool = True
    """Whether a class token leads the patches (dense tasks build the encoder without)."""
    final_norm: bool = True
    """Whether a LayerNorm ends the encoder (dense tasks build it without)."""
    positions: Literal["fixed", "learned", "none"] = "fixed"
    """Absolute positions: MAE's sin-cos table without or with gradient, or none."""
    relative_positions: Literal["none", "shared", "per_block"] = "none"
    """Relative-position bias tables, zero-initialised: none, one for all blocks (BEiT pretraining), or one each (BEiT fine-tuning)."""
    qkv_bias: Literal["qkv", "qv", "none"] = "qkv"
    """Which of query, key and value have a bias (BEiT: query and value)."""
    norm_eps: float = NORM_EPS
    """Epsilon of every LayerNorm (transformers' ViT and BEiT: 1e-12)."""
    layer_scale: float | None = None
    """Initial value of LayerScale; None: no LayerScale."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""

    def shape(self) -> tuple[int, int, int]:
        """Return width, depth and heads; ValueError where they are missing or do not fit together."""
        named = SIZES[self.size] if self.size else (0, 0, 0)
        dim, depth, heads = (own or default for own, default in zip((self.dim, self.depth, self.heads), named, strict=True))
        if min(dim, depth, heads) < 1:
            raise ValueError(f"dim {dim}, depth {depth}, heads {heads}: name a size ({', '.join(SIZES)}) or give all three")
        if dim % heads:
            raise ValueError(f"width {dim} is not a multiple of {heads} heads")
        return dim, depth, heads

    def grid(self) -> tuple[int, int]:
        """Return the (h, w) grid of patches at `image_size`."""
        size = self.image_size
        return grid_of((size, size) if isinstance(size, int) else size, self.patch)


class PatchEmbed(nn.Module):
    """A linear map of each patch; a convolution in the weights' layout only, so that unseen patches cost nothing."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the embeddings (B, M, D) of patches `ids` (B, M) of images (B, C, H, W); of all N where ids is None."""
        patches = patchify(images, self.proj.kernel_size[0])
        if ids is not None:
            patches = take(patches, ids)
        return F.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v, (B, R, L, d), for q, k, v (B, R, L, d) and a bias that broadcasts to (B, R, L, L)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # the CPU's fused kernel loses in bf16 (docs/results/pretrain.md)
        return _attend_in_parts(q, k, v, bias) if CPU_HAS_AMX else _attend_in_float32(q, k, v, bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, whose bf16 products run on the matrix units."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights: Tensor = (logits if bias is None else logits + bias).softmax(dim=-1).to(v.dtype)
    return weights @ v


def _attend_in_float32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The fused kernel in float32, without matrix units the faster one; what it keeps for the backward pass (but row sums) is kept in bf16."""
    keep = saved_tensors_hooks(lambda x: x.bfloat16() if x.dim() == 4 else x, lambda x: x.float())
    with torch.autocast("cpu", enabled=False), nullcontext() if torch.compiler.is_compiling() else keep:
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=None if bias is None else bias.float())
        return out.to(v.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with every option of the suite."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: Literal["qkv", "qv", "none"] = "qkv") -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None, *, last: int | None = None) -> Tensor:
        """Return (B, L, D) for x (B, L, D), or (B, M, D) for its M = `last` last tokens only; bias (1 | B, R, M or L, L) is added to the logits."""
        b, _, d = x.shape
        qkv_bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if last is None:
            q, k, v = self._split(F.linear(x, self.qkv.weight, qkv_bias), 3)
        else:
            first, rest = (None, None) if qkv_bias is None else qkv_bias.tensor_split([d])
            (q,) = self._split(F.linear(x[:, -last:], self.qkv.weight[:d], first), 1)
            k, v = self._split(F.linear(x, self.qkv.weight[d:], rest), 2)
        out: Tensor = self.proj(attend(q, k, v, bias).transpose(1, 2).reshape(b, -1, d))
        return out

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Return `parts` tensors (B, R, L, D / R) from x (B, L, parts * D)."""
        return x.view(*x.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: Literal["qkv", "qv", "none"] = "qkv",
        norm_eps: float = NORM_EPS,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, bias: Tensor | None = None, *, last: int | None = None) -> Tensor:
        """Return (B, L, D) for x (B, L, D), or (B, M, D) for its M = `last` last tokens only: what nobody reads is not computed."""
        attended = self.attn(self.norm1(x), bias, last=last)
        x = (x if last is None else x[:, -last:]) + self.drop_path(self.ls1(attended))
        out: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return out


def run(block: nn.Module, x: Tensor, bias: Tensor | None = None, *, last: int | None = None, recompute: bool) -> Tensor:
    """Return block(x, bias, last=last); recompute: keep none of its activations and compute them again in the backward pass."""
    if not (recompute and torch.is_grad_enabled()):
        return block(x, bias, last=last)  # type: ignore[no-any-return]
    return checkpoint(block, x, bias, last=last, use_reentrant=False)  # type: ignore[no-any-return]


class RelativePositionBias(nn.Module):
    """A table of biases by the offset between two patches (BEiT)."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int, *, leading: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(relative_rows(grid, leading=leading), heads))
        self.register_buffer("index", relative_index(grid, leading=leading), persistent=False)

    def forward(self, tokens: Tensor | None) -> Tensor:
        """Return (1 | B, R, L, L) for the tokens (B, L) of the sequence, leading ones counted; for the whole grid where None."""
        index = self.index[None] if tokens is None else self.index[tokens[:, :, None], tokens[:, None, :]]
        return self.table[index].permute(0, 3, 1, 2)


class ViT(nn.Module):
    """A Backbone (interfaces.py) that can also embed and encode a subset of the patches, which is all that MAE asks of it."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.cfg, self.patch, self.grid, self.leading = cfg, cfg.patch, cfg.grid(), int(cfg.class_token)
        self.dim, self.depth, heads = cfg.shape()
        self.checkpointing = False
        self.patch_embed = PatchEmbed(cfg.patch, cfg.channels, self.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim)) if cfg.class_token else None
        self.pos_embed = None
        if cfg.positions != "none":
            self.pos_embed = nn.Parameter(sincos_2d(self.dim, self.grid, leading=self.leading), requires_grad=cfg.positions == "learned")
        tables = {"none": 0, "shared": 1, "per_block": self.depth}[cfg.relative_positions]
        self.rel_pos_bias = nn.ModuleList(RelativePositionBias(self.grid, heads, leading=self.leading) for _ in range(tables))
        rates = [cfg.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]
        block = partial(Block, self.dim, heads, mlp_ratio=cfg.mlp_ratio, qkv_bias=cfg.qkv_bias, norm_eps=cfg.norm_eps, layer_scale=cfg.layer_scale)
        self.blocks = nn.ModuleList(block(drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(self.dim, eps=cfg.norm_eps) if cfg.final_norm else None
        initialize(self)

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps after blocks `taps` (0-based; the last one where empty) of normalised images (B, C, H, W), and the class token.

        norm: pass maps and class token through the final LayerNorm. ValueError where a tap is no block or the patch does not divide the image.
        """
        taps = taps or (self.depth - 1,)
        if not all(0 <= tap < self.depth for tap in taps) or list(taps) != sorted(set(taps)):
            raise ValueError(f"taps {tuple(taps)}: name blocks 0..{self.depth - 1} of this encoder, each once, in rising order")
        h, w = grid = grid_of((images.shape[2], images.shape[3]), self.patch)
        tokens = self.place(self.patch_embed(images), grid)
        outputs = self.encode(tokens, grid, taps=taps, norm=norm)
        maps = tuple(x[:, self.leading :].transpose(1, 2).reshape(len(x), self.dim, h, w) for x in outputs)
        return Features(maps, outputs[-1][:, 0] if self.leading else None)

    def place(self, tokens: Tensor, grid: tuple[int, int], ids: Tensor | None = None) -> Tensor:
        """Return (B, L, D): the embeddings of patches `ids` (B, M), all of the grid where None, with positions, behind the class token."""
        table = None if self.pos_embed is None else resample(self.pos_embed, self.grid, grid, leading=self.leading)
        if table is not None:
            places = table[:, self.leading :].expand(len(tokens), -1, -1)
            tokens = tokens + (places if ids is None else take(places, ids))
        if self.cls_token is None:
            return tokens
        cls = self.cls_token if table is None else self.cls_token + table[:, :1]
        return torch.cat([cls.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def encode(
        self, tokens: Tensor, grid: tuple[int, int], ids: Tensor | None = None, *, taps: Sequence[int] = (), norm: bool = True
    ) -> tuple[Tensor, ...]:
        """Return the tokens (B, L, D) after the blocks `taps`, the last one where empty; `ids` (B, M) as for `place`."""
        taps = taps or (self.depth - 1,)
        biases = self._biases(grid, ids)
        outputs = []
        for i, block in enumerate(self.blocks[: taps[-1] + 1]):
            bias = biases[i % len(biases)] if biases else None
            tokens = run(block, tokens, bias, recompute=self.checkpointing)
            if i in taps:
                outputs.append(self.norm(tokens) if norm and self.norm is not None else tokens)
        return tuple(outputs)

    def _biases(self, grid: tuple[int, int], ids: Tensor | None) -> list[Tensor]:
        """Return the relative-position bias of each table (none, one, or one per block)."""
        if len(self.rel_pos_bias) and grid != self.grid:
            raise ValueError(f"relative-position tables are made for a {self.grid} grid of patches, this image has {grid}; set image_size")
        tokens = None
        if ids is not None:
            tokens = F.pad(ids + self.leading, (self.leading, 0))  # the class token, where there is one, is token 0
        return [table(tokens) for table in self.rel_pos_bias]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.checkpointing = enable

    def layer_of(self, name: str) -> int:
        """Return 0 for the stem, 1..depth for the blocks, depth + 1 after them (the shared bias table too, as in BEiT)."""
        first, _, rest = name.partition(".")
        if first in ("cls_token", "pos_embed", "patch_embed"):
            return 0
        if first == "blocks" or (first == "rel_pos_bias" and self.cfg.relative_positions == "per_block"):
            return int(rest.split(".")[0]) + 1
        if first in ("norm", "rel_pos_bias"):
            return self.depth + 1
        raise ValueError(f"{name!r} is no parameter of this encoder")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of two and more dimensions that fine-tuning recipes spare from weight decay (MAE, BEiT)."""
        names = {"pos_embed", "cls_token"} | {f"rel_pos_bias.{i}.table" for i in range(len(self.rel_pos_bias))}
        return names & {name for name, _ in self.named_parameters()}


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Initialise in place as MAE does: Xavier uniform for linear layers and for the patch convolution seen as one, tokens N(0, 0.02)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for leaf in ("cls_token", "mask_token"):
            token = layer._parameters.get(leaf)
            if token is not None:
                nn.init.normal_(token, std=0.02)
