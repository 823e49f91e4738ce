"""Guesses the layout of a file, for error messages only. Loading always follows the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mae_transfer.checkpoints.files import metadata, read, weight_file
from mae_transfer.checkpoints.names import STEM

Names = set[str]

# (layouts, test of (top: keys of the file, names: names of its tensors)); the first match counts.
SIGNS: tuple[tuple[tuple[str, ...], Callable[[Names, Names], bool]], ...] = (
    (("moco-v3",), lambda top, names: _any(names, "module.base_encoder.")),
    (("augreg",), lambda top, names: _any(names, "Transformer/")),
    (("mmpretrain",), lambda top, names: "backbone.layers.0.ln1.weight" in names),
    (("moby",), lambda top, names: _any(names, "encoder_k.")),
    (("esvit",), lambda top, names: "teacher" in top and any("layers.0.blocks.0." in name for name in names)),
    (("simmim",), lambda top, names: "encoder.mask_token" in names),
    (("hf",), lambda top, names: any(name.endswith("embeddings.cls_token") for name in names)),
    (("ibot",), lambda top, names: any(name.endswith("masked_embed") for name in names)),
    (("dino", "ibot"), lambda top, names: "teacher" in top),
    (("beit",), lambda top, names: "blocks.0.attn.q_bias" in names),
    (("dinov2",), lambda top, names: "blocks.0.ls1.gamma" in names),
    (("mae-full",), lambda top, names: "decoder_embed.weight" in names),
    (("mae-finetuned",), lambda top, names: "fc_norm.weight" in names),
    (("deit", "mae-finetuned"), lambda top, names: "head.weight" in names),
    (("mae", "deit"), lambda top, names: "model" in top and "blocks.0.attn.qkv.weight" in names),
    (("dino", "deit", "mae"), lambda top, names: "blocks.0.attn.qkv.weight" in names),
)


def looks_like(path: Path) -> tuple[str, ...]:
    """Return the prefixes of the layouts that a file looks like; "" is this suite's own.

    The result is empty if no test matches or the file cannot be read.
    """
    try:
        file = weight_file(path)
        if file.suffix == ".safetensors" and metadata(file).get("format"):
            return ("",)
        content = read(file)
    except ValueError:
        return ()
    inner: dict[str, Any] = next(
        (content[key] for key in ("model", "state_dict", "teacher") if isinstance(content.get(key), dict)), content
    )
    names = {str(name) for name in inner}
    prefixes = {stem.removesuffix(STEM) for stem in names if stem.endswith(f".{STEM}")}
    names |= {name.removeprefix(prefix) for prefix in prefixes for name in names}  # as names.core does
    return next((prefixes for prefixes, sign in SIGNS if sign(set(content), names)), ())


def _any(names: Names, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
