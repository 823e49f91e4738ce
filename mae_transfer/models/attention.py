"""Attention of the encoder: the fast kernel for each device, windows, and relative positions.

Legend: B batch, N = h * w patches in raster order, M of them given, T leading tokens (0 or 1 class token), L = T + M
tokens, D width, R heads, d = D / R, S side of a window in patches, W windows.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mae_transfer.core.positions import axis_offsets, relative_bias, relative_index, relative_rows, resample_relative

QkvBias = Literal["qkv", "qv", "none"]

# Whether the CPU has matrix units for bf16. Not every torch >= 2.6 has a public name for this test.
CPU_HAS_AMX: bool = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float | None = None) -> Tensor:
    """Return softmax(scale * q k^T + bias) v, (B, R, L, d).

    q, k and v are (B, R, L, d); the bias broadcasts to (B, R, L, L). scale: 1 / sqrt(d) if None.
    """
    cpu = q.device.type == "cpu"
    if cpu and q.dtype == torch.bfloat16:  # the CPU's fused kernel is slow in bf16 (docs/results/pretrain.md)
        return (_attend_in_parts if CPU_HAS_AMX else _attend_in_float32)(q, k, v, bias, scale)
    if cpu and bias is not None and bias.requires_grad:  # the CPU's fused kernel has no gradient for the bias
        return _attend_in_parts(q, k, v, bias, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype), scale=scale)


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """Compute the plain formula; in bf16 its products run on the matrix units."""
    logits = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
    weights: Tensor = (logits if bias is None else logits + bias).softmax(dim=-1).to(v.dtype)
    return weights @ v


def _attend_in_float32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """Run the fused kernel in float32, the faster choice without matrix units.

    Tensors saved for the backward pass are stored in bf16, except the row sums.
    """
    keep = saved_tensors_hooks(lambda x: x.bfloat16() if x.dim() == 4 else x, lambda x: x.float())
    with torch.autocast("cpu", enabled=False), nullcontext() if torch.compiler.is_compiling() else keep:
        out = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=None if bias is None else bias.float(), scale=scale
        )
        return out.to(v.dtype)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Return `parts` tensors (B, R, L, D / R) from x (B, L, parts * D)."""
    return tuple(part.unflatten(2, (heads, -1)).transpose(1, 2) for part in x.chunk(parts, dim=2))


class Attention(nn.Module):
    """Multi-head self-attention with windows, relative positions and a choice of biases."""

    folds_positions = False
    """Whether decomposed positions are channels instead of a bias (`fold_positions`)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qkv_bias: QkvBias = "qkv",
        window: int | None = None,
        decomposed: tuple[int, int] | None = None,
    ) -> None:
        """Create the layer.

        Args:
            dim: width D.
            heads: R.
            qkv_bias: which of query, key and value have a bias.
            window: attend within windows of S x S patches; None: over the whole image.
            decomposed: the image's (h, w) grid, to add decomposed relative positions; their tables fit the grid, or the
                window if there is one.
        """
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.proj = nn.Linear(dim, dim)
        h, w = (window, window) if window else decomposed or (0, 0)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * h - 1, dim // heads)) if decomposed else None
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, dim // heads)) if decomposed else None

    def forward(
        self, x: Tensor, bias: Tensor | None = None, *, last: int | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Return (B, L, D) for x (B, L, D), or (B, M, D) for the last M = `last` tokens only.

        bias (1 | B, R, M or L, L) is added to the logits; with windows it is (1, R, S * S, S * S). grid: (h, w) of the
        patches in x; needed for windows and decomposed positions.
        """
        if self.window is not None and grid is not None:
            # Padding is zero before the projection, so its queries, keys and values equal the bias: project first.
            qkv_bias, side = self._qkv_bias(), self.window
            qkv = to_windows(F.linear(x, self.qkv.weight), grid, side)
            q, k, v = split_heads(qkv if qkv_bias is None else qkv + qkv_bias.to(qkv.dtype), 3, self.heads)
            output: Tensor = self.proj(from_windows(self._attended(q, k, v, bias, grid=(side, side)), grid, side))
            return output
        q, k, v = self._projected(x, last)
        output = self.proj(self._attended(q, k, v, bias, grid=grid))
        return output

    def _qkv_bias(self) -> Tensor | None:
        """Return the bias (3 * D,) of queries, keys and values."""
        if self.q_bias is not None and self.v_bias is not None:
            return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.qkv.bias

    def _projected(self, x: Tensor, last: int | None) -> tuple[Tensor, ...]:
        """Return queries (B, R, L or M, D / R), keys and values (B, R, L, D / R)."""
        d, qkv_bias = x.shape[-1], self._qkv_bias()
        if last is None:
            return split_heads(F.linear(x, self.qkv.weight, qkv_bias), 3, self.heads)
        first, rest = (None, None) if qkv_bias is None else qkv_bias.tensor_split([d])
        queries = split_heads(F.linear(x[:, -last:], self.qkv.weight[:d], first), 1, self.heads)
        return *queries, *split_heads(F.linear(x, self.qkv.weight[d:], rest), 2, self.heads)

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, grid: tuple[int, int] | None
    ) -> Tensor:
        """Return the concatenated outputs of the heads, (B, L or M, D)."""
        if self.rel_pos_h is not None and self.rel_pos_w is not None and grid is not None:
            if self.folds_positions:
                return attend_folded(q, k, v, self.rel_pos_h, self.rel_pos_w, grid).transpose(1, 2).flatten(2)
            bias = decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, grid)
        return attend(q, k, v, bias).transpose(1, 2).flatten(2)


