"""The encoder: a Vision Transformer with the options that transfer needs.

Parameters have the names of the released MAE weights.

Legend: B batch, C channels, H x W pixels, p patch side, N = h * w patches in raster order, M of them selected, T
leading tokens (0 or 1 class token), L = T + M tokens, D width, R heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from timm.layers.drop import DropPath as TimmDropPath
from timm.layers.drop import drop_path
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae_transfer.bounds import BelowOne, Epsilon, Factor, Few, FewOrNone, Pixels, Sides, Width
from mae_transfer.config import Schema
from mae_transfer.core.patches import grid_of, patchify, sides, take
from mae_transfer.core.positions import resample, sincos_2d
from mae_transfer.interfaces import Backbone, Features
from mae_transfer.models.attention import Attention, Bias, QkvBias, RelativePositionBias, select_samples
from mae_transfer.models.initialize import Init, initialize

NORM_EPS = 1e-6  # epsilon of every LayerNorm in the MAE release

SIZES: dict[str, tuple[int, int, int]] = {  # width, depth, heads
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}


def check_width(dim: int | None, heads: int | None) -> None:
    """Raise ValueError if a width does not fit the heads or the position table.

    None means unknown: weights do not store the number of heads.
    """
    if dim and heads and dim % heads:
        raise ValueError(f"heads = {heads} does not divide dim = {dim}: set a divisor of {dim}")
    if dim and dim % 4:
        raise ValueError(
            f"dim = {dim}: the 2-D sin-cos table of positions needs a multiple of 4 (sine and cosine of two axes)"
        )


class ViTConfig(Schema):
    """The architecture of an encoder."""

    later = frozenset({"skip_dropped"})

    size: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"] | None = "vit_base"
    """A named size; None: `dim`, `depth` and `heads` set the size."""
    dim: Width | None = None
    """Width D; overrides the named size."""
    depth: Few | None = None
    """Number of blocks; overrides the named size."""
    heads: Few | None = None
    """Attention heads; overrides the named size. Weights do not store this number (MoCo v3's ViT-S has 12)."""
    patch: Pixels = 16
    """Patch side p in pixels."""
    image_size: Sides = 224
    """Pixels (one side, or H and W) of the position table; for images of another size it is resampled."""
    channels: Few = 3
    """Input channels C."""
    mlp_ratio: Factor = 4.0
    """Width of the MLP divided by D."""
    class_token: bool = True
    """Whether a class token precedes the patches (dense tasks have none)."""
    final_norm: bool = True
    """Whether the encoder ends with a LayerNorm (dense tasks have none)."""
    positions: Literal["fixed", "learned", "none"] = "fixed"
    """Absolute positions: MAE's sin-cos table, fixed or trained ("learned"), or none."""
    antialias: bool = True
    """Whether absolute positions are resampled with antialiasing (timm) or without (detectron2's ViTDet)."""
    relative_positions: Literal["none", "shared", "per_block", "decomposed"] = "none"
    """Relative positions, initially zero. "shared": one bias table for all blocks (BEiT pretraining); with windows, one
    for windowed and one for global blocks (Li et al. 2111.11429). "per_block": a bias table per block (BEiT
    fine-tuning). "decomposed": q . (row + column) in each block (ViTDet, SAM)."""
    windows: Pixels | None = None
    """Side in patches of the windows for attention; images are zero-padded to a multiple (ViTDet: 14; MIMDet: 16).
    None: every block attends to the whole image."""
    global_blocks: tuple[FewOrNone, ...] = ()
    """Blocks (0-based) that attend to the whole image if `windows` is set (ViTDet-B: 2, 5, 8, 11)."""
    qkv_bias: QkvBias = "qkv"
    """Which of query, key and value have a bias (BEiT: query and value)."""
    norm_eps: Epsilon = NORM_EPS
    """Epsilon of every LayerNorm (transformers' ViT and BEiT: 1e-12)."""
    layer_scale: Factor | None = None
    """Initial value of LayerScale; None: no LayerScale."""
    drop_path: BelowOne = 0.0
    """Rate of stochastic depth in the last block; it grows linearly from 0 in the first."""
    skip_dropped: bool = False
    """Whether a block computes only the samples that stochastic depth keeps, a fixed number per batch (DINOv2). It
    rounds the rate of a block to a multiple of 1 / images per device, so numbers depend on `run.device_batch`, and
    draws other samples from the same seed. It pays from a `drop_path` of about 0.2. Transfer does not inherit it."""
    init: Init = "mae"
    """Initialisation: as in the code of MAE, BEiT, SimMIM, MaskFeat, ViT, DINO or MoCo v3 (see the table in
    models/initialize.py)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.class_token and (self.windows or self.relative_positions == "decomposed"):
            raise ValueError(
                f"windows={self.windows}, relative_positions={self.relative_positions!r} cannot have a class token: "
                "set class_token=False"
            )
        if self.global_blocks and not self.windows:
            raise ValueError(
                f"global_blocks={self.global_blocks} has no effect without windows; set `windows` (ViTDet: 14)"
            )
        if self.skip_dropped and not self.drop_path:
            raise ValueError("skip_dropped=True has no effect without drop_path; set `drop_path` (0.2 or more pays)")
        named = SIZES[self.size] if self.size else (None, None, None)
        check_width(self.dim or named[0], self.heads or named[2])
        return self

    def window_of(self, block: int) -> int | None:
        """Return the side of this block's windows; None if it attends to the whole image."""
        return None if block in self.global_blocks else self.windows

    def bias_tables(self) -> tuple[list[int | None], list[int]]:
        """Return the window of each bias table (None: the image's grid) and the table index of each block.

        Both are empty if there are no tables of relative-position biases.
        """
        # shape() would fail here while a file is read, because the number of heads is unknown then.
        depth = self.depth or (SIZES[self.size][1] if self.size else 0)
        windows = [self.window_of(i) for i in range(depth)]
        if self.relative_positions == "per_block":
            return windows, list(range(len(windows)))
        if self.relative_positions == "shared":
            kinds = sorted(set(windows), key=lambda side: side or 0)  # global blocks first, then windowed ones
            return list(kinds), [kinds.index(window) for window in windows]
        return [], []

    def shape(self) -> tuple[int, int, int]:
        """Return width, depth and heads; ValueError if one is missing, or `global_blocks` is out of range."""
        named = SIZES[self.size] if self.size else (0, 0, 0)
        dim, depth, heads = self.dim or named[0], self.depth or named[1], self.heads or named[2]
        if min(dim, depth, heads) < 1:
            raise ValueError(f"dim {dim}, depth {depth}, heads {heads}: set a size ({', '.join(SIZES)}) or all three")
        if not all(0 <= block < depth for block in self.global_blocks):
            raise ValueError(f"global_blocks {self.global_blocks}: give blocks 0..{depth - 1} of this encoder")
        return dim, depth, heads

    def name(self) -> str:
        """Return the name used in tables: "vit_base/16", or "vit-192x6/8" with width, depth and patch."""
        dim, depth, _ = self.shape()
        return f"{self.size or f'vit-{dim}x{depth}'}/{self.patch}"

    def grid(self) -> tuple[int, int]:
        """Return the (h, w) grid of patches at `image_size`."""
        return grid_of(sides(self.image_size), self.patch)


class PatchEmbed(nn.Module):
    """A linear map of each patch. The weights have the layout of a convolution; hidden patches are not computed."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the embeddings (B, M, D) of patches `ids` (B, M) of images (B, C, H, W); of all N if ids is None.

        They have the type of the weights, float32, also under autocast, because they start the residual stream.
        """
        patches, weight = patchify(images, self.proj.kernel_size[0]), self.proj.weight
        if ids is not None:
            patches = take(patches, ids)
        return F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias).to(weight.dtype)


