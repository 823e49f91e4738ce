"""Helpers for dicts of tensors: remove wrappers and prefixes, rename, join query, key and value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import Tensors, shortened

STEM = "patch_embed.proj.weight"  # every ViT and Swin has it; its position shows the wrapper and the prefix
WRAPPERS = 3  # depth of nested dicts that are searched


def rename(tensors: Tensors, rules: Collection[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with the regular expressions of `rules` replaced in their names, in order.

    Raises:
        ValueError: two tensors would get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(f"two tensors would be named {new}, one of them {name}: name the file's layout")
        renamed[new] = tensor
    return renamed


def join_qkv(tensors: Tensors, query: str, key: str, value: str) -> dict[str, Tensor]:
    """Return the tensors with query, key and value of each block joined into attn.qkv.

    If the key has no bias, the other two biases become q_bias and v_bias.
    """
    joined = dict(tensors)
    for name in [name for name in tensors if f".{query}." in name]:
        stem, _, kind = name.partition(f".{query}.")
        parts = {part: joined.pop(f"{stem}.{part}.{kind}", None) for part in (query, key, value)}
        if parts[key] is None and kind == "bias" and parts[value] is not None:
            joined[f"{stem}.attn.q_bias"], joined[f"{stem}.attn.v_bias"] = parts[query], parts[value]  # type: ignore[assignment]
        elif any(part is None for part in parts.values()):
            lost = ", ".join(part for part, tensor in parts.items() if tensor is None)
            raise ValueError(f"{stem} has {name} but no {lost} ({kind}): the file is incomplete, save it again")
        else:
            found = [part for part in parts.values() if part is not None]
            if len({part.shape[1:] for part in found}) > 1 or not found[0].ndim:
                shapes = [tuple(part.shape) for part in found]
                raise ValueError(
                    f"{name}: query, key and value of {stem} have shapes {shapes}, which cannot be joined: "
                    "save the file again"
                )
            joined[f"{stem}.attn.qkv.{kind}"] = torch.cat(found)
    return joined


def unwrap(
    content: Mapping[str, Any], *keys: str, where: Path, stem: str | Collection[str] = STEM
) -> dict[str, Tensor]:
    """Return the tensors of a file without the dicts around them.

    Args:
        keys: the keys under which the layout stores its tensors; they take precedence. Otherwise the only dict with a
            tensor named `stem` is taken: the file itself, or a dict within it under any key.
        stem: end of the name of a tensor that every file of the layout has; of several, one is enough.
    Raises:
        ValueError: no dict holds such a tensor, or several do; the message lists the expected keys and the file's keys.
    """
    stems = (stem,) if isinstance(stem, str) else tuple(stem)
    models = {path: tensors for path, tensors in _dicts(content) if any(name.endswith(stems) for name in tensors)}
    for key in keys:
        if inner := [path for path in models if path.split("/")[-1] == key]:
            return models[min(inner, key=len)]
    if "" in models or len(models) == 1:
        return models.get("") or next(iter(models.values()))
    if models:
        raise ValueError(
            f"{where} holds several models, under {', '.join(models)}; save the intended one in its own file"
        )
    names = [name for _, tensors in _dicts(content) for name in tensors]
    wanted = f"{' or '.join(map(repr, keys))} entry with" if keys else "tensor named"
    raise ValueError(
        f"{where} has no {wanted} ...{' or ...'.join(stems)}: its keys are {shortened(list(content)) or 'none'}, "
        f"its names {shortened(names) or 'none'}; name the file's layout"
    )


def _dicts(content: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (path of keys, tensors) of a dict and of the dicts within it."""
    yield path, {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if depth < WRAPPERS:
        for key, value in content.items():
            if isinstance(value, dict):
                yield from _dicts(value, f"{path}/{key}" if path else str(key), depth + 1)


def core(tensors: Tensors, *prefer: str, where: Path, stem: str = STEM) -> dict[str, Tensor]:
    """Return the tensors without the common prefix of the encoder's names ("module.backbone.", "encoder." ...).

    Tensors outside the encoder lose only the part of the prefix that all names share. If several encoders have a
    `stem`, the one whose prefix contains a word of `prefer` is taken, and the tensors of the others are dropped.

    Raises:
        ValueError: no tensor is named `stem`, or several encoders have one and none is preferred.
    """
    prefixes = [name.removesuffix(stem) for name in tensors if name == stem or name.endswith(f".{stem}")]
    if not prefixes:
        raise ValueError(
            f"{where} has no tensor named ...{stem}; its names are {shortened(list(tensors)) or 'none'}: "
            "name the file's layout"
        )
    preferred = next(
        (found for word in prefer if (found := [prefix for prefix in prefixes if word in prefix.split(".")])), prefixes
    )
    if preferred is prefixes and len(prefixes) > 1:
        raise ValueError(
            f"{where} holds several encoders, under {', '.join(map(repr, prefixes))}; "
            "save the intended one in its own file"
        )
    own = min(preferred, key=len)
    others = tuple(prefix for prefix in prefixes if prefix not in ("", own))
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(own) or not name.startswith(others)}
    return _without(kept, own)


def _without(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors without a prefix; other tensors lose the part of it that every name has."""
    words, shared = prefix.split(".")[:-1], ""
    for word in words:
        if not all(name.startswith(f"{shared}{word}.") for name in tensors):
            break
        shared += f"{word}."
    stripped = {
        name.removeprefix(prefix if name.startswith(prefix) else shared): tensor for name, tensor in tensors.items()
    }
    if len(stripped) < len(tensors):
        both = next(name for name in tensors if prefix + name in tensors)
        raise ValueError(
            f"names with and without the prefix {prefix!r} collide, e.g. {both}: save the encoder in its own file"
        )
    return stripped


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
