"""Backbones from files and into files. A reference is LAYOUT:PATH ("mae:mae_pretrain_vit_base.pth"), or a bare path of a backbone of this suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from mae_transfer.checkpoints import layouts, timm_models
from mae_transfer.checkpoints.download import fetch
from mae_transfer.checkpoints.export import FORMAT, FORMATS, export_backbone
from mae_transfer.checkpoints.files import load_strict, metadata, read, sha256, weight_file, write
from mae_transfer.checkpoints.fit import changed, fit
from mae_transfer.checkpoints.hf import hf
from mae_transfer.checkpoints.hints import looks_like
from mae_transfer.checkpoints.layouts import Found
from mae_transfer.checkpoints.names import released_name, unwrap
from mae_transfer.checkpoints.released import RELEASED, weights
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.models.mae import MAE
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import SIZES, ViT, ViTConfig

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})

__all__ = [
    "FORMAT",
    "FORMATS",
    "LAYOUTS",
    "RELEASED",
    "Loaded",
    "export_backbone",
    "export_mae",
    "load",
    "load_backbone",
    "load_mae",
    "metadata",
    "read",
    "sha256",
]


class Loaded(NamedTuple):
    """A backbone, and what came with it."""

    backbone: ViT | TimmBackbone  # in eval mode
    head: dict[str, Tensor]  # a classifier's tensors, fc_norm.* and head.*; empty where the file has none
    sha256: str | None  # of the file; None where there is none (random:) or timm fetched it
    statistics: Statistics = IMAGENET  # what its images were normalised with: 0.5 for BEiT's and AugReg's releases


Layout = Callable[[str, Mapping[str, Any]], Loaded]  # what stands behind the prefix, changes


def load_backbone(reference: str | Path, *, changes: Mapping[str, Any] = NO_CHANGES) -> ViT | TimmBackbone:
    """Return the encoder that a reference names, with its weights, in eval mode (`load` gives its classifier and the file's sha256 too)."""
    return load(reference, changes=changes).backbone


def load(reference: str | Path, *, changes: Mapping[str, Any] = NO_CHANGES) -> Loaded:
    """Return what a reference names.

    Args:
        reference: a bare path (this suite's own), or PREFIX:PATH with a prefix of LAYOUTS; timm:NAME and timm:NAME@PATH; random:ViT-B/16 or
            random:NAME of timm's, from torch's current seed; released:NAME, fetched once and kept.
        changes: fields of ViTConfig that the task wants otherwise than in the file, e.g. {"image_size": 448, "drop_path": 0.1, "final_norm": False}.
    Raises:
        ValueError: unknown layout, unreadable file, a tensor that finds no place or is missing, a change that cannot be made; where the file looks
            like one of another layout, the message names it.
    """
    prefix, colon, rest = str(reference).partition(":")
    prefix, rest = (prefix, rest) if colon else ("", prefix)
    if prefix not in LAYOUTS:
        raise ValueError(f"no layout {prefix!r} in {str(reference)!r}; known are {', '.join(f'{name}:' for name in LAYOUTS if name)} or a bare path")
    try:
        loaded = LAYOUTS[prefix](rest, changes)
    except ValueError as error:
        likely = looks_like(Path(rest))
        if not likely or prefix in likely:
            raise
        proposals = " or ".join(repr(f"{name}:{rest}" if name else rest) for name in likely)
        raise ValueError(f"{error}\n  by its tensors the file looks like {proposals}; no layout is guessed: write it if it is so") from None
    loaded.backbone.eval()
    return loaded


def load_mae(model: MAE, path: Path) -> None:
    """Fill encoder and decoder from a released `*_full.pth` (MAE with its decoder), to continue pretraining or to draw."""
    tensors = unwrap(read(path), "model", where=path)
    names = {released_name(name): name for name in model.state_dict()}
    load_strict(model, {names.get(name, name): tensor for name, tensor in tensors.items()}, where=str(path))


def export_mae(path: Path, model: MAE, *, about: Mapping[str, Any]) -> None:
    """Write encoder and decoder as .safetensors under the released names."""
    write(path, {released_name(name): tensor for name, tensor in model.state_dict().items()}, about)


def _own(path: Path) -> Found:
    """backbone.safetensors of this suite: the architecture stands in the metadata."""
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a backbone written by this suite (format {about.get('format')!r}, not {FORMAT!r}); name its layout")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in about["architecture"].items()}
    recipe = about.get("recipe", {})
    statistics = Statistics(tuple(recipe["mean"]), tuple(recipe["std"])) if "mean" in recipe else IMAGENET
    return Found(validate(fields, ViTConfig, where=f"architecture in {path}"), read(path), {}, statistics)


def _encoder(layout: Callable[[Path], Found]) -> Layout:
    """Make a layout of this suite's encoder from what finds the tensors."""

    def read_and_fit(path: str, changes: Mapping[str, Any]) -> Loaded:
        found = layout(Path(path))
        return Loaded(fit(found, changes, where=path), found.head, sha256(weight_file(Path(path))), found.statistics)

    return read_and_fit


def _timm_file(layout: Callable[[Path, Mapping[str, Any]], TimmBackbone]) -> Layout:
    """Make a layout of one that fills a timm model from a file."""
    return lambda path, changes: Loaded(layout(Path(path), changes), {}, sha256(Path(path)))


def _timm(reference: str, changes: Mapping[str, Any]) -> Loaded:
    backbone, path = timm_models.timm_model(reference, changes), reference.partition("@")[2]
    return Loaded(backbone, {}, sha256(Path(path)) if path else None, timm_models.statistics(backbone))


def _random(name: str, changes: Mapping[str, Any]) -> Loaded:
    """ViT-{Ti,S,B,L,H}/PATCH as MAE initialises it, or a model of timm's as timm does."""
    letter, _, patch = name.removeprefix("ViT-").partition("/")
    size = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large", "H": "vit_huge"}.get(letter)
    if not name.startswith("ViT-"):
        return Loaded(timm_models.wrap(name, changes), {}, None)
    if size not in SIZES or not patch.isdigit():
        raise ValueError(f"random:{name}: write ViT-{{Ti,S,B,L,H}}/PATCH, e.g. random:ViT-B/16, or the name of a timm model")
    architecture = ViTConfig.model_validate({"size": size, "patch": int(patch)})
    return Loaded(ViT(changed(architecture, changes, where=f"random:{name}")), {}, None)


def _released(name: str, changes: Mapping[str, Any]) -> Loaded:
    entry = weights(name)
    return LAYOUTS[entry.layout](str(fetch(entry)), changes)


LAYOUTS: dict[str, Layout] = {
    "": _encoder(_own),
    "mae": _encoder(layouts.mae),
    "mae-full": _encoder(layouts.mae_full),
    "mae-finetuned": _encoder(layouts.mae_finetuned),
    "moco-v3": _encoder(layouts.moco_v3),
    "dino": _encoder(layouts.dino),
    "ibot": _encoder(layouts.ibot),
    "beit": _encoder(layouts.beit),
    "deit": _encoder(layouts.deit),
    "augreg": _encoder(layouts.augreg),
    "dinov2": _encoder(layouts.dinov2),
    "mmpretrain": _encoder(layouts.mmpretrain),
    "hf": _encoder(hf),
    "moby": _timm_file(timm_models.moby),
    "esvit": _timm_file(timm_models.esvit),
    "timm": _timm,
    "random": _random,
    "released": _released,
}
