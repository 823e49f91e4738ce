"""Loading and saving of backbones.

A reference is LAYOUT:PATH, for example "mae:mae_pretrain_vit_base.pth", or the path of a backbone of this suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from mae_transfer.checkpoints import layouts, statistics, timm_models, timm_vit, zoo
from mae_transfer.checkpoints.download import fetch
from mae_transfer.checkpoints.export import FORMAT, FORMATS, export_backbone, to_dtype
from mae_transfer.checkpoints.files import DIGEST, metadata, read, sha256, weight_file, write
from mae_transfer.checkpoints.fit import changed, fit
from mae_transfer.checkpoints.hf import hf
from mae_transfer.checkpoints.hints import looks_like
from mae_transfer.checkpoints.layouts import Found
from mae_transfer.checkpoints.names import core, released_name, unwrap
from mae_transfer.checkpoints.origin import RANDOM, RECORD, origin
from mae_transfer.checkpoints.references import split
from mae_transfer.checkpoints.released import RELEASED, weights
from mae_transfer.checkpoints.start import fill, load_mae
from mae_transfer.checkpoints.statistics import Said, stored
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.home import at_home
from mae_transfer.models.mae import MAE
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import SIZES, ViT, ViTConfig

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})

__all__ = [
    "FORMAT",
    "FORMATS",
    "LAYOUTS",
    "RANDOM",
    "RECORD",
    "RELEASED",
    "Loaded",
    "export_backbone",
    "export_mae",
    "fill",
    "load",
    "load_backbone",
    "load_mae",
    "metadata",
    "origin",
    "own_file",
    "read",
    "sha256",
    "split",
    "statistics",
    "to_dtype",
    "training_metadata",
    "zoo",
]


class Loaded(NamedTuple):
    """A backbone and the rest of its file."""

    backbone: ViT | TimmBackbone  # in eval mode
    head: dict[str, Tensor]  # tensors of the classifier, fc_norm.* and head.*; empty if the file has none
    sha256: str | None  # of the file; None if there is no file (random:) or timm fetched it
    statistics: Statistics = IMAGENET  # normalisation of the images; 0.5 for BEiT's and AugReg's releases
    recorded: bool = False  # True: the statistics are recorded in the file; False: they are the layout's default


Layout = Callable[[str, Mapping[str, Any]], Loaded]  # (reference without its prefix, changes) -> backbone


def load_backbone(reference: str | Path, *, changes: Mapping[str, Any] = NO_CHANGES) -> ViT | TimmBackbone:
    """Return the encoder of a reference, with its weights, in eval mode.

    `load` also returns its classifier and the file's sha256.
    """
    return load(reference, changes=changes).backbone


def load(reference: str | Path, *, changes: Mapping[str, Any] = NO_CHANGES) -> Loaded:
    """Return the backbone of a reference, its classifier and its statistics.

    Args:
        reference: the path of a backbone of this suite; PREFIX:PATH with a prefix of LAYOUTS; timm:NAME or
            timm:NAME@PATH; random:ViT-B/16 or random:NAME with a name of timm, initialised from torch's current seed;
            released:NAME, downloaded once and cached; zoo:NAME, part of this package.
        changes: fields of ViTConfig that the task overrides, e.g. {"image_size": 448, "drop_path": 0.1,
            "final_norm": False}.
    Raises:
        ValueError: unknown layout, unreadable file, an unexpected or missing tensor, or an impossible change. If the
            file looks like one of another layout, the message names that layout.
    """
    prefix, rest = split(reference, LAYOUTS)
    try:
        loaded = LAYOUTS[prefix](rest, changes)
    except ValueError as error:
        likely = looks_like(Path(rest))
        if Path(rest).name not in str(error):
            error = ValueError(f"{reference}: {error}")
        if not likely or prefix in likely:
            raise error from None
        proposals = " or ".join(repr(f"{name}:{rest}" if name else rest) for name in likely)
        raise ValueError(
            f"{error}\n  judging by its tensors, the file looks like {proposals}; layouts are never guessed: "
            "if this is right, pass that reference"
        ) from None
    loaded.backbone.eval()
    return loaded


def export_mae(path: Path, model: MAE, *, about: Mapping[str, Any]) -> None:
    """Write encoder and decoder as .safetensors under MAE's released names."""
    write(path, {released_name(name): tensor for name, tensor in model.state_dict().items()}, about)


def own_file(reference: str | Path) -> Path | None:
    """Return the file of a reference to own weights, a bare path or zoo:NAME; None for any other reference."""
    prefix, rest = split(reference, LAYOUTS)
    if prefix == "zoo":
        return zoo.weight_path(rest)
    return None if prefix else Path(rest)


