"""The backbone of a transfer task: from a reference, or the config's own encoder with fresh weights; and what a Result says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer import checkpoints
from mae_transfer.config import Schema, load, validate
from mae_transfer.core.normalize import Statistics
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.seeding import fold
from mae_transfer.tasks.workdir import WorkDir, run_of

TOLERANCE = 5e-3  # between two roundings of the same mean or standard deviation


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


def open_backbone(cfg: BackboneConfig, changes: Mapping[str, Any], *, statistics: Statistics, seed: int) -> Chosen:
    """Return the backbone, with the task's changes and then the config's own; fresh weights depend on the seed alone.

    Raises:
        ValueError: neither a reference nor an encoder is given, the reference cannot be loaded so, or it learned from images that were normalised
            otherwise than by `statistics` (the releases of BEiT and AugReg), which would quietly cost accuracy.
    """
    torch.manual_seed(fold(seed, "init"))
    wanted = {**changes, **cfg.changes}
    if cfg.reference is not None:
        loaded = checkpoints.load(cfg.reference, changes=wanted)
        if any(abs(a - b) > TOLERANCE for a, b in zip(sum(loaded.statistics, ()), sum(statistics, ()), strict=True)):
            mean, std = loaded.statistics
            raise ValueError(f"{cfg.reference} learned from images of mean {mean} and std {std}: --set 'mean={mean}' --set 'std={std}'")
        return Chosen(loaded.backbone, loaded.head, _name(loaded.backbone), pretrain_of(cfg.reference), loaded.sha256)
    if cfg.encoder is None:
        raise ValueError("no backbone: give --backbone REFERENCE (backbone.reference), or the architecture of a fresh one (backbone.encoder)")
    vit = ViT(validate({**cfg.encoder.model_dump(), **wanted}, ViTConfig, where="backbone.encoder"))
    return Chosen(vit, {}, _name(vit), "none", None)


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


def tokens_of(backbone: nn.Module, size: int) -> int | None:
    """Return how many tokens the backbone makes of a square image; None where it is no plain ViT."""
    return (size // backbone.patch) ** 2 + backbone.leading if isinstance(backbone, ViT) else None


def flops_of(model: nn.Module, size: int, *, backward: bool) -> int:
    """Return the floating-point operations for one image, counted by torch (2 per multiply-add): forward, and backward as far as anything trains."""
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
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
    prefix, colon, rest = reference.partition(":")
    if not colon:
        return str(checkpoints.metadata(Path(reference)).get("pretrain", "unknown"))
    return {"random": "none", "timm": reference, "released": rest}.get(prefix, prefix)
