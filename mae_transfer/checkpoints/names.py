"""Dicts of tensors: taken out of a file, stripped of prefixes, renamed, joined."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import Tensors


def rename(tensors: Tensors, rules: Collection[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with each regular expression of `rules` replaced in their names, in order."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def join_qkv(tensors: Tensors, query: str, key: str, value: str) -> dict[str, Tensor]:
    """Return the tensors with the three projections of each block joined into attn.qkv; without a key's bias, into q_bias and v_bias."""
    joined = dict(tensors)
    for name in [name for name in tensors if f".{query}." in name]:
        stem, kind = name.split(f".{query}.")
        parts = {part: joined.pop(f"{stem}.{part}.{kind}", None) for part in (query, key, value)}
        if parts[key] is None and kind == "bias" and parts[value] is not None:
            joined[f"{stem}.attn.q_bias"], joined[f"{stem}.attn.v_bias"] = parts[query], parts[value]  # type: ignore[assignment]
        elif any(part is None for part in parts.values()):
            raise ValueError(f"{name} stands alone: of {', '.join(parts)} at least one is missing in {stem}")
        else:
            joined[f"{stem}.attn.qkv.{kind}"] = torch.cat([part for part in parts.values() if part is not None])
    return joined


def strip(tensors: Tensors, *prefixes: str) -> dict[str, Tensor]:
    """Return the tensors with the prefixes removed, one after the other, from the names that begin with them."""
    for prefix in prefixes:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def unwrap(content: Mapping[str, Any], *keys: str, where: Path) -> dict[str, Tensor]:
    """Return the tensors under the first of `keys`, or the whole of a file that holds nothing else; ValueError says what it holds instead."""
    inner = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if inner is content and (not tensors or len(tensors) < len(content)):
        raise ValueError(f"{where} has no {' or '.join(map(repr, keys))} entry (it has {', '.join(list(content)[:6])}): is it of another layout?")
    return tensors


def released_name(name: str) -> str:
    """Return what MAE's release calls a parameter of models.mae.MAE ("decoder.blocks.0.norm1.weight" -> "decoder_blocks.0.norm1.weight")."""
    if name == "decoder.mask_token":
        return "mask_token"
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        raise ValueError(f"MAE's released layout has no place for {name!r} (it knows no mask token in the encoder)")
    return rest if part == "encoder" else f"decoder_{rest}"