class DropPath(TimmDropPath):
    """Stochastic depth per sample. All rates share one compiled graph; timm's code gives one graph per rate."""

    keep: Tensor
    """Share of the samples that are kept, (). A tensor is an input of the graph, a number would be its constant."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.register_buffer("keep", torch.tensor(1 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.compiler.is_compiling():
            kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < self.keep
            return x * (kept / self.keep).to(x.dtype)
        out: Tensor = drop_path(x, self.drop_prob, self.training)
        return out


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: QkvBias = "qkv",
        window: int | None = None,
        decomposed: tuple[int, int] | None = None,
        norm_eps: float = NORM_EPS,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        skip_dropped: bool = False,
    ) -> None:
        super().__init__()
        self.rate_skipped = drop_path if skip_dropped else 0.0
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias, window=window, decomposed=decomposed)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        x: Tensor,
        bias: Bias | None = None,
        *,
        last: int | None = None,
        grid: tuple[int, int] | None = None,
        kept: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return (B, L, D) for x (B, L, D), or (B, M, D) for the last M = `last` tokens only; see Attention.

        kept: the samples that each of the two branches computes (see `draw`); None: all.
        """
        if kept is not None:
            return self._forward_kept(x, bias, *kept, last=last, grid=grid)
        attended = self.attn(self.norm1(x), bias, last=last, grid=grid)
        x = (x if last is None else x[:, -last:]) + self.drop_path(self.ls1(attended))
        out: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return out

    @property
    def skips(self) -> bool:
        """Whether it trains on some of the samples only."""
        return self.training and self.rate_skipped > 0

    def kept(self, samples: int) -> int:
        """Return how many samples of a training batch each branch computes."""
        return max(1, round(samples * (1 - self.rate_skipped)))

    def draw(self, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw the samples of a training batch that each branch computes: two index tensors (K,)."""
        first, second = (torch.randperm(samples, device=device)[: self.kept(samples)] for _ in range(2))
        return first, second

    def _forward_kept(
        self,
        x: Tensor,
        bias: Bias | None,
        ids: Tensor,
        others: Tensor,
        *,
        last: int | None,
        grid: tuple[int, int] | None,
    ) -> Tensor:
        """Compute each branch for some of the samples only (DINOv2, arXiv 2304.07193, section 5)."""
        weight = len(x) / len(ids)
        own = select_samples(bias, ids)
        attended = self.ls1(self.attn(self.norm1(x.index_select(0, ids)), own, last=last, grid=grid))
        x = x if last is None else x[:, -last:]
        x = x.index_add(0, ids, attended.to(x.dtype), alpha=weight)
        changed = self.ls2(self.mlp(self.norm2(x.index_select(0, others))))
        return x.index_add(0, others, changed.to(x.dtype), alpha=weight)


def run(
    block: nn.Module,
    x: Tensor,
    bias: Bias | None = None,
    *,
    last: int | None = None,
    grid: tuple[int, int] | None = None,
    recompute: bool,
) -> Tensor:
    """Return block(x, bias, last=last, grid=grid); recompute: compute the activations again in the backward pass.

    Skipped samples are drawn before the block, so that it has static sizes and recomputes the same samples.
    """
    kept = block.draw(len(x), x.device) if isinstance(block, Block) and block.skips else None
    mark_static(block, x, *kept or ())
    output: Tensor = recomputed(block, recompute)(x, bias, last=last, grid=grid, kept=kept)
    return output


def mark_static(block: nn.Module, *inputs: Tensor) -> None:
    """Compile a graph for each shape that the inputs have in training, if the block is compiled.

    Otherwise torch would compile one for any length once two lists of blocks, as encoder and decoder, have shown two.
    """
    if block.training and block._compiled_call_impl is not None:
        for tensor in inputs:
            torch._dynamo.mark_static(tensor)


def recomputed(block: nn.Module, recompute: bool) -> Callable[..., Tensor]:
    """Return the block; if `recompute`, it computes its activations again in the backward pass."""
    return partial(checkpoint, block, use_reentrant=False) if recompute and torch.is_grad_enabled() else block


class ViT(Backbone):
    """An encoder that can also embed and encode a subset of the patches, as MAE needs."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.cfg, self.patch, self.grid, self.leading = cfg, cfg.patch, cfg.grid(), int(cfg.class_token)
        self.dim, self.depth, heads = cfg.shape()
        self.checkpointing = False
        self.patch_embed = PatchEmbed(cfg.patch, cfg.channels, self.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim)) if cfg.class_token else None
        self.pos_embed = None
        if cfg.positions != "none":
            self.pos_embed = nn.Parameter(
                sincos_2d(self.dim, self.grid, leading=self.leading), requires_grad=cfg.positions == "learned"
            )
        windows = [cfg.window_of(i) for i in range(self.depth)]
        kinds, self.table_of = cfg.bias_tables()
        table = partial(RelativePositionBias, self.grid, heads, leading=self.leading)
        self.rel_pos_bias = nn.ModuleList(table(window=window) for window in kinds)
        rates = [cfg.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]
        decomposed = self.grid if cfg.relative_positions == "decomposed" else None
        self.blocks = nn.ModuleList(
            Block(
                self.dim, heads, mlp_ratio=cfg.mlp_ratio, qkv_bias=cfg.qkv_bias, window=window, decomposed=decomposed,
                norm_eps=cfg.norm_eps, layer_scale=cfg.layer_scale, drop_path=rate,
                skip_dropped=cfg.skip_dropped,
            )
            for window, rate in zip(windows, rates, strict=True)
        )  # fmt: skip
        self.norm = nn.LayerNorm(self.dim, eps=cfg.norm_eps) if cfg.final_norm else None
        initialize(self, cfg.init)

    def forward(self, images: Tensor, *, taps: Sequence[int] = (), norm: bool = False) -> Features:
        """Return the maps after the blocks `taps` and the class token, both through the final norm if `norm`.

        ValueError: a tap is not a block, or the patch does not divide the image.
        """
        taps = taps or (self.depth - 1,)
        if not all(0 <= tap < self.depth for tap in taps) or list(taps) != sorted(set(taps)):
            raise ValueError(
                f"taps {tuple(taps)}: give blocks 0..{self.depth - 1} of this encoder, each once, in rising order"
            )
        h, w = grid = grid_of((images.shape[2], images.shape[3]), self.patch)
        tokens = self.place(self.patch_embed(images), grid)
        outputs = self.encode(tokens, grid, taps=taps, norm=norm)
        maps = tuple(x[:, self.leading :].transpose(1, 2).reshape(len(x), self.dim, h, w) for x in outputs)
        cls_tokens = tuple(x[:, 0] for x in outputs) if self.leading else ()
        return Features(maps, cls_tokens[-1] if cls_tokens else None, cls_tokens)

    def place(self, tokens: Tensor, grid: tuple[int, int], ids: Tensor | None = None) -> Tensor:
        """Return (B, L, D): the class token, if there is one, and the embeddings of patches `ids`, with positions.

        ids: (B, M); None: all patches of the grid.
        """
        table = None
        if self.pos_embed is not None:
            table = resample(self.pos_embed, self.grid, grid, leading=self.leading, antialias=self.cfg.antialias)
        if table is not None:
            positions = table[:, self.leading :].expand(len(tokens), -1, -1)
            tokens = tokens + (positions if ids is None else take(positions, ids))
        if self.cls_token is None:
            return tokens
        cls = self.cls_token if table is None else self.cls_token + table[:, :1]
        return torch.cat([cls.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def encode(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        ids: Tensor | None = None,
        *,
        taps: Sequence[int] = (),
        norm: bool = True,
    ) -> tuple[Tensor, ...]:
        """Return the tokens (B, L, D) after each block in `taps` (empty: the last one); `ids` (B, M) as in `place`.

        ValueError for `ids` with windows or decomposed positions, which need the full grid.
        """
        taps = taps or (self.depth - 1,)
        if ids is not None and (self.cfg.windows or self.cfg.relative_positions == "decomposed"):
            raise ValueError(
                "windows and decomposed positions need every patch: pretrain without them and add them at transfer "
                "(changes)"
            )
        biases = [table(grid, ids) for table in self.rel_pos_bias]
        outputs = []
        for i, block in enumerate(self.blocks[: taps[-1] + 1]):
            bias = biases[self.table_of[i]] if biases else None
            tokens = run(block, tokens, bias, grid=grid, recompute=self.checkpointing)
            if i in taps:
                outputs.append(self.norm(tokens) if norm and self.norm is not None else tokens)
        return tuple(outputs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = enable

    def name(self) -> str:
        return self.cfg.name()

    def layer_of(self, name: str) -> int:
        """Return 0 for the stem, 1..depth for the blocks, depth + 1 after them (shared bias tables too, as in BEiT)."""
        first, _, rest = name.partition(".")
        if first in ("cls_token", "pos_embed", "patch_embed"):
            return 0
        if first == "blocks" or (first == "rel_pos_bias" and self.cfg.relative_positions == "per_block"):
            return int(rest.split(".")[0]) + 1
        if first in ("norm", "rel_pos_bias"):
            return self.depth + 1
        raise ValueError(f"{name!r} is not a parameter of this encoder")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of two or more dimensions without weight decay at transfer, if the config sets none.

        MAE and BEiT exempt the position table and the class token, MIMDet and timm the bias tables. ViTDet's rel_pos_h
        and rel_pos_w decay.
        """
        names = {"pos_embed", "cls_token"} | {f"rel_pos_bias.{i}.table" for i in range(len(self.rel_pos_bias))}
        return names & {name for name, _ in self.named_parameters()}
