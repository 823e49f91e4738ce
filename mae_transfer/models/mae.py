"""The masked autoencoder (He et al., arXiv 2111.06377), in the order of the paper's section 3.

Legend: B batch, N = h * w patches in raster order, V visible, M = N - V hidden, T leading tokens (0 or 1 class token),
D encoder width, E decoder width, P target size per patch. The mask consists of indices (interfaces.Mask), not booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer.bounds import Few, FewOrNone, Width
from mae_transfer.config import Schema
from mae_transfer.core.patches import grid_of, put, take
from mae_transfer.core.positions import resample, sincos_2d
from mae_transfer.interfaces import Mask
from mae_transfer.models.initialize import initialize
from mae_transfer.models.vit import NORM_EPS, Block, ViT, ViTConfig, check_width, run

Corrupt = Callable[[Tensor, Mask, Tensor], Tensor]
"""(embeddings (B, N, D), mask, mask token (1, 1, D)) -> input of the encoder (B, N, D)."""


class DecoderConfig(Schema):
    """The decoder of tables 1a and 1b."""

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
        return self


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

    def forward(self, tokens: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Return the predictions (B, M, P) for the hidden patches.

        The encoded tokens are (B, T + V, D), or (B, T + N, D) if all patches were encoded.
        """
        table = resample(self.pos_embed, self.grid, grid, leading=self.leading)
        positions = table[:, self.leading :].expand(len(tokens), -1, -1)
        leading, patches = self.embed(tokens).tensor_split([self.leading], dim=1)
        seen = patches if self.mask_token is not None else take(patches, mask.ids_keep)
        hidden = self.mask_token if self.mask_token is not None else take(patches, mask.ids_masked)
        x = torch.cat(
            [
                leading + table[:, : self.leading],
                seen + take(positions, mask.ids_keep),
                hidden + take(positions, mask.ids_masked),
            ],
            dim=1,
        )
        hidden_only = mask.ids_masked.shape[1]
        for block in self.blocks:
            x = run(block, x, last=hidden_only if block is self.blocks[-1] else None, recompute=self.checkpointing)
        prediction: Tensor = self.pred(self.norm(x))
        return prediction


class LinearDecoder(nn.Module):
    """The decoder of depth 0: a linear layer on the encoder's output at the hidden patches (BEiT, SimMIM)."""

    def __init__(self, encoder: ViT, out: int) -> None:
        super().__init__()
        self.leading = encoder.leading
        self.pred = nn.Linear(encoder.dim, out)

    def forward(self, tokens: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Return the predictions (B, M, P) from the encoded tokens (B, T + N, D) of all patches."""
        prediction: Tensor = self.pred(take(tokens[:, self.leading :], mask.ids_masked))
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
        self.decoder = (
            Decoder(cfg.decoder, self.encoder, out, has_mask_token=not cfg.corrupt)
            if cfg.decoder.depth
            else LinearDecoder(self.encoder, out)
        )
        initialize(self, cfg.encoder.init)

    def forward(self, images: Tensor, mask: Mask) -> Tensor:
        """Return the predictions (B, M, P) for the hidden patches of normalised images (B, C, H, W)."""
        grid = grid_of((images.shape[2], images.shape[3]), self.encoder.patch)
        prediction: Tensor = self.decoder(self.encode(images, mask, grid), mask, grid)
        return prediction

    def encode(self, images: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """Return the encoded tokens: (B, T + V, D) of the visible patches, or (B, T + N, D) with `corrupt`."""
        encoder = self.encoder
        if self.corrupt is None or self.mask_token is None:
            tokens = encoder.place(encoder.patch_embed(images, mask.ids_keep), grid, mask.ids_keep)
            return encoder.encode(tokens, grid, mask.ids_keep)[-1]
        tokens = self.corrupt(encoder.patch_embed(images), mask, self.mask_token)
        return encoder.encode(encoder.place(tokens, grid), grid)[-1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.checkpointing = enable
