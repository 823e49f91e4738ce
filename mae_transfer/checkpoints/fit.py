"""Loads tensors into an encoder, or a whole MAE, with other options than the file's.

The image size may differ. An encoder may have no class token, no final norm, or other tables of relative positions.

Legend: D width, R heads, T leading tokens (0 or 1 class token), N patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import Tensors, check_finite, load_strict, read, unwrap, without
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.core.positions import (
    fixed_grid,
    relative_rows,
    resample,
    resample_axis,
    resample_filters,
    resample_relative,
    sincos_2d,
)
from mae_transfer.models.mae import MAE
from mae_transfer.models.vit import ViT, ViTConfig

if TYPE_CHECKING:
    from mae_transfer.models.joint import Joint

MAY_CHANGE = (
    "heads", "image_size", "patch", "class_token", "final_norm", "positions", "antialias", "relative_positions",
    "windows", "global_blocks", "drop_path", "skip_dropped", "norm_eps", "layer_scale",
)  # fmt: skip

GIVE_HEADS = (
    """pass it: changes={'heads': N}, --set "backbone.changes={'heads': N}", or --heads N of export_checkpoint.py"""
)


class EncoderWeights(NamedTuple):
    """The content of a file under this package's names."""

    architecture: ViTConfig  # `heads` is None if neither the file nor the layout determines it
    tensors: dict[str, Tensor]  # of the encoder
    head: dict[str, Tensor]  # of the classifier: fc_norm.* and head.*; empty if the file has none
    statistics: Statistics = IMAGENET  # normalisation of the images in the layout's releases
    recorded: Statistics | None = None  # normalisation that the file records
    counts: tuple[int, ...] = ()  # published numbers of heads for this width, if `heads` is None

    def build(self, changes: Mapping[str, Any], *, where: str) -> ViT:
        """Return the encoder of these weights with `changes` (fields of ViTConfig).

        The changes act on the tensors as follows:
        image_size: absolute positions are resampled bicubically with antialiasing (timm's resampling), relative tables
            bicubically; the rows of the class token are kept.
        patch: filters are resampled bicubically (14 -> 16).
        class_token or final_norm False: their tensors, and the class token's positions, are left out.
        relative_positions: a shared table is copied to each block, or to windows and global blocks, and resampled to
            their grids. Tables that the file lacks start at zero.
        layer_scale: the start value if the file has no LayerScale; otherwise the file's values are used.

        Raises:
            ValueError: a change is impossible, or a tensor is unexpected or missing.
        """
        _check_dimensions(self.tensors, where=where)
        if self.counts and not changes.get("heads"):
            width, counts = self.tensors["patch_embed.proj.weight"].shape[0], " or ".join(map(str, self.counts))
            raise ValueError(
                f"{where}: encoders of width {width} are published with {counts} heads, and the file does not store "
                f"the number; {GIVE_HEADS}"
            )
        check_finite(self.head, where=where)
        old, new = self.architecture, change(self.architecture, changes, where=where)
        vit = ViT(new)
        tensors = {  # half precision is widened before anything is resampled
            name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            for name, tensor in self.tensors.items()
        }
        absent: list[str] = []
        if old.final_norm and not new.final_norm:
            tensors = without(tensors, ("norm.",))
        if old.class_token and not new.class_token:
            tensors.pop("cls_token", None)
        if "pos_embed" in tensors:
            table = resample(
                tensors["pos_embed"], old.grid(), new.grid(), leading=int(old.class_token), antialias=new.antialias
            )
            tensors["pos_embed"] = table[:, int(old.class_token) - int(new.class_token) :]
        tensors["patch_embed.proj.weight"] = resample_filters(tensors["patch_embed.proj.weight"], new.patch)
        tables = {name: tensors.pop(name) for name in list(tensors) if "rel_pos" in name}
        if old.relative_positions == "none":
            absent = [name for name in vit.state_dict() if "rel_pos" in name]
        elif old.relative_positions == "decomposed":
            rows = {name: len(parameter) for name, parameter in vit.named_parameters()}
            tensors |= {name: resample_axis(table, rows.get(name, len(table))) for name, table in tables.items()}
        elif new.relative_positions != "none":
            tensors |= _bias_tables(tables, old, new)
        if old.layer_scale is None:
            absent += [name for name in vit.state_dict() if ".ls" in name]
        load_strict(vit, tensors, absent=absent, where=where)
        return vit


def grid_side(patches: int) -> int | None:
    """Return the side of a square grid; None if no square grid has so many patches."""
    side = math.isqrt(max(0, patches))
    return side if side and side**2 == patches else None


def table_side(rows: int, *, leading: int) -> int | None:
    """Return the side of the square grid of a table of relative positions; None if the rows fit no square grid."""
    offsets = grid_side(rows - 3 * leading)
    return (offsets + 1) // 2 if offsets and offsets % 2 else None


def _check_dimensions(tensors: Tensors, *, where: str) -> None:
    """Raise ValueError unless the tensors that `build` resamples have the right number of dimensions."""
    if "patch_embed.proj.weight" not in tensors:
        raise ValueError(f"{where} has no patch_embed.proj.weight: give a file that holds a full encoder")
    for name, tensor in tensors.items():
        wanted = 2 if "rel_pos" in name else {"patch_embed.proj.weight": 4, "pos_embed": 3}.get(name, tensor.dim())
        if tensor.dim() != wanted or not tensor.numel():
            raise ValueError(
                f"{where}: {name} has shape {tuple(tensor.shape)} but must have {wanted} dimensions: save it again"
            )


