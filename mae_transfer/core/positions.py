"""Position embeddings.

Legend: D width, R heads, N = h * w patches in raster order, T leading tokens that are not patches (0 or 1 class token).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor


def sincos_2d(dim: int, grid: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return MAE's fixed table, (1, leading + N, D). The first half of D encodes the column (x), the other the row (y).

    Leading tokens get zeros. MoCo v3 and mmpretrain put the row first; their table is this one with the halves swapped.
    Source: util/pos_embed.py of facebookresearch/mae; frequencies 1/10000^(2i/d) of Vaswani
    et al.
    """
    if dim % 4:
        raise ValueError(f"width {dim}: set a multiple of 4 for a 2-D sin-cos table (sine and cosine of two axes)")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    waves = [positions.reshape(-1, 1) * omega for positions in (columns, rows)]
    table = torch.cat([wave for angle in waves for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([table.new_zeros(leading, dim), table]).to(torch.get_default_dtype())[None]


def fixed_grid(table: Tensor, *, leading: int = 1) -> tuple[int, int] | None:
    """Return the grid for which a table (1, leading + N, D) equals `sincos_2d`; None if there is none.

    N alone does not determine the grid: 2 x 8 and 4 x 4 have the same N.
    """
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
    """Resample an absolute table (1, leading + N_old, D) bicubically to another grid. Leading tokens are kept.

    This is timm's resampling with antialiasing, and detectron2's without. They also differ when the grid grows (cubic
    coefficient -0.5 or -0.75).
    """
    if old == new:
        return table
    resampled: Tensor = resample_abs_pos_embed(
        table, new_size=list(new), old_size=list(old), num_prefix_tokens=leading, antialias=antialias
    )
    return resampled


def resample_filters(filters: Tensor, patch: int) -> Tensor:
    """Resample patch-embedding filters (D, C, p, p) bicubically to another patch side, without rescaling values.

    ViTDet's ViT-H (2203.16527) and EVA convert patches of 14 px to 16 px this way.
    """
    if filters.shape[-1] == patch:
        return filters
    return F.interpolate(filters.float(), size=(patch, patch), mode="bicubic", align_corners=False).to(filters.dtype)


def relative_index(grid: tuple[int, int], ids: Tensor | None = None, *, leading: int = 1) -> Tensor:
    """Return the row of a relative-position table for each pair of tokens, (T + N, T + N) int64.

    For patches `ids` (B, M) the shape is (B, T + M, T + M). The table has (2h-1)(2w-1) rows for the offsets of patches.
    With a class token it has three more, in BEiT's order: class->patch, patch->class and class->class.
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
    """Return the number of rows of the table that relative_index refers to."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * leading


def relative_bias(table: Tensor, grid: tuple[int, int], *, leading: int = 1) -> Tensor:
    """Return table[relative_index(grid)] with the heads first, (R, T + N, T + N), for a table (rows, R).

    It is built from views, without an index tensor.
    """
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
    """Resample a table of relative-position biases (rows, R) to another grid. The class token's rows are kept.

    The offsets are resized bicubically like an image (timm's simple resizing), so the table stretches with the grid.
    """
    if old == new:
        return table
    before, after = ((2 * h - 1, 2 * w - 1) for h, w in (old, new))
    offsets, rest = table.tensor_split([before[0] * before[1]])
    image = F.interpolate(offsets.T.reshape(1, -1, *before), size=after, mode="bicubic", align_corners=False)
    return torch.cat([image.flatten(2)[0].T, rest[: 3 * leading]])


def axis_offsets(table: Tensor, side: int) -> Tensor:
    """Return the rows of a table (2S - 1, d) for the offsets i - j along one axis, (side, side, d).

    The table is resampled if `side` is not S.
    """
    return resample_axis(table, 2 * side - 1).unfold(0, side, 1).flip(2).transpose(1, 2)


def resample_axis(table: Tensor, rows: int) -> Tensor:
    """Resample a table of offsets along one axis, (2S - 1, d), linearly to `rows` rows (detectron2's get_rel_pos)."""
    if len(table) == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear", align_corners=False)[0].T
