"""Position embeddings. Legend: D width, N = h * w patches in raster order, T = leading tokens that stand for no patch (0 or 1 class token)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def fixed_grid(table: Tensor, *, leading: int = 1) -> tuple[int, int] | None:
    """Return the grid whose fixed table `sincos_2d` a table (1, leading + N, D) is; None where it is none. N alone does not tell 2 x 8 from 4 x 4."""
    if table.shape[2] % 4 or not table.is_floating_point():
        return None
    patches = max(0, table.shape[1] - leading)
    grids = [(high, patches // high) for high in range(1, patches + 1) if patches % high == 0]
    return next(
        (
            grid
            for grid in grids
            if torch.allclose(table.float(), sincos_2d(table.shape[2], grid, leading=leading), atol=1e-4)
        ),
        None,
    )


def resample(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], *, leading: int = 1, antialias: bool = True
) -> Tensor:
    """Return an absolute table (1, leading + N_old, D) resampled bicubically to another grid, leading tokens kept.

    With antialiasing it is timm's resampling, without it detectron2's; they differ where the grid grows, too (cubic coefficient -0.5 or -0.75).
    """
    if old == new:
        return table
    return resample_abs_pos_embed(  # type: ignore[no-any-return]
        table, new_size=list(new), old_size=list(old), num_prefix_tokens=leading, antialias=antialias
    )


def resample_filters(filters: Tensor, patch: int) -> Tensor:
    """Return patch-embedding filters (D, C, p, p) resampled bicubically to another patch side.

    So a patch of 14 px becomes one of 16, as in ViTDet's ViT-H (2203.16527) and EVA. The values are not rescaled.
    """
    if filters.shape[-1] == patch:
        return filters
    return F.interpolate(filters.float(), size=(patch, patch), mode="bicubic", align_corners=False).to(filters.dtype)


def relative_index(grid: tuple[int, int], ids: Tensor | None = None, *, leading: int = 1) -> Tensor:
    """Return which row of a relative-position table each pair of tokens reads, (T + N, T + N) int64, or (B, T + M, T + M) for patches `ids` (B, M).

    The table has (2h-1)(2w-1) rows for the offsets of patches and, with a class token, three more for class->patch, patch->class and
    class->class, in BEiT's order.
    """
    h, w = grid
    ids = torch.arange(h * w) if ids is None else ids
    y, x = ids // w, ids % w
    index = (y[..., :, None] - y[..., None, :] + h - 1) * (2 * w - 1) + x[..., :, None] - x[..., None, :] + w - 1
    if not leading:
        return index
    rows = (2 * h - 1) * (2 * w - 1)
    full = F.pad(index, (1, 0, 1, 0), value=rows)
    full[..., 1:, 0], full[..., 0, 0] = rows + 1, rows + 2
    return full


def relative_rows(grid: tuple[int, int], *, leading: int = 1) -> int:
    """Return the number of rows of the table that relative_index points into."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * leading


def relative_bias(table: Tensor, grid: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return table[relative_index(grid)] with the heads in front, (R, T + N, T + N), for a table (rows, R): as views, so no index is kept or read."""
    (h, w), heads = grid, table.shape[1]
    offsets, rest = table.tensor_split([(2 * h - 1) * (2 * w - 1)])
    image = offsets.T.reshape(heads, 2 * h - 1, 2 * w - 1)
    bias = image.unfold(1, h, 1).unfold(2, w, 1).flip(3, 4).reshape(heads, h * w, h * w)
    if not leading:
        return bias
    to_patch, to_class, itself = rest.T[:, :, None, None].expand(-1, -1, h * w, h * w).unbind(1)
    first = torch.cat([itself[:, :1, :1], to_patch[:, :1]], dim=2)
    return torch.cat([first, torch.cat([to_class[:, :, :1], bias], dim=2)], dim=1)


def resample_relative(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return a table of relative-position biases (rows, R) for another grid: its offsets as an image, resampled bicubically (timm's simple resizing).

    So the table is stretched with the grid. The class token's rows are kept.
    """
    if old == new:
        return table
    before, after = ((2 * h - 1, 2 * w - 1) for h, w in (old, new))
    offsets, rest = table.tensor_split([before[0] * before[1]])
    image = F.interpolate(offsets.T.reshape(1, -1, *before), size=after, mode="bicubic", align_corners=False)
    return torch.cat([image.flatten(2)[0].T, rest[: 3 * leading]])


def axis_offsets(table: Tensor, side: int) -> Tensor:
    """Return (side, side, d): the row of a table (2S - 1, d) for the offset i - j of places along one axis, resampled for another side."""
    return resample_axis(table, 2 * side - 1).unfold(0, side, 1).flip(2).transpose(1, 2)


def resample_axis(table: Tensor, rows: int) -> Tensor:
    """Return a table of offsets along one axis, (2S - 1, d), with another number of rows: linearly (detectron2's get_rel_pos)."""
    if len(table) == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=False)[0].T
