"""Dicts of tensors: taken out of a file, freed of wrappers and prefixes, renamed, joined."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import Tensors, shortened

STEM = "patch_embed.proj.weight"  # every ViT and Swin has it: where it stands tells wrapper and prefix
WRAPPERS = 3  # dicts within dicts that are looked into


def rename(tensors: Tensors, rules: Collection[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with each regular expression of `rules` replaced in their names, in order; ValueError where two get one name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(f"two tensors would be {new}, one of them {name}: is the file of another layout?")
        renamed[new] = tensor
    return renamed


def join_qkv(tensors: Tensors, query: str, key: str, value: str) -> dict[str, Tensor]:
    """Return the tensors with the three projections of each block joined into attn.qkv; without a key's bias, into q_bias and v_bias."""
    joined = dict(tensors)
    for name in [name for name in tensors if f".{query}." in name]:
        stem, _, kind = name.partition(f".{query}.")
        parts = {part: joined.pop(f"{stem}.{part}.{kind}", None) for part in (query, key, value)}
        if parts[key] is None and kind == "bias" and parts[value] is not None:
            joined[f"{stem}.attn.q_bias"], joined[f"{stem}.attn.v_bias"] = parts[query], parts[value]  # type: ignore[assignment]
        elif any(part is None for part in parts.values()):
            raise ValueError(f"{name} stands alone: of {', '.join(parts)} at least one is missing in {stem}")
        else:
            found = [part for part in parts.values() if part is not None]
            if len({part.shape[1:] for part in found}) > 1 or not found[0].ndim:
                shapes = [tuple(part.shape) for part in found]
                raise ValueError(
                    f"{name}: query, key and value of {stem} have shapes {shapes}, which do not go together"
                )
            joined[f"{stem}.attn.qkv.{kind}"] = torch.cat(found)
    return joined


def unwrap(
    content: Mapping[str, Any], *keys: str, where: Path, stem: str | Collection[str] = STEM
) -> dict[str, Tensor]:
    """Return the tensors of a file, out of whatever dicts they are wrapped in.

    Args:
        keys: where the layout keeps them; they come first. Otherwise the one dict that holds a tensor named `stem` is taken, the file itself or a
            dict within it, whatever its name.
        stem: how the name of a tensor ends that every file of the layout has; of several one is enough.
    Raises:
        ValueError: no dict holds such a tensor, or several do; the message says which keys were looked for and which there are.
    """
    stems = (stem,) if isinstance(stem, str) else tuple(stem)
    places = {place: tensors for place, tensors in _dicts(content) if any(name.endswith(stems) for name in tensors)}
    for key in keys:
        if inner := [place for place in places if place.split("/")[-1] == key]:
            return places[min(inner, key=len)]
    if "" in places or len(places) == 1:
        return places.get("") or next(iter(places.values()))
    if places:
        raise ValueError(
            f"{where} holds several models, under {', '.join(places)}; keep the one that is meant, alone in a file"
        )
    names = [name for _, tensors in _dicts(content) for name in tensors]
    wanted = f"{' or '.join(map(repr, keys))} entry with" if keys else "tensor named"
    raise ValueError(
        f"{where} has no {wanted} ...{' or ...'.join(stems)}: its keys are {shortened(list(content)) or 'none'}, its names "
        f"{shortened(names) or 'none'}; is it of another layout?"
    )


def _dicts(content: Mapping[str, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of a dict and of the dicts within it, with the keys that lead there."""
    yield place, {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if depth < WRAPPERS:
        for key, value in content.items():
            if isinstance(value, dict):
                yield from _dicts(value, f"{place}/{key}" if place else str(key), depth + 1)


def core(tensors: Tensors, *prefer: str, where: Path, stem: str = STEM) -> dict[str, Tensor]:
    """Return the tensors without the prefix that the encoder's names share, whatever it is ("module.backbone.", "encoder.", "model.").

    Tensors beside the encoder keep their names, without the part of the prefix that all names share. Where several encoders have a `stem`, the
    prefix that holds a word of `prefer` is the one, and the tensors of the others are left out.

    Raises:
        ValueError: no tensor is named so, or several encoders are and none is preferred.
    """
    prefixes = [name.removesuffix(stem) for name in tensors if name == stem or name.endswith(f".{stem}")]
    if not prefixes:
        raise ValueError(
            f"{where} has no tensor named ...{stem}; its names are {shortened(list(tensors)) or 'none'}: is it of another layout?"
        )
    preferred = next(
        (found for word in prefer if (found := [prefix for prefix in prefixes if word in prefix.split(".")])), prefixes
    )
    if preferred is prefixes and len(prefixes) > 1:
        raise ValueError(
            f"{where} holds several encoders, under {', '.join(map(repr, prefixes))}; keep the one that is meant, alone in a file"
        )
    own = min(preferred, key=len)
    others = tuple(prefix for prefix in prefixes if prefix not in ("", own))
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(own) or not name.startswith(others)}
    return _without(kept, own)


def _without(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors without a prefix; those beside it lose the part of it that every name has."""
    words, shared = prefix.split(".")[:-1], ""
    for word in words:
        if not all(name.startswith(f"{shared}{word}.") for name in tensors):
            break
        shared += f"{word}."
    freed = {
        name.removeprefix(prefix if name.startswith(prefix) else shared): tensor for name, tensor in tensors.items()
    }
    if len(freed) < len(tensors):
        raise ValueError(
            f"names with and without {prefix!r} fall together, e.g. {next(name for name in tensors if prefix + name in tensors)}"
        )
    return freed


def released_name(name: str) -> str:
    """Return what MAE's release calls a parameter of models.mae.MAE ("decoder.blocks.0.norm1.weight" -> "decoder_blocks.0.norm1.weight")."""
    if name == "decoder.mask_token":
        return "mask_token"
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        raise ValueError(f"MAE's released layout has no place for {name!r} (it knows no mask token in the encoder)")
    return rest if part == "encoder" else f"decoder_{rest}"
