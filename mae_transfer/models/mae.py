"""The masked autoencoder (He et al., arXiv 2111.06377), in the order of the paper's section 3, and CrossMAE's decoder.

Legend: B batch, N = h * w patches in raster order, V visible, M predicted (by default all N - V hidden ones), T leading
tokens (0 or 1 class token), D encoder width, E decoder width, R decoder heads, P target size per patch. The mask
consists of indices (interfaces.Mask), not booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mae_transfer.bounds import Few, FewOrNone, Portion, Width
from mae_transfer.config import Schema
from mae_transfer.core.patches import grid_of, put, take
from mae_transfer.core.positions import resample, sincos_2d
from mae_transfer.interfaces import Mask
from mae_transfer.models.attention import attend, split_heads
from mae_transfer.models.initialize import initialize
from mae_transfer.models.vit import NORM_EPS, Block, ViT, ViTConfig, check_width, mark_static, recomputed, run

Corrupt = Callable[[Tensor, Mask, Tensor], Tensor]
"""(embeddings (B, N, D), mask, mask token (1, 1, D)) -> input of the encoder (B, N, D)."""


class DecoderConfig(Schema):
    """The decoder of tables 1a and 1b, or CrossMAE's (Fu et al., arXiv 2401.14391)."""

    later = frozenset({"kind", "share"})

    kind: Literal["self", "cross"] = "self"
    """"self": blocks of self-attention over visible and hidden patches (MAE). "cross": hidden patches attend to the
    visible ones only, and each block to its own mixture of the features of all encoder blocks (CrossMAE)."""
    share: Portion = 1.0
    """Share of the hidden patches that a training step predicts, drawn anew for each crop. Evaluation predicts all.
    CrossMAE's "25 %" counts all patches: it is 1/3 at a mask ratio of 75 %."""
    depth: FewOrNone = 8
    """Number of blocks; 0: one linear layer on the encoder's output, which needs `corrupt` to encode hidden patches."""
    dim: Width = 512
    """Width E."""
    heads: Few = 16
    """Attention heads."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.depth:
            check_width(self.dim, self.heads)
        elif self.kind == "cross":
            raise ValueError("kind = 'cross' needs blocks: set depth to 1 or more (CrossMAE: 12)")
        return self

    def predicted(self, hidden: int) -> int | None:
        """Return how many of this number of hidden patches a training step predicts; None: all of them.

        ValueError if it is none of them.
        """
        if self.share == 1:
            return None
        if not (count := round(self.share * hidden)):
            raise ValueError(
                f"decoder.share = {self.share:g} predicts none of {hidden} hidden patches: set {1 / hidden:.2g} or more"
            )
        return count


class MAEConfig(Schema):
    """Encoder, decoder and the encoder's input at hidden patches."""

    encoder: ViTConfig = ViTConfig()
    """The backbone; transfer keeps it."""
    decoder: DecoderConfig = DecoderConfig()
    """The decoder; transfer discards it."""
    corrupt: Literal["mask_token", "bert"] | None = None
    """Encoder input at hidden patches; None: no input (MAE). "mask_token": a learned token (table 1c, BEiT, SimMIM).
    "bert": that token in 80 % of cases, another patch in 10 %, the patch itself in 10 % (masked patch prediction of the
    ViT paper)."""

    @model_validator(mode="after")
    def _decoder_fits(self) -> Self:
        if self.corrupt and self.decoder.kind == "cross":
            raise ValueError(
                f"corrupt = {self.corrupt!r} encodes the hidden patches, but decoder.kind = 'cross' attends to visible "
                "ones only: set corrupt=None, or decoder.kind=self"
            )
        return self

    def name(self) -> str:
        """Return the name of the encoder in tables."""
        return self.encoder.name()


def mask_token(tokens: Tensor, mask: Mask, token: Tensor) -> Tensor:
    """Replace the embedding of every hidden patch by the mask token."""
    return put(token.expand(*mask.ids_masked.shape, -1), mask.ids_masked, into=tokens)


