"""Initial weights of a pretraining: encoder and decoder, resampled to the image size of the new run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mae_transfer.checkpoints.files import load_strict, read
from mae_transfer.checkpoints.names import released_name, unwrap
from mae_transfer.core.positions import fixed_grid, resample, resample_relative, sincos_2d
from mae_transfer.models.mae import MAE


def load_mae(model: MAE, path: Path) -> None:
    """Load a released `*_full.pth` (MAE with its decoder), to continue pretraining or to draw reconstructions."""
    tensors = unwrap(read(path), "model", where=path)
    names = {released_name(name): name for name in model.state_dict()}
    fill(model, {names.get(name, name): tensor for name, tensor in tensors.items()}, where=str(path))


def fill(model: MAE, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Load tensors strictly into a model whose image size may differ from that of the tensors.

    The positions of encoder and decoder are adapted: a fixed sin-cos table is computed again, any other table is
    resampled bicubically, and so are tables of relative positions. ValueError if anything else does not fit.
    """
    fitted = dict(tensors)
    for name, wanted in model.state_dict().items():
        stored = tensors.get(name)
        if stored is None or stored.ndim != wanted.ndim:
            continue
        if name in ("encoder.pos_embed", "decoder.pos_embed") and stored.shape[2] == wanted.shape[2]:
            fitted[name] = _positions(stored, model, where=f"{name} in {where}")
        elif stored.shape == wanted.shape:
            continue
        elif name.startswith("encoder.rel_pos_bias.") and stored.shape[1] == wanted.shape[1]:
            leading = model.encoder.leading
            side = (math.isqrt(max(0, len(stored) - 3 * leading)) + 1) // 2
            if (2 * side - 1) ** 2 + 3 * leading != len(stored):
                raise ValueError(
                    f"{name} in {where} has {len(stored)} rows, which is no square grid: use the image size of the file"
                )
            fitted[name] = resample_relative(stored, (side, side), model.encoder.grid, leading=leading)
    load_strict(model, fitted, where=where)


def _positions(stored: Tensor, model: MAE, *, where: str) -> Tensor:
    """Return a table (1, T + N, D) for the model's grid.

    The number of rows does not determine the shape of a grid, but the values of a fixed table do.
    """
    leading, dim, grid = model.encoder.leading, stored.shape[2], model.encoder.grid
    patches = max(0, stored.shape[1] - leading)
    if fixed_grid(stored, leading=leading) not in (None, grid):
        return sincos_2d(dim, grid, leading=leading).to(stored.dtype)
    if patches == grid[0] * grid[1]:
        return stored
    side = math.isqrt(patches)
    if side < 1 or side**2 != patches:
        raise ValueError(f"{where} has {stored.shape[1]} rows, which is no square grid: use the image size of the file")
    return resample(stored, (side, side), grid, leading=leading)