def change(old: ViTConfig, changes: Mapping[str, Any], *, where: str) -> ViTConfig:
    """Return the architecture with the changes.

    Raises:
        ValueError: a change is unknown or impossible, or the number of heads is still unknown.
    """
    unknown = [name for name in changes if name not in MAY_CHANGE]
    if unknown:
        raise ValueError(
            f"{where}: {', '.join(unknown)} cannot be changed on loading; choose from {', '.join(MAY_CHANGE)}"
        )
    # how the pretraining computed its drop path is not how a transfer does
    new = validate({**old.model_dump(), "skip_dropped": False, **changes}, ViTConfig, where=f"changes to {where}")
    for name in ("class_token", "final_norm"):
        if getattr(new, name) and not getattr(old, name):
            raise ValueError(f"{where} has no tensors for {name}=True: set {name}=False")
    if old.layer_scale is not None and new.layer_scale is None:
        raise ValueError(f"{where} has LayerScale, which cannot be removed: leave layer_scale unchanged")
    if (old.positions == "none") != (new.positions == "none"):
        raise ValueError(
            f"{where} has positions={old.positions!r}, which cannot become {new.positions!r}: leave positions unchanged"
        )
    if old.relative_positions not in ("none", new.relative_positions) and (
        old.relative_positions,
        new.relative_positions,
    ) != ("shared", "per_block"):
        raise ValueError(
            f"{where} has relative_positions={old.relative_positions!r}, which cannot become "
            f"{new.relative_positions!r}: leave relative_positions unchanged"
        )
    if not new.size and not new.heads:
        raise ValueError(
            f"{where}: width {new.dim}, depth {new.depth} is not a known size, and weights do not store the number of "
            f"heads; {GIVE_HEADS}"
        )
    return new


def _bias_tables(tables: Tensors, old: ViTConfig, new: ViTConfig) -> dict[str, Tensor]:
    """Return the new encoder's tables of relative-position biases, (rows, R).

    Each is the old table of the first block that reads it, resampled to the new grid.
    """
    (kinds, read), (wanted_kinds, wanted) = old.bias_tables(), new.bias_tables()
    name, fitted = "rel_pos_bias.{}.table".format, {}
    for before, after in zip(read, wanted, strict=True):
        table = tables.get(name(before))
        if table is not None and name(after) not in fitted:
            grids = [
                (side, side) if side else cfg.grid() for cfg, side in ((old, kinds[before]), (new, wanted_kinds[after]))
            ]
            table = table[: relative_rows(grids[0], leading=int(new.class_token))]
            fitted[name(after)] = resample_relative(table, grids[0], grids[1], leading=int(new.class_token))
    unread = set(tables) - {name(before) for before in read}
    return fitted | {extra: tables[extra] for extra in unread}


def released_name(name: str) -> str:
    """Return the name in MAE's release of a parameter of models.mae.MAE.

    For example "decoder.blocks.0.norm1.weight" -> "decoder_blocks.0.norm1.weight".
    """
    if name == "decoder.mask_token":
        return "mask_token"
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        raise ValueError(f"MAE's released layout cannot hold {name!r} (it has no mask token in the encoder)")
    return rest if part == "encoder" else f"decoder_{rest}"


def load_mae(model: MAE, path: Path) -> None:
    """Load a released `*_full.pth` (MAE with its decoder), to continue pretraining or to draw reconstructions."""
    tensors = unwrap(read(path), "model", where=path)
    names = {released_name(name): name for name in model.state_dict()}
    fill(model, {names.get(name, name): tensor for name, tensor in tensors.items()}, where=str(path))


def fill(model: MAE | Joint, tensors: Tensors, *, where: str) -> None:
    """Load tensors strictly into a model whose image size may differ from that of the tensors.

    The positions of encoder and decoder are adapted: a fixed sin-cos table is computed again, any other table is
    resampled bicubically, and so are tables of relative positions. ValueError if anything else does not fit.
    """
    fitted, encoder = dict(tensors), cast(Any, model.encoder)
    for name, wanted in model.state_dict().items():
        stored = tensors.get(name)
        if stored is None or stored.ndim != wanted.ndim:
            continue
        if name in ("encoder.pos_embed", "decoder.pos_embed") and stored.shape[2] == wanted.shape[2]:
            fitted[name] = _positions(stored, model, where=f"{name} in {where}")
        elif stored.shape == wanted.shape:
            continue
        elif name.startswith("encoder.rel_pos_bias.") and stored.shape[1] == wanted.shape[1]:
            leading = encoder.leading
            side = table_side(len(stored), leading=leading)
            if side is None:
                raise ValueError(
                    f"{name} in {where} has {len(stored)} rows, which is no square grid: use the image size of the file"
                )
            fitted[name] = resample_relative(stored, (side, side), encoder.grid, leading=leading)
    load_strict(model, fitted, where=where)


def _positions(stored: Tensor, model: Any, *, where: str) -> Tensor:
    """Return a table (1, T + N, D) for the model's grid.

    The number of rows does not determine the shape of a grid, but the values of a fixed table do.
    """
    leading, dim, grid = model.encoder.leading, stored.shape[2], model.encoder.grid
    patches = stored.shape[1] - leading
    if fixed_grid(stored, leading=leading) not in (None, grid):
        return sincos_2d(dim, grid, leading=leading).to(stored.dtype)
    if patches == grid[0] * grid[1]:
        return stored
    side = grid_side(patches)
    if side is None:
        raise ValueError(f"{where} has {stored.shape[1]} rows, which is no square grid: use the image size of the file")
    return resample(stored, (side, side), grid, leading=leading)
