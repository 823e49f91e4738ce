"""Attention of the encoder: the fast kernel for each device, windows, and relative positions.

Legend: B batch, N = h * w patches in raster order, M of them given, T leading tokens (0 or 1 class token), L = T + M
tokens, D width, R heads, d = D / R, S side of a window in patches, W windows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mae_transfer.core.positions import axis_offsets, relative_bias, relative_index, relative_rows, resample_relative

QkvBias = Literal["qkv", "qv", "none"]
PositionBias = Literal["tensor", "channels", "flex"]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_LOG = logging.getLogger(__name__)

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

    position_bias: PositionBias = "tensor"
    """How relative positions reach the logits (`set_position_bias`)."""

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
        self, x: Tensor, bias: Bias | None = None, *, last: int | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Return (B, L, D) for x (B, L, D), or (B, M, D) for the last M = `last` tokens only.

        bias (1 | B, R, M or L, L), or the table that has it, is added to the logits; with windows it is (1, R, S * S,
        S * S). grid: (h, w) of the patches in x; needed for windows and decomposed positions.
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
        self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | DecomposedBias | None, *, grid: tuple[int, int] | None
    ) -> Tensor:
        """Return the concatenated outputs of the heads, (B, L or M, D)."""
        if self.rel_pos_h is not None and self.rel_pos_w is not None and grid is not None:
            bias = decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, grid)
        if bias is None or isinstance(bias, Tensor):
            out = attend(q, k, v, bias)
        elif self.position_bias == "flex" and torch.compiler.is_compiling():  # eagerly it would keep all logits
            out = attend_flex(q, k, v, bias)
        elif self.position_bias == "channels" and isinstance(bias, DecomposedBias):
            out = attend_channels(q, k, v, bias)
        else:
            out = attend(q, k, v, bias.tensor()[:, :, -q.shape[2] :])
        return out.transpose(1, 2).flatten(2)


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


class DecomposedBias(NamedTuple):
    """The bias of decomposed relative positions: each query has one number per row of keys and one per column.

    along_h: (B, R, h, w, h). along_w: (B, R, h, w, w).
    """

    along_h: Tensor
    along_w: Tensor

    def tensor(self) -> Tensor:
        """Return the bias of each query and key, (B, R, N, N)."""
        return (self.along_h[..., :, None] + self.along_w[..., None, :]).flatten(4).flatten(2, 3)

    def score_mod(self, q: Tensor, k: Tensor) -> ScoreMod:
        """Return the function with which flex_attention adds the bias."""
        along_h, along_w, w = *self, self.along_w.shape[-1]

        def add(score: Tensor, b: Tensor, r: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + along_h[b, r, i // w, i % w, j // w] + along_w[b, r, i // w, i % w, j % w]

        return add


class TableBias(NamedTuple):
    """The bias of `RelativePositionBias` before it is read from its table (rows, R); ids as in its `forward`."""

    table: Tensor
    grid: tuple[int, int]
    ids: Tensor | None
    leading: int

    def tensor(self) -> Tensor:
        """Return the bias of each query and key, (1 | B, R, L, L)."""
        if self.ids is None:
            return relative_bias(self.table, self.grid, leading=self.leading)[None]
        return self.table[relative_index(self.grid, self.ids, leading=self.leading)].permute(0, 3, 1, 2)

    def score_mod(self, q: Tensor, k: Tensor) -> ScoreMod:
        """Return the function with which flex_attention adds the bias; rows as in `core.positions.relative_index`."""
        (h, w), ids, leading, skipped = self.grid, self.ids, self.leading, k.shape[2] - q.shape[2]
        table, rows = self.table.to(q.dtype), (2 * h - 1) * (2 * w - 1)

        def place(b: Tensor, token: Tensor) -> Tensor:
            patch = (token - leading).clamp(min=0)
            patch = patch if ids is None else ids[b, patch]
            return patch // w * (2 * w - 1) + patch % w

        def add(score: Tensor, b: Tensor, r: Tensor, i: Tensor, j: Tensor) -> Tensor:
            i = i + skipped
            row = place(b, i) - place(b, j) + rows // 2
            if leading:
                with_class = torch.where(i > 0, rows + 1, torch.where(j > 0, rows, rows + 2))
                row = torch.where((i > 0) & (j > 0), row, with_class)
            return score + table[row, r]

        return add


Bias = Tensor | TableBias


def select_samples(bias: Bias | None, ids: Tensor) -> Bias | None:
    """Return the bias of the samples `ids` (B',) of a batch."""
    if isinstance(bias, TableBias):
        return bias if bias.ids is None else bias._replace(ids=bias.ids.index_select(0, ids))
    return bias if bias is None or len(bias) == 1 else bias.index_select(0, ids)


def decomposed_bias(q: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> DecomposedBias:
    """Return q . rows[row offset] and q . columns[column offset] for q (B, R, h * w, d).

    The tables are (2S - 1, d); one for another side is resampled linearly. Source: MViTv2 (2112.01526, section 4.1), as
    used in ViTDet (2203.16527).
    """
    h, w = grid
    q = q.reshape(*q.shape[:2], h, w, -1)
    along_h = torch.einsum("brhwc,hkc->brhwk", q, axis_offsets(rows, h).to(q.dtype))
    along_w = torch.einsum("brhwc,wkc->brhwk", q, axis_offsets(columns, w).to(q.dtype))
    return DecomposedBias(along_h, along_w)


def attend_channels(q: Tensor, k: Tensor, v: Tensor, bias: DecomposedBias) -> Tensor:
    """Return attend(q, k, v, bias.tensor()), (B, R, N, d), without a tensor of N x N values.

    The h + w numbers of a query become channels of it; those of a key in row y and column x are 1 in place y and x and
    0 elsewhere.
    """
    d, h, w = q.shape[-1], bias.along_h.shape[-1], bias.along_w.shape[-1]
    along = torch.cat(bias, dim=-1).flatten(2, 3)
    eyes = [torch.eye(side, dtype=k.dtype, device=k.device) for side in (h, w)]
    places = torch.cat([eyes[0][:, None].expand(h, w, h), eyes[1].expand(h, w, w)], dim=-1).flatten(0, 1)
    q = torch.cat([q, along * d**0.5], dim=-1)
    k = torch.cat([k, places.expand(*k.shape[:2], -1, -1)], dim=-1)
    return attend(q, k, F.pad(v, (0, h + w)), None, scale=d**-0.5)[..., :d]


def attend_flex(q: Tensor, k: Tensor, v: Tensor, bias: DecomposedBias | TableBias) -> Tensor:
    """Return attend(q, k, v, bias.tensor()); compiled on cuda, it is one kernel without a tensor of L x L values."""
    from torch.nn.attention.flex_attention import flex_attention

    out: Tensor = flex_attention(q, k, v, score_mod=bias.score_mod(q, k))
    return out


def set_position_bias(model: nn.Module, how: PositionBias, *, device: torch.device, compiled: bool) -> None:
    """Set how relative positions reach the logits (RunConfig.position_bias).

    "flex" becomes "tensor" where it has no kernel; a warning says why. ValueError: the model has no such positions.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Attention)]
    tables = [table for table in model.modules() if isinstance(table, RelativePositionBias)]
    decomposed = any(layer.rel_pos_h is not None for layer in layers)
    if not {"tensor": True, "channels": decomposed, "flex": decomposed or tables}[how]:
        kind = "relative" if how == "flex" else "decomposed relative"
        raise ValueError(f"run.position_bias = {how!r}, but no block has {kind} positions: remove it")
    if how == "flex":
        channels = min(layer.proj.in_features // layer.heads for layer in layers)
        missing = {
            "the device is not cuda": device.type != "cuda",
            "blocks are not compiled (run.compile)": not compiled,
            "torch is older than 2.9": torch.__version__ < "2.9",  # gradients of compiled biases were not reliable
            f"heads have {channels} channels, fewer than 16": channels < 16,
        }
        if reasons := [reason for reason, found in missing.items() if found]:
            _LOG.warning("run.position_bias='flex' has no kernel here, 'tensor' is used: %s", ", ".join(reasons))
            how = "tensor"
    parts: list[Attention | RelativePositionBias] = [*layers, *tables]
    for part in parts:
        if part.position_bias != how:  # attributes of a module count in the digest of kept features
            part.position_bias = how


class RelativePositionBias(nn.Module):
    """A table of biases indexed by the offset between two patches (BEiT); initially zero."""

    position_bias: PositionBias = "tensor"
    """"flex": the bias is read from the table in the attention (`set_position_bias`)."""

    def __init__(self, grid: tuple[int, int], heads: int, *, leading: int, window: int | None = None) -> None:
        """Create a table for an image's (h, w) grid, or for windows of S x S patches of any image."""
        super().__init__()
        self.grid, self.leading, self.window = (window, window) if window else grid, leading, window
        self.table = nn.Parameter(torch.zeros(relative_rows(self.grid, leading=leading), heads))

    def forward(self, grid: tuple[int, int], ids: Tensor | None = None) -> Bias:
        """Return the bias (1 | B, R, L, L) for the class token, if there is one, and patches `ids` (B, M) of the grid.

        ids None: all patches. For another grid the table is resampled (core.positions.resample_relative).
        """
        grid = self.grid if self.window else grid
        table = resample_relative(self.table, self.grid, grid, leading=self.leading)
        bias = TableBias(table, grid, ids, self.leading)
        return bias if self.position_bias == "flex" else bias.tensor()
