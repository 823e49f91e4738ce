"""Position embeddings. Legend: D width, N = h * w patches in raster order, T = leading tokens that stand for no patch (0 or 1 class token)."""

from __future__ import annotations

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor


def sincos_2d(dim: int, grid: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return MAE's fixed table, (1, leading + N, D): half of D encodes the column (x) FIRST, the other half the row (y).

    Leading tokens get zeros. MoCo v3 and mmpretrain put the row first; a table built that way is this one with its halves exchanged.
    Source: models of the MAE release as RECIPES part 1 (a) and (h) describe them; frequencies of Vaswani et al., 1/10000^(2i/d).
    """
    if dim % 4:
        raise ValueError(f"width {dim}: a 2-D sin-cos table needs a multiple of 4 (sine and cosine of two axes)")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    waves = [positions.reshape(-1, 1) * omega for positions in (columns, rows)]
    table = torch.cat([wave for angle in waves for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table.new_zeros(leading, dim), table]).to(torch.get_default_dtype())[None]


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return an absolute table (1, leading + N_old, D) resampled bicubically to another grid, leading tokens kept (timm's resampling)."""
    if old == new:
        return table
    return resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=leading)  # type: ignore[no-any-return]


def relative_index(grid: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return which row of a relative-position table each pair of tokens reads, (T + N, T + N) int64.

    The table has (2h-1)(2w-1) rows for the offsets of patches and, with a class token, three more for class->patch, patch->class and
    class->class, in BEiT's order.
    """
    h, w = grid
    places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).flatten(1)
    offsets = places[:, :, None] - places[:, None, :]
    index = (offsets[0] + h - 1) * (2 * w - 1) + offsets[1] + w - 1
    if not leading:
        return index
    rows = (2 * h - 1) * (2 * w - 1)
    full = index.new_full((h * w + 1, h * w + 1), rows)
    full[1:, 1:], full[1:, 0], full[0, 0] = index, rows + 1, rows + 2
    return full


def relative_rows(grid: tuple[int, int], *, leading: int = 1) -> int:
    """Return the number of rows of the table that relative_index points into."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * leading