def to_windows(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Split tokens (B, h * w, D) into windows of `side` patches, (B * W, S * S, D).

    Windows that exceed the grid are padded with zeros, which attention does not mask (as in ViTDet).
    """
    h, w = grid
    x = x.view(len(x), h, w, -1)
    if h % side or w % side:
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
    b, height, width, d = x.shape
    return x.view(b, height // side, side, width // side, side, d).transpose(2, 3).reshape(-1, side * side, d)


def from_windows(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Undo `to_windows`: return the tokens (B, h * w, D) of windows (B * W, S * S, D)."""
    (h, w), d = grid, x.shape[-1]
    rows, columns = -(-h // side), -(-w // side)
    x = x.view(-1, rows, columns, side, side, d).transpose(2, 3).reshape(-1, rows * side, columns * side, d)
    return x[:, :h, :w].reshape(-1, h * w, d)


def decomposed_bias(q: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return q . rows[row offset] + q . columns[column offset], (B, R, N, N), for q (B, R, h * w, d).

    The tables are (2S - 1, d); one for another side is resampled linearly. Source: MViTv2 (2112.01526, section 4.1), as
    used in ViTDet (2203.16527).
    """
    along_h, along_w = _along_axes(q, rows, columns, grid)
    return (along_h[..., :, None] + along_w[..., None, :]).flatten(4).flatten(2, 3)


def attend_folded(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return attend(q, k, v, decomposed_bias(...)), (B, R, N, d), without a tensor of N x N values.

    The bias of a key in row y and column x is the y-th and the x-th of h + w numbers that each query has. They become
    channels of the query; those of the key are 1 in place y and x and 0 elsewhere.
    """
    d, (h, w) = q.shape[-1], grid
    along = torch.cat(_along_axes(q, rows, columns, grid), dim=-1).flatten(2, 3)
    eyes = [torch.eye(side, dtype=k.dtype, device=k.device) for side in grid]
    places = torch.cat([eyes[0][:, None].expand(h, w, h), eyes[1].expand(h, w, w)], dim=-1).flatten(0, 1)
    q = torch.cat([q, along * d**0.5], dim=-1)
    k = torch.cat([k, places.expand(*k.shape[:2], -1, -1)], dim=-1)
    return attend(q, k, F.pad(v, (0, h + w)), None, scale=d**-0.5)[..., :d]


def _along_axes(q: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return q . rows[row offset], (B, R, h, w, h), and q . columns[column offset], (B, R, h, w, w)."""
    h, w = grid
    q = q.reshape(*q.shape[:2], h, w, -1)
    along_h = torch.einsum("brhwc,hkc->brhwk", q, axis_offsets(rows, h).to(q.dtype))
    along_w = torch.einsum("brhwc,wkc->brhwk", q, axis_offsets(columns, w).to(q.dtype))
    return along_h, along_w


def fold_positions(model: nn.Module) -> None:
    """Compute decomposed relative positions without a bias; ValueError if the model has none."""
    layers = [layer for layer in model.modules() if isinstance(layer, Attention) and layer.rel_pos_h is not None]
    if not layers:
        raise ValueError("run.fold_positions = True, but no block has decomposed relative positions: remove it")
    for layer in layers:
        layer.folds_positions = True


class RelativePositionBias(nn.Module):
    """A table of biases indexed by the offset between two patches (BEiT); initially zero."""

    def __init__(self, grid: tuple[int, int], heads: int, *, leading: int, window: int | None = None) -> None:
        """Create a table for an image's (h, w) grid, or for windows of S x S patches of any image."""
        super().__init__()
        self.grid, self.leading, self.window = (window, window) if window else grid, leading, window
        self.table = nn.Parameter(torch.zeros(relative_rows(self.grid, leading=leading), heads))

    def forward(self, grid: tuple[int, int], ids: Tensor | None = None) -> Tensor:
        """Return the bias (1 | B, R, L, L) for the class token, if there is one, and patches `ids` (B, M) of the grid.

        ids None: all patches. For another grid the table is resampled (core.positions.resample_relative).
        """
        grid = self.grid if self.window else grid
        table = resample_relative(self.table, self.grid, grid, leading=self.leading)
        if ids is None:
            return relative_bias(table, grid, leading=self.leading)[None]
        return table[relative_index(grid, ids, leading=self.leading)].permute(0, 3, 1, 2)
