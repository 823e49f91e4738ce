"""Released layouts: what each one calls its tensors. A layout is asked for by name; nothing is guessed from keys.

The encoder of this suite bears the released MAE names, so a released encoder needs no renaming; the decoder's prefix is all that differs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mae_transfer.checkpoints.files import Tensors
from mae_transfer.models.vit import SIZES, ViTConfig


def released_name(name: str) -> str:
    """Return what MAE's release calls a parameter of models.mae.MAE ("decoder.blocks.0.norm1.weight" -> "decoder_blocks.0.norm1.weight")."""
    if name == "decoder.mask_token":
        return "mask_token"
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        raise ValueError(f"MAE's released layout has no place for {name!r} (it knows no mask token in the encoder)")
    return rest if part == "encoder" else f"decoder_{rest}"


def unwrap(content: dict[str, Any], key: str, *, where: str) -> Tensors:
    """Return the dict of tensors that a file holds under `key`; ValueError says what it holds instead."""
    if not isinstance(content.get(key), dict):
        raise ValueError(f"{where} has no {key!r} entry (it has {', '.join(list(content)[:6])}): is it of another layout?")
    tensors: dict[str, Tensor] = content[key]
    return tensors


def architecture(tensors: Tensors, *, where: str) -> ViTConfig:
    """Return the architecture of a plain ViT in MAE's names. The head count is not in the weights: it comes from the named size of that width.

    Raises:
        ValueError: no named size has this width and depth, or a tensor that tells the shape is missing.
    """
    try:
        dim, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        tokens = tensors["pos_embed"].shape[1] - 1
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    except (KeyError, ValueError):
        raise ValueError(f"{where} has no patch_embed, pos_embed or blocks in MAE's names: is it of another layout?") from None
    size = next((name for name, (width, blocks, _) in SIZES.items() if (width, blocks) == (dim, depth)), None)
    if size is None or round(tokens**0.5) ** 2 != tokens:
        raise ValueError(f"{where}: width {dim}, depth {depth}, {tokens} patches is none of {', '.join(SIZES)} on a square image")
    return ViTConfig.model_validate({"size": size, "patch": patch, "channels": channels, "image_size": round(tokens**0.5) * patch})
