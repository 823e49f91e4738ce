"""Backbones from files and into files. A reference is LAYOUT:PATH ("mae:mae_pretrain_vit_base.pth"), or a bare path of a backbone of this suite."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mae_transfer.checkpoints.files import load_strict, metadata, read, sha256, write
from mae_transfer.checkpoints.layouts import architecture, released_name, unwrap
from mae_transfer.config import validate
from mae_transfer.models.mae import MAE
from mae_transfer.models.vit import ViT, ViTConfig

FORMAT = "mae_transfer.backbone/1"

__all__ = ["FORMAT", "LAYOUTS", "export_backbone", "export_mae", "load_backbone", "load_mae", "metadata", "read", "sha256"]


def load_backbone(reference: str | Path) -> ViT:
    """Return the encoder that a reference names, with its weights, in eval mode.

    Raises:
        ValueError: unknown layout, unreadable file, or a tensor that finds no place or is missing.
    """
    layout, colon, path = str(reference).partition(":")
    if not colon:
        layout, path = "", layout
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r} in {str(reference)!r}; known are {', '.join(f'{name}:' for name in LAYOUTS if name)} or a bare path")
    return LAYOUTS[layout](Path(path)).eval()


def export_backbone(path: Path, vit: ViT, *, about: Mapping[str, Any]) -> None:
    """Write an encoder as .safetensors in MAE's released names, its architecture and `about` in the metadata; `load_backbone(path)` reads it back."""
    write(path, vit.state_dict(), {"format": FORMAT, "architecture": vit.cfg.model_dump(mode="json"), **about})


def load_mae(model: MAE, path: Path) -> None:
    """Fill encoder and decoder from a released `*_full.pth` (MAE with its decoder), to continue pretraining or to draw."""
    tensors = unwrap(read(path), "model", where=str(path))
    names = {released_name(name): name for name in model.state_dict()}
    load_strict(model, {names.get(name, name): tensor for name, tensor in tensors.items()}, where=str(path))


def export_mae(path: Path, model: MAE, *, about: Mapping[str, Any]) -> None:
    """Write encoder and decoder as .safetensors under the released names."""
    write(path, {released_name(name): tensor for name, tensor in model.state_dict().items()}, about)


def _own(path: Path) -> ViT:
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a backbone written by this suite (format {about.get('format')!r}, not {FORMAT!r}); name its layout")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in about["architecture"].items()}
    vit = ViT(validate(fields, ViTConfig, where=f"architecture in {path}"))
    load_strict(vit, read(path), where=str(path))
    return vit


def _mae(path: Path, *, drop: Collection[str] = ()) -> ViT:
    """MAE's release: the tensors lie under "model", in the names of this suite's encoder."""
    tensors = unwrap(read(path), "model", where=str(path))
    vit = ViT(architecture(tensors, where=str(path)))
    load_strict(vit, tensors, drop=drop, where=str(path))
    return vit


MAE_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")

LAYOUTS: dict[str, Callable[[Path], ViT]] = {
    "": _own,
    "mae": _mae,  # mae_pretrain_*.pth, detectron2's mirror of them
    "mae-full": partial(_mae, drop=MAE_DECODER),  # *_full.pth, mae_visualize_*.pth
}
