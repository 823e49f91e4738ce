"""Backbones by reference: LAYOUT:PATH, timm:NAME, random:NAME, released:NAME, zoo:NAME, or the path of an own file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from mae_transfer.checkpoints.export import FORMAT
from mae_transfer.checkpoints.files import (
    DIGEST,
    RecordedStatistics,
    evaluated,
    metadata,
    read,
    read_statistics,
    sha256,
    split,
    weight_file,
)
from mae_transfer.checkpoints.fit import EncoderWeights, change
from mae_transfer.checkpoints.released import RECORD, download, find_released, zoo_file
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.disk import at_home
from mae_transfer.interfaces import Backbone
from mae_transfer.models.vit import SIZES, ViT, ViTConfig

if TYPE_CHECKING:
    from mae_transfer.checkpoints.image_gpt import ImageGPTWeights
    from mae_transfer.checkpoints.timm_models import TimmWeights

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
LAYOUTS = {
    "": "load.read_backbone",
    "mae": "layouts.mae",
    "mae-full": "layouts.mae_full",
    "mae-finetuned": "layouts.mae_finetuned",
    "moco-v3": "layouts.moco_v3",
    "dino": "layouts.dino",
    "ibot": "timm_models.ibot",
    "beit": "layouts.beit",
    "simmim": "timm_models.simmim",
    "deit": "layouts.deit",
    "augreg": "layouts.augreg",
    "dinov2": "timm_models.dinov2",
    "mmpretrain": "layouts.mmpretrain",
    "hf": "hf.hf",
    "moby": "timm_models.moby",
    "esvit": "timm_models.esvit",
}
"""Prefix -> module and function of this folder that reads a file of the layout, imported when a reference needs it."""
PREFIXES = (*LAYOUTS, "timm", "random", "released", "zoo")


class LoadedWeights(NamedTuple):
    """A backbone and the rest of its file."""

    backbone: Backbone  # in eval mode
    head: dict[str, Tensor]  # tensors of the classifier, fc_norm.* and head.*; empty if the file has none
    sha256: str | None  # of the file; None if there is no file (random:) or timm fetched it
    statistics: Statistics = IMAGENET  # normalisation of the images; 0.5 for BEiT's and AugReg's releases
    recorded: bool = False  # True: the statistics are recorded in the file; False: they are the layout's default


def load_backbone(reference: str | Path, *, changes: Mapping[str, Any] = NO_CHANGES) -> Backbone:
    """Return the encoder of a reference, with its weights, in eval mode.

    `load` also returns its classifier and the file's sha256.
    """
    return load(reference, changes=changes).backbone


def load(reference: str | Path, *, changes: Mapping[str, Any] = NO_CHANGES) -> LoadedWeights:
    """Return the backbone of a reference, its classifier and its statistics.

    Args:
        reference: the path of a backbone of this package; LAYOUT:PATH with a prefix of LAYOUTS; timm:NAME or
            timm:NAME@PATH; random:ViT-B/16 or random:NAME with a name of timm, initialised from torch's current seed;
            released:NAME, downloaded once and cached; zoo:NAME, part of this package.
        changes: fields of ViTConfig that the task overrides, e.g. {"image_size": 448, "drop_path": 0.1,
            "final_norm": False}.
    Raises:
        ValueError: unknown layout, unreadable file, an unexpected or missing tensor, or an impossible change. If the
            file looks like one of another layout, the message names that layout.
    """
    prefix, rest = split(reference, PREFIXES)
    try:
        loaded = _load(prefix, rest, changes)
    except ValueError as error:
        raise _explain(error, str(reference), prefix, rest) from None
    loaded.backbone.eval()
    return loaded


def own_file(reference: str | Path) -> Path | None:
    """Return the file of a reference to own weights, a bare path or zoo:NAME; None for any other reference."""
    prefix, rest = split(reference, PREFIXES)
    if prefix == "zoo":
        return zoo_file(rest)
    return None if prefix else Path(rest)


def training_metadata(reference: str | Path) -> dict[str, Any]:
    """Return what an own file records of its training, which exports keep; empty for any other reference."""
    file = own_file(reference)
    about = metadata(file) if file else {}
    return {key: value for key, value in about.items() if key not in ("format", "architecture", DIGEST)}


def read_backbone(path: Path) -> EncoderWeights | TimmWeights:
    """Read a file of `export_backbone`, whose metadata hold the architecture, or a training state of a pretraining."""
    if path.suffix == ".pt":
        return _read_state(path)
    about = metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a backbone written by this package (format {about.get('format')!r}, not {FORMAT!r}); "
            "name its layout, e.g. mae:PATH"
        )
    architecture = about.get("architecture")
    if not isinstance(architecture, dict):
        raise ValueError(f"{path} is damaged: its metadata have no architecture; export it again")
    if "timm" in architecture:
        from mae_transfer.checkpoints.timm_models import TimmWeights

        size = architecture["image_size"]
        return TimmWeights(architecture["timm"], read(path), {"img_size": tuple(size)} if size else {})
    return EncoderWeights(_architecture(architecture, path), read(path), {})


def _read_state(path: Path) -> EncoderWeights | TimmWeights:
    """Read the encoder of a step_*.pt."""
    content, about = read(path), metadata(path)
    record = about.get(RECORD, {})
    if not record and {"model", "optimizer", "step"} <= content.keys():
        raise ValueError(
            f"{path} has no record of its run: it is of an earlier version; give the backbone.safetensors that the run "
            "wrote at its end, or continue the run"
        )
    if record.get("task") != "pretrain":
        kind = f"a training state of a run of {record['task']}" if record else "not a training state of this package"
        raise ValueError(
            f"{path} is {kind}: give a backbone.safetensors or a step_*.pt of a pretraining, or name the file's "
            "layout, e.g. mae:PATH"
        )
    tensors = {
        name.removeprefix("encoder."): value
        for name, value in evaluated(content).items()
        if name.startswith("encoder.")
    }
    recipe = about["recipe"]
    model, statistics = recipe["model"], Statistics(tuple(recipe["mean"]), tuple(recipe["std"]))
    if model.get("timm"):
        from mae_transfer.checkpoints.timm_models import TimmWeights, sized

        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
        options = sized(model["timm"], model["encoder"]["image_size"])
        return TimmWeights(model["timm"], tensors, options, recorded=statistics)
    return EncoderWeights(_architecture(model["encoder"], path), tensors, {}, recorded=statistics)


def _architecture(values: Mapping[str, Any], path: Path) -> ViTConfig:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return validate(fields, ViTConfig, where=f"architecture in {path}")


def _load(prefix: str, rest: str, changes: Mapping[str, Any]) -> LoadedWeights:
    if prefix == "zoo":
        return _load("", str(zoo_file(rest)), changes)
    if prefix == "released":  # the statistics of every release in the table are known
        entry = find_released(rest)
        if entry.layout not in LAYOUTS:
            raise ValueError(f"released:{rest} is a tokenizer, not a backbone: name it in target.tokenizer")
        return _load(entry.layout, str(download(entry)), changes)._replace(recorded=True)
    if prefix == "random":
        return LoadedWeights(_random(rest, changes), {}, None)
    if prefix == "timm":
        from mae_transfer.checkpoints.timm_models import load_timm

        name, at, path = rest.partition("@")
        file = Path(at_home(path)) if at else None
        backbone, statistics = load_timm(name, file, changes, where=f"timm:{rest}")
        default = RecordedStatistics(statistics, file is None)
        return _with_statistics(backbone, {}, default, file) if file else LoadedWeights(backbone, {}, None, *default)
    module, _, function = LAYOUTS[prefix].partition(".")
    reader: Callable[[Path], EncoderWeights | TimmWeights | ImageGPTWeights]
    reader = getattr(importlib.import_module(f"mae_transfer.checkpoints.{module}"), function)
    weights = reader(Path(rest))
    default = RecordedStatistics(weights.recorded or weights.statistics, weights.recorded is not None)
    return _with_statistics(weights.build(changes, where=rest), weights.head, default, weight_file(Path(rest)))


def _random(name: str, changes: Mapping[str, Any]) -> Backbone:
    """Return ViT-{Ti,S,B,L,H}/PATCH with MAE's initialisation, or a timm model with timm's."""
    if not name.startswith("ViT-"):
        from mae_transfer.checkpoints.timm_models import wrap

        return wrap(name, changes)
    letter, _, patch = name.removeprefix("ViT-").partition("/")
    size = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large", "H": "vit_huge"}.get(letter)
    if size not in SIZES or not patch.isdigit():
        raise ValueError(
            f"random:{name}: write ViT-{{Ti,S,B,L,H}}/PATCH, e.g. random:ViT-B/16, or the name of a timm model"
        )
    architecture = ViTConfig.model_validate({"size": size, "patch": int(patch)})
    return ViT(change(architecture, changes, where=f"random:{name}"))


def _with_statistics(
    backbone: Backbone, head: dict[str, Tensor], default: RecordedStatistics, file: Path
) -> LoadedWeights:
    """Return the backbone with its file's sha256 and statistics; recorded ones take precedence over a default.

    Raises:
        ValueError: two records contradict each other.
    """
    digest, stored = sha256(file), read_statistics(file)
    known = stored or default
    if stored and default.recorded and not default.statistics.matches(stored.statistics):
        if stored.recorded:
            raise ValueError(
                f"{file}: two records of its statistics contradict each other, {default.statistics.text()} and "
                f"{stored.statistics.text()}; correct one"
            )
        known = default
    return LoadedWeights(backbone, head, digest, *known)


def _explain(error: ValueError, reference: str, prefix: str, rest: str) -> ValueError:
    """Return the error with the reference, and with the layouts that the file looks like if they are others."""
    from mae_transfer.checkpoints.layouts import looks_like

    likely = looks_like(Path(rest))
    if Path(rest).name not in str(error):
        error = ValueError(f"{reference}: {error}")
    if not likely or prefix in likely:
        return error
    proposals = " or ".join(repr(f"{name}:{rest}" if name else rest) for name in likely)
    return ValueError(
        f"{error}\n  judging by its tensors, the file looks like {proposals}; layouts are never guessed: "
        "if this is right, pass that reference"
    )