def training_metadata(reference: str | Path) -> dict[str, Any]:
    """Return what a file of this suite records of its training, which exports keep; empty for any other reference."""
    file = own_file(reference)
    about = metadata(file) if file else {}
    return {key: value for key, value in about.items() if key not in ("format", "architecture", DIGEST)}


def _own(path: Path) -> Found:
    """Read backbone.safetensors of this suite; the metadata hold the architecture."""
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a backbone written by this suite (format {about.get('format')!r}, not {FORMAT!r}); "
            "name its layout, e.g. mae:PATH"
        )
    architecture = about.get("architecture")
    if not isinstance(architecture, dict):
        raise ValueError(f"{path} is damaged: its metadata have no architecture; export it again")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in architecture.items()}
    return Found(validate(fields, ViTConfig, where=f"architecture in {path}"), read(path), {})


def _encoder(layout: Callable[[Path], Found]) -> Layout:
    """Return a layout that loads this suite's encoder from the tensors that `layout` finds."""

    def read_and_fit(path: str, changes: Mapping[str, Any]) -> Loaded:
        found = layout(Path(path))
        default = Said(found.recorded or found.statistics, found.recorded is not None)
        return _with_statistics(
            Loaded(fit(found, changes, where=path), found.head, None), default, weight_file(Path(path))
        )

    return read_and_fit


def _timm_file(layout: Callable[[Path, Mapping[str, Any]], TimmBackbone]) -> Layout:
    """Return a layout that loads a timm model from a file."""
    return lambda path, changes: _with_statistics(
        Loaded(layout(Path(path), changes), {}, None), Said(IMAGENET, False), Path(path)
    )


def _with_statistics(loaded: Loaded, default: Said, file: Path) -> Loaded:
    """Return `loaded` with the file's sha256 and its recorded statistics, or the default ones."""
    agreed = statistics.agreed(default, stored(file), where=str(file))
    return loaded._replace(sha256=sha256(file), statistics=agreed.statistics, recorded=agreed.recorded)


def _simmim(path: str, changes: Mapping[str, Any]) -> Loaded:
    """Load SimMIM's release: a ViT under BEiT's names, or a Swin."""
    tensors = core(unwrap(read(Path(path)), "model", where=Path(path)), where=Path(path))
    if any(name.startswith("layers.") for name in tensors):
        return _timm_file(lambda file, options: timm_models.simmim_swin(tensors, options, where=file))(path, changes)
    return _encoder(lambda file: layouts.simmim(tensors, where=file))(path, changes)


def _timm(reference: str, changes: Mapping[str, Any]) -> Loaded:
    name, at, path = reference.partition("@")
    file = Path(at_home(path)) if at else None
    converts = timm_vit.asks_for_more(changes)
    model = timm_models.timm_model(name, file, {} if converts else changes)
    default = Said(timm_models.statistics(model), file is None)
    backbone: ViT | TimmBackbone = model
    if converts:
        where = f"timm:{reference}"
        backbone = fit(timm_vit.plain_vit(model.model, where=where), changes, where=where)
    if file is None:
        return Loaded(backbone, {}, None, *default)
    return _with_statistics(Loaded(backbone, {}, None), default, file)


def _random(name: str, changes: Mapping[str, Any]) -> Loaded:
    """Return ViT-{Ti,S,B,L,H}/PATCH with MAE's initialisation, or a timm model with timm's."""
    letter, _, patch = name.removeprefix("ViT-").partition("/")
    size = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large", "H": "vit_huge"}.get(letter)
    if not name.startswith("ViT-"):
        return Loaded(timm_models.wrap(name, changes), {}, None)
    if size not in SIZES or not patch.isdigit():
        raise ValueError(
            f"random:{name}: write ViT-{{Ti,S,B,L,H}}/PATCH, e.g. random:ViT-B/16, or the name of a timm model"
        )
    architecture = ViTConfig.model_validate({"size": size, "patch": int(patch)})
    return Loaded(ViT(changed(architecture, changes, where=f"random:{name}")), {}, None)


def _released(name: str, changes: Mapping[str, Any]) -> Loaded:
    entry = weights(name)
    loaded = LAYOUTS[entry.layout](str(fetch(entry)), changes)
    return loaded._replace(recorded=True)  # the statistics of every release in the table are known


def _zoo(name: str, changes: Mapping[str, Any]) -> Loaded:
    return LAYOUTS[""](str(zoo.weight_path(name)), changes)


LAYOUTS: dict[str, Layout] = {
    "": _encoder(_own),
    "mae": _encoder(layouts.mae),
    "mae-full": _encoder(layouts.mae_full),
    "mae-finetuned": _encoder(layouts.mae_finetuned),
    "moco-v3": _encoder(layouts.moco_v3),
    "dino": _encoder(layouts.dino),
    "ibot": _encoder(layouts.ibot),
    "beit": _encoder(layouts.beit),
    "simmim": _simmim,
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
    "zoo": _zoo,
}