def bert(tokens: Tensor, mask: Mask, token: Tensor) -> Tensor:
    """Replace 80 % of hidden embeddings by the mask token, 10 % by another patch; keep 10 % (ViT paper, B.1.2)."""
    hidden = mask.ids_masked
    draw = torch.rand(*hidden.shape, 1, device=tokens.device)
    offset = torch.randint(
        1, tokens.shape[1], hidden.shape, device=tokens.device
    )  # never 0, so the patch is another one
    other = take(tokens, (hidden + offset) % tokens.shape[1])
    seen = torch.where(draw < 0.8, token.to(tokens.dtype), torch.where(draw < 0.9, other, take(tokens, hidden)))
    return put(seen, hidden, into=tokens)


CORRUPTIONS: dict[str, Corrupt] = {"mask_token": mask_token, "bert": bert}


class Decoder(nn.Module):
    """A narrow transformer that predicts the hidden patches.

    Tokens are not unshuffled: the transformer is permutation-equivariant, and position embeddings mark each patch.
    """

    def __init__(self, cfg: DecoderConfig, encoder: ViT, out: int, *, has_mask_token: bool) -> None:
        super().__init__()
        self.grid, self.leading, self.checkpointing = encoder.grid, encoder.leading, False
        self.embed = nn.Linear(encoder.dim, cfg.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, cfg.dim)) if has_mask_token else None
        self.pos_embed = nn.Parameter(sincos_2d(cfg.dim, self.grid, leading=self.leading), requires_grad=False)
        self.blocks = nn.ModuleList(Block(cfg.dim, cfg.heads) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.dim, eps=NORM_EPS)
        self.pred = nn.Linear(cfg.dim, out)

    def forward(self, features: Sequence[Tensor], mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Return the predictions (B, M, P).

        The last features are (B, T + V, D), or (B, T + N, D) if all patches were encoded; others are not read.
        """
        table = resample(self.pos_embed, self.grid, grid, leading=self.leading)
        positions = table[:, self.leading :].expand(len(mask.ids_keep), -1, -1)
        leading, patches = self.embed(features[-1]).tensor_split([self.leading], dim=1)
        seen = patches if self.mask_token is not None else take(patches, mask.ids_keep)
        hidden = self.mask_token if self.mask_token is not None else take(patches, mask.ids_predicted)
        x = torch.cat(
            [
                leading + table[:, : self.leading],
                seen + take(positions, mask.ids_keep),
                hidden + take(positions, mask.ids_predicted),
            ],
            dim=1,
        )
        predicted = mask.ids_predicted.shape[1]
        for block in self.blocks:
            x = run(block, x, last=predicted if block is self.blocks[-1] else None, recompute=self.checkpointing)
        prediction: Tensor = self.pred(self.norm(x))
        return prediction


class LinearDecoder(nn.Module):
    """The decoder of depth 0: a linear layer on the encoder's output at the hidden patches (BEiT, SimMIM)."""

    def __init__(self, encoder: ViT, out: int) -> None:
        super().__init__()
        self.leading = encoder.leading
        self.pred = nn.Linear(encoder.dim, out)

    def forward(self, features: Sequence[Tensor], mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Return the predictions (B, M, P) from the last features (B, T + N, D), of all patches."""
        prediction: Tensor = self.pred(take(features[-1][:, self.leading :], mask.ids_predicted))
        return prediction


class CrossAttention(nn.Module):
    """Multi-head attention of tokens of width E to features of width D."""

    def __init__(self, dim: int, heads: int, *, reads: int) -> None:
        """Create the layer for tokens of width `dim` = E and features of width `reads` = D."""
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(reads, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Return (B, M, E) for tokens x (B, M, E) and features (B, L, D)."""
        q, k, v = *split_heads(self.q(x), 1, self.heads), *split_heads(self.kv(features), 2, self.heads)
        output: Tensor = self.proj(attend(q, k, v, None).transpose(1, 2).flatten(2))
        return output


class CrossBlock(nn.Module):
    """A pre-norm transformer block with cross-attention in place of self-attention (CrossMAE, figure 4b)."""

    def __init__(self, dim: int, heads: int, *, reads: int) -> None:
        """Create the block for tokens of width `dim` = E and features of width `reads` = D."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_features = nn.LayerNorm(reads, eps=NORM_EPS)
        self.attn = CrossAttention(dim, heads, reads=reads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Return (B, M, E) for tokens x (B, M, E) and features (B, L, D)."""
        x = x + self.attn(self.norm1(x), self.norm_features(features))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CrossDecoder(nn.Module):
    """CrossMAE's decoder: patches are predicted independently of each other (arXiv 2401.14391, section 3 and A.3).

    Inter-block attention gives each block a weighted sum of the embeddings and the outputs of all encoder blocks; the
    weights are learned, and a layer norm follows, in place of the encoder's final norm.
    """

    def __init__(self, cfg: DecoderConfig, encoder: ViT, out: int) -> None:
        super().__init__()
        self.grid, self.leading, self.checkpointing = encoder.grid, encoder.leading, False
        self.mask_token = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.pos_embed = nn.Parameter(sincos_2d(cfg.dim, self.grid, leading=self.leading), requires_grad=False)
        maps = encoder.depth + 1
        self.mix = nn.Parameter(torch.randn(cfg.depth, maps) * maps**-0.5)
        self.blocks = nn.ModuleList(CrossBlock(cfg.dim, cfg.heads, reads=encoder.dim) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.dim, eps=NORM_EPS)
        self.pred = nn.Linear(cfg.dim, out)

    def forward(self, features: Sequence[Tensor], mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Return the predictions (B, M, P) from the embeddings and the output of each encoder block, (B, T + V, D)."""
        table = resample(self.pos_embed, self.grid, grid, leading=self.leading)
        positions = table[:, self.leading :].expand(len(mask.ids_keep), -1, -1)
        x = self.mask_token + take(positions, mask.ids_predicted)
        mixed = (self.mix @ torch.stack(list(features)).flatten(1)).view(-1, *features[0].shape)
        for block, own in zip(self.blocks, mixed.unbind(), strict=True):
            mark_static(block, x, own)
            x = recomputed(block, self.checkpointing)(x, own)
        prediction: Tensor = self.pred(self.norm(x))
        return prediction


class MAE(nn.Module):
    """Encoder and decoder. A Target (interfaces.py) defines what is predicted; the model knows only its width."""

    def __init__(self, cfg: MAEConfig, out: int) -> None:
        """Create the model for predictions of `out` = P values per patch (Target.dim)."""
        super().__init__()
        if not cfg.decoder.depth and not cfg.corrupt:
            raise ValueError(
                "decoder.depth = 0 needs corrupt = 'mask_token', because the encoder must have the hidden patches as "
                "input"
            )
        self.cfg = cfg
        self.corrupt = CORRUPTIONS[cfg.corrupt] if cfg.corrupt else None
        self.encoder = ViT(cfg.encoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.encoder.dim)) if cfg.corrupt else None
        self.decoder: Decoder | CrossDecoder | LinearDecoder
        if cfg.decoder.kind == "cross":
            self.decoder = CrossDecoder(cfg.decoder, self.encoder, out)
            if self.encoder.norm is not None:
                self.encoder.norm.requires_grad_(False)  # not read: it stays a norm without parameters
        elif cfg.decoder.depth:
            self.decoder = Decoder(cfg.decoder, self.encoder, out, has_mask_token=not cfg.corrupt)
        else:
            self.decoder = LinearDecoder(self.encoder, out)
        initialize(self, cfg.encoder.init)

    def forward(self, images: Tensor, mask: Mask) -> Tensor:
        """Return the predictions (B, M, P) for the patches mask.ids_predicted of normalised images (B, C, H, W)."""
        grid = grid_of((images.shape[2], images.shape[3]), self.encoder.patch)
        prediction: Tensor = self.decoder(self.encode(images, mask, grid), mask, grid)
        return prediction

    def encode(self, images: Tensor, mask: Mask, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the features that the decoder reads, of the visible patches, (B, T + V, D) each.

        They are the encoder's output; for CrossMAE its input and the output of each block, without the final norm. With
        `corrupt` they are (B, T + N, D), of all patches.
        """
        encoder = self.encoder
        if self.corrupt is not None and self.mask_token is not None:
            tokens = self.corrupt(encoder.patch_embed(images), mask, self.mask_token)
            return encoder.encode(encoder.place(tokens, grid), grid)
        tokens = encoder.place(encoder.patch_embed(images, mask.ids_keep), grid, mask.ids_keep)
        if self.cfg.decoder.kind == "cross":
            return tokens, *encoder.encode(tokens, grid, mask.ids_keep, taps=range(encoder.depth), norm=False)
        return encoder.encode(tokens, grid, mask.ids_keep)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.checkpointing = enable
