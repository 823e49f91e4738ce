"""What a layout found, put into an encoder that may differ from the file's: another image size, without class token or final norm, other tables.

Legend: D width, R heads, T leading tokens (0 or 1 class token), N patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.checkpoints.files import load_strict
from mae_transfer.checkpoints.layouts import Found
from mae_transfer.config import validate
from mae_transfer.core.positions import resample
from mae_transfer.models.vit import ViT, ViTConfig

MAY_CHANGE = ("heads", "image_size", "class_token", "final_norm", "positions", "relative_positions", "drop_path", "norm_eps")


def fit(found: Found, changes: Mapping[str, Any], *, where: str) -> ViT:
    """Return the encoder of found.architecture with `changes` (fields of ViTConfig), filled with what was found.

    image_size: absolute positions are resampled bicubically with antialiasing (timm's resampling), relative tables bicubically, rows of the class
    token kept. class_token or final_norm False: their tensors, and the class token's positions, are left out. relative_positions: a shared table
    is copied to each block; tables that the file has not begin at zero. Raises ValueError where a change cannot be made or a tensor has no place.
    """
    old, new = found.architecture, changed(found.architecture, changes, where=where)
    vit, tensors = ViT(new), dict(found.tensors)
    absent: list[str] = []
    if old.final_norm and not new.final_norm:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
    if old.class_token and not new.class_token:
        tensors.pop("cls_token", None)
    if "pos_embed" in tensors:
        table = resample(tensors["pos_embed"], old.grid(), new.grid(), leading=int(old.class_token))
        tensors["pos_embed"] = table[:, int(old.class_token) - int(new.class_token) :]
    tables = {name: tensors.pop(name) for name in list(tensors) if name.startswith("rel_pos_bias.")}
    if old.relative_positions == "none":
        absent = ["rel_pos_bias."]
    elif new.relative_positions != "none":
        wanted = [name for name in vit.state_dict() if name.startswith("rel_pos_bias.")]
        copied = dict.fromkeys(wanted, tables.get("rel_pos_bias.0.table")) if old.relative_positions == "shared" else {}
        tensors |= {name: relative_table(table, old, new) for name, table in (copied | tables).items() if table is not None}
    load_strict(vit, tensors, absent=absent, where=where)
    return vit


def changed(old: ViTConfig, changes: Mapping[str, Any], *, where: str) -> ViTConfig:
    """Return the architecture with the changes; ValueError where one is unknown, impossible, or the head count is still not known."""
    unknown = [name for name in changes if name not in MAY_CHANGE]
    if unknown:
        raise ValueError(f"{where}: {', '.join(unknown)} cannot be changed on loading; what can: {', '.join(MAY_CHANGE)}")
    new = validate(old.model_dump() | dict(changes), ViTConfig, where=f"changes to {where}")
    for name in ("class_token", "final_norm"):
        if getattr(new, name) and not getattr(old, name):
            raise ValueError(f"{where} has no tensors for {name}=True")
    if (old.positions == "none") != (new.positions == "none"):
        raise ValueError(f"{where} has positions={old.positions!r}: {new.positions!r} is not to be had from it")
    if (old.relative_positions, new.relative_positions) in (("per_block", "shared"), ("shared", "none"), ("per_block", "none")):
        raise ValueError(f"{where} has relative_positions={old.relative_positions!r}: {new.relative_positions!r} is not to be had from it")
    if not new.size and not new.heads:
        raise ValueError(
            f"{where}: width {new.dim}, depth {new.depth} is no named size, and the head count is not in the weights; give it (changes: heads)"
        )
    return new


def relative_table(table: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """Return a table of relative-position biases (rows, R) for the new grid, its offsets resampled bicubically, the class token's rows kept."""
    leading = 3 * int(old.class_token)
    offsets, rest = table[: len(table) - leading], table[len(table) - leading :]
    before, after = ((2 * h - 1, 2 * w - 1) for h, w in (old.grid(), new.grid()))
    if before != after:
        image = offsets.T.reshape(1, -1, *before)
        offsets = F.interpolate(image, size=after, mode="bicubic", align_corners=False).flatten(2)[0].T
    return torch.cat([offsets, rest]) if new.class_token else offsets
