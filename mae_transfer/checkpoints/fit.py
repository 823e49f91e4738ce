"""Loads the tensors of a layout into an encoder with other options than the file's.

The encoder may have another image size, no class token, no final norm, or other tables of relative positions.

Legend: D width, R heads, T leading tokens (0 or 1 class token), N patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import check_finite, load_strict
from mae_transfer.checkpoints.layouts import Found
from mae_transfer.config import validate
from mae_transfer.core.positions import relative_rows, resample, resample_axis, resample_filters, resample_relative
from mae_transfer.models.vit import ViT, ViTConfig

MAY_CHANGE = (
    "heads", "image_size", "patch", "class_token", "final_norm", "positions", "antialias", "relative_positions",
    "windows", "global_blocks", "drop_path", "norm_eps", "layer_scale",
)  # fmt: skip

GIVE_HEADS = (
    """pass it: changes={'heads': N}, --set "backbone.changes={'heads': N}", or --heads N of export_checkpoint.py"""
)


def fit(found: Found, changes: Mapping[str, Any], *, where: str) -> ViT:
    """Return the encoder of found.architecture with `changes` (fields of ViTConfig), filled with the tensors found.

    The changes act on the tensors as follows:
    image_size: absolute positions are resampled bicubically with antialiasing (timm's resampling), relative tables
        bicubically; the rows of the class token are kept.
    patch: filters are resampled bicubically (14 -> 16).
    class_token or final_norm False: their tensors, and the class token's positions, are left out.
    relative_positions: a shared table is copied to each block, or to windows and global blocks, and resampled to their
        grids. Tables that the file lacks start at zero.
    layer_scale: the start value if the file has no LayerScale; otherwise the file's values are used.

    Raises:
        ValueError: a change is impossible, or a tensor is unexpected or missing.
    """
    check_dimensions(found.tensors, where=where)
    if found.counts and not changes.get("heads"):
        width, counts = found.tensors["patch_embed.proj.weight"].shape[0], " or ".join(map(str, found.counts))
        raise ValueError(
            f"{where}: encoders of width {width} are published with {counts} heads, and the file does not store the "
            f"number; {GIVE_HEADS}"
        )
    check_finite(found.head, where=where)
    old, new = found.architecture, changed(found.architecture, changes, where=where)
    vit = ViT(new)
    tensors = {  # half precision is widened before anything is resampled
        name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for name, tensor in found.tensors.items()
    }
    absent: list[str] = []
    if old.final_norm and not new.final_norm:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
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
        tensors |= bias_tables(tables, old, new)
    if old.layer_scale is None:
        absent += [name for name in vit.state_dict() if ".ls" in name]
    load_strict(vit, tensors, absent=absent, where=where)
    return vit


def check_dimensions(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Raise ValueError unless the tensors that `fit` resamples have the right number of dimensions."""
    if "patch_embed.proj.weight" not in tensors:
        raise ValueError(f"{where} has no patch_embed.proj.weight: give a file that holds a full encoder")
    for name, tensor in tensors.items():
        wanted = 2 if "rel_pos" in name else {"patch_embed.proj.weight": 4, "pos_embed": 3}.get(name, tensor.dim())
        if tensor.dim() != wanted or not tensor.numel():
            raise ValueError(
                f"{where}: {name} has shape {tuple(tensor.shape)} but must have {wanted} dimensions: save it again"
            )


def changed(old: ViTConfig, changes: Mapping[str, Any], *, where: str) -> ViTConfig:
    """Return the architecture with the changes.

    Raises:
        ValueError: a change is unknown or impossible, or the number of heads is still unknown.
    """
    unknown = [name for name in changes if name not in MAY_CHANGE]
    if unknown:
        raise ValueError(
            f"{where}: {', '.join(unknown)} cannot be changed on loading; choose from {', '.join(MAY_CHANGE)}"
        )
    new = validate(old.model_dump() | dict(changes), ViTConfig, where=f"changes to {where}")
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


def bias_tables(tables: Mapping[str, Tensor], old: ViTConfig, new: ViTConfig) -> dict[str, Tensor]:
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
