"""The backbone of a transfer task: from a reference, or the config's own encoder with fresh weights; and what a Result says of it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer import checkpoints
from mae_transfer.checkpoints.statistics import same, text
from mae_transfer.config import Schema, load, validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.core.patches import sides
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.record import Weights
from mae_transfer.seeding import fold
from mae_transfer.tasks.workdir import WorkDir, run_of

COLOURS = 3  # channels of the images of every transfer task


class BackboneConfig(Schema):
    """Which backbone a transfer task takes."""

    reference: str | None = None
    """Weights: a backbone.safetensors of this suite, or PREFIX:PATH ("mae:", "timm:", "random:ViT-B/16" ...); None: `encoder`, from scratch."""
    encoder: ViTConfig | None = None
    """Architecture of a fresh encoder, where there is no reference."""
    changes: dict[str, Any] = Field(default={})
    """Fields of ViTConfig to have otherwise than in the weights, beside those that the task sets: {"class_token": False}."""


class Chosen(NamedTuple):
    """A backbone with its provenance."""

    model: nn.Module  # an interfaces.Backbone
    head: dict[str, Tensor]  # a classifier's tensors that came with it (fc_norm.*, head.*); mostly none
    name: str  # "vit_base/16"
    pretrain: str  # what it learned from: "MAE norm_pixel, random 75%, 800 ep", "moco-v3", "none"
    sha256: str | None  # of the weight file
    statistics: Statistics = IMAGENET  # what its images are normalised with
    normalization: str = ""  # the same in words, and where it comes from
    origin: Weights = checkpoints.RANDOM  # where the weights come from, for the record


def statistics_of(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Statistics | None:
    """Return the statistics that a config sets, None where it sets none; ValueError where it sets one half, or other numbers of channels."""
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std):
        raise ValueError(
            f"mean = {mean} and std = {std}: set both, with one value per channel, or leave both out (the backbone's own)"
        )
    return Statistics(mean, std)


def open_backbone(
    cfg: BackboneConfig, changes: Mapping[str, Any], *, statistics: Statistics | None, seed: int
) -> Chosen:
    """Return the backbone, with the task's changes and then the config's own; fresh weights depend on the seed alone.

    Args:
        statistics: that the config sets for the images; None: those that the weights learned from.
    Raises:
        ValueError: neither a reference nor an encoder is given, the reference cannot be loaded so, it takes no images of three channels, or
            `statistics` contradict those that are recorded with the weights, which would quietly cost accuracy.
    """
    if statistics is not None and len(statistics.mean) != COLOURS:
        raise ValueError(
            f"{text(statistics)} have {len(statistics.mean)} values; the images of a transfer task have {COLOURS} channels"
        )
    torch.manual_seed(fold(seed, "init"))
    wanted = {**changes, **cfg.changes}
    if cfg.reference is not None:
        loaded = checkpoints.load(cfg.reference, changes=wanted)
        _takes_colours(loaded.backbone, cfg.reference)
        settled, said = settle(cfg.reference, loaded, statistics)
        return Chosen(
            loaded.backbone,
            loaded.head,
            _name(loaded.backbone),
            pretrain_of(cfg.reference),
            loaded.sha256,
            settled,
            said,
            checkpoints.origin(cfg.reference, checkpoints.LAYOUTS, sha256=loaded.sha256),
        )
    if cfg.encoder is None:
        raise ValueError(
            "no backbone: give --backbone REFERENCE (backbone.reference), or the architecture of a fresh one (backbone.encoder)"
        )
    vit = ViT(validate({**cfg.encoder.model_dump(), **wanted}, ViTConfig, where="backbone.encoder"))
    _takes_colours(vit, "backbone.encoder")
    return Chosen(vit, {}, _name(vit), "none", None, statistics or IMAGENET, fresh(statistics))


def fresh(wanted: Statistics | None) -> str:
    """Return what images are normalised with where the weights have learned from none."""
    return f"{text(wanted or IMAGENET)} ({'set by the config' if wanted else 'those of ImageNet'}; fresh weights)"


def settle(reference: str, loaded: checkpoints.Loaded, wanted: Statistics | None) -> tuple[Statistics, str]:
    """Return what images are normalised with, and a sentence on it: what is recorded with the weights, what the config sets, or a default.

    Raises:
        ValueError: the config contradicts what is recorded.
    """
    own, prefix = loaded.statistics, checkpoints.split(reference, checkpoints.LAYOUTS)[0]
    if prefix == "random":
        return wanted or own, fresh(wanted)
    if loaded.recorded:
        if wanted is not None and not same(own, wanted):
            raise ValueError(
                f"{reference} learned from images of {text(own)}, which is recorded with its weights, and the config sets {text(wanted)}: "
                f"leave mean and std out, or --set 'mean={own.mean}' --set 'std={own.std}'"
            )
        return own, f"{text(own)} (recorded with the weights)"
    default = f"the default of {prefix + ':' if prefix else 'this layout'}"
    if wanted is None or same(own, wanted):
        return own, f"{text(own)} ({default}; the file does not say: --set mean= and std= if it learned from others)"
    return wanted, f"{text(wanted)} (set by the config instead of {default}, {text(own)}; the file does not say)"


def _takes_colours(backbone: nn.Module, where: str) -> None:
    """Raise ValueError unless the backbone takes images of three channels."""
    first = next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), COLOURS)
    channels = backbone.cfg.channels if isinstance(backbone, ViT) else first
    if channels != COLOURS:
        raise ValueError(
            f"{where} takes images of {channels} channel(s) (encoder.channels, patch_embed.proj.weight), and the images of a transfer task have "
            f"{COLOURS}: pretrain with model.encoder.channels=3, or convert its filters (one channel: repeat them three times, divided by three)"
        )


def backbone_of(cfg: BackboneConfig, schema: type[Schema], checkpoint_file: str) -> BackboneConfig:
    """Return the config's backbone, or, where it has no reference, that of the run whose work dir the training state lies in.

    A config's own encoder gives way: a run that was started from it with --backbone has its provenance from there.

    schema: of the run's config, which has a field `backbone`.
    """
    root = run_of(checkpoint_file)
    if cfg.reference is not None or root is None:
        return cfg
    found: BackboneConfig = load(WorkDir(root).config, schema).backbone  # type: ignore[attr-defined]
    return found


def trained_statistics(own: Statistics | None, schema: type[Schema], checkpoint_file: str) -> Statistics | None:
    """Return what a training state is evaluated with: the statistics of the run that it lies in, else the config's `own`.

    schema: of the run's config. ValueError where the config sets others than the run had.
    """
    root = run_of(checkpoint_file)
    if root is None:
        return own
    theirs: Statistics | None = load(WorkDir(root).config, schema).statistics  # type: ignore[attr-defined]
    if own is not None and (theirs is None or not same(own, theirs)):
        had = text(theirs) if theirs else "its backbone's own mean and std"
        raise ValueError(
            f"{checkpoint_file} was trained with {had}, and the config sets {text(own)}: leave mean and std out"
        )
    return theirs


def tokens_of(backbone: nn.Module, size: int | tuple[int, int]) -> int | None:
    """Return how many tokens the backbone makes of an image of this size (one side, or height and width); None where it is no plain ViT."""
    return (
        prod(side // backbone.patch for side in sides(size)) + backbone.leading if isinstance(backbone, ViT) else None
    )


def flops_of(model: nn.Module, size: int | tuple[int, int], *, backward: bool) -> int:
    """Return the floating-point operations for one image, counted by torch (2 per multiply-add): forward, and backward as far as anything trains."""
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    image = torch.zeros(1, 3, *sides(size), device=next(model.parameters()).device)
    # the counter does not know every fused attention kernel; the plain one is matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        output = model.forward(image)  # not __call__, which may be compiled
        if backward:  # what serves training alone (a segmenter's auxiliary head) has no part in it
            torch.autograd.grad((output if isinstance(output, Tensor) else output[0]).sum(), trained, allow_unused=True)
    return int(counter.get_total_flops())


def _name(backbone: nn.Module) -> str:
    if isinstance(backbone, ViT):
        return backbone.cfg.name()
    return type(getattr(backbone, "model", backbone)).__name__


def pretrain_of(reference: str) -> str:
    """Return what results call the pretraining of the weights that a reference means."""
    prefix, rest = checkpoints.split(reference, checkpoints.LAYOUTS)
    if file := checkpoints.own_file(reference):
        return str(checkpoints.metadata(file).get("pretrain", "unknown"))
    return {"random": "none", "timm": reference, "released": rest}.get(prefix, prefix)
