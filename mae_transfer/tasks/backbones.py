"""Opens the backbone of a transfer task, and describes it for the results.

A backbone comes from a reference, or it is the config's own encoder with fresh weights.
"""

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
from mae_transfer.config import Schema, validate
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.core.patches import sides
from mae_transfer.engine.dist import eagerly, keeping_activations
from mae_transfer.interfaces import Backbone
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.record import Weights
from mae_transfer.seeding import fold

DEBUG_ENCODER = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32}
COLOURS = 3  # channels of the images of every transfer task


class BackboneConfig(Schema):
    """The backbone of a transfer task."""

    reference: str | None = None
    """Weights: a backbone.safetensors of this package, or PREFIX:PATH ("mae:", "timm:", "random:ViT-B/16" ...).
    None: `encoder`, from scratch."""
    encoder: ViTConfig | None = None
    """Architecture of a fresh encoder. It is used if `reference` is None."""
    changes: dict[str, Any] = Field(default={})
    """Fields of ViTConfig that differ from the weights, besides those that the task sets: {"class_token": False}."""


class LoadedBackbone(NamedTuple):
    """A backbone with its provenance."""

    model: Backbone
    head: dict[str, Tensor]  # the tensors of a classifier in the same file (fc_norm.*, head.*); usually empty
    name: str  # "vit_base/16"
    pretrain: str  # its pretraining: "MAE norm_pixel, random 75%, 800 ep", "moco-v3", "none"
    sha256: str | None  # of the weight file
    statistics: Statistics = IMAGENET  # mean and standard deviation to normalise its images with
    normalization: str = ""  # `statistics` and their origin, in words
    origin: Weights = checkpoints.RANDOM  # where the weights come from, for the record
    image_size: int | tuple[int, int] | None = None  # pixels of its images: one side, or height and width

    def described(self) -> dict[str, Any]:
        """Return the fields of a Result that all tasks with a backbone share."""
        return {
            "split": "val",
            "unit": "%",
            "higher_is_better": True,
            "backbone": self.name,
            "pretrain": self.pretrain,
            "checkpoint_sha256": self.sha256,
            "normalization": self.normalization,
            "tokens_per_image": tokens_of(self.model, self.image_size) if self.image_size else None,
        }


def open_backbone(
    cfg: BackboneConfig, changes: Mapping[str, Any], *, statistics: Statistics | None, seed: int
) -> LoadedBackbone:
    """Return the backbone with the changes of the task and of the config, whose own come last.

    Fresh weights depend only on the seed.

    Args:
        statistics: set by the config for the images. None: those of the weights' pretraining.
    Raises:
        ValueError: neither a reference nor an encoder is given; the reference cannot be loaded with these changes; the
            backbone does not take images of three channels; or `statistics` contradict those recorded with the
            weights, which would reduce accuracy without an error.
    """
    if statistics is not None and len(statistics.mean) != COLOURS:
        raise ValueError(
            f"{statistics.text()} have {len(statistics.mean)} values, but the images of a transfer task have {COLOURS} "
            f"channels: give {COLOURS} values each"
        )
    torch.manual_seed(fold(seed, "init"))
    size = changes.get("image_size")
    wanted = {**changes, **cfg.changes}
    if cfg.reference is not None:
        loaded = checkpoints.load(cfg.reference, changes=wanted)
        _check_channels(loaded.backbone, cfg.reference)
        used, normalization = choose_statistics(cfg.reference, loaded, statistics)
        return LoadedBackbone(
            loaded.backbone,
            loaded.head,
            loaded.backbone.name(),
            pretrain_of(cfg.reference),
            loaded.sha256,
            used,
            normalization,
            checkpoints.origin(cfg.reference, checkpoints.PREFIXES, sha256=loaded.sha256),
            size,
        )
    if cfg.encoder is None:
        raise ValueError(
            "no backbone: give --backbone REFERENCE (backbone.reference), or set backbone.encoder for fresh weights"
        )
    vit = ViT(validate({**cfg.encoder.model_dump(), **wanted}, ViTConfig, where="backbone.encoder"))
    _check_channels(vit, "backbone.encoder")
    return LoadedBackbone(vit, {}, vit.name(), "none", None, statistics or IMAGENET, fresh(statistics), image_size=size)


def fresh(wanted: Statistics | None) -> str:
    """Return the statistics for fresh weights, in words."""
    return f"{(wanted or IMAGENET).text()} ({'set by the config' if wanted else 'those of ImageNet'}; fresh weights)"


def choose_statistics(
    reference: str, loaded: checkpoints.LoadedWeights, wanted: Statistics | None
) -> tuple[Statistics, str]:
    """Return the statistics to normalise images with, and their origin in words.

    They are recorded with the weights, set by the config, or the default of the weights' layout.

    Raises:
        ValueError: the config contradicts the recorded statistics.
    """
    own, prefix = loaded.statistics, checkpoints.split(reference, checkpoints.PREFIXES)[0]
    if prefix == "random":
        return wanted or own, fresh(wanted)
    if loaded.recorded:
        if wanted is not None and not own.matches(wanted):
            raise ValueError(
                f"{reference} was trained on images of {own.text()}, as recorded with its weights, and the config sets "
                f"{wanted.text()}: leave mean and std out, or --set 'mean={own.mean}' --set 'std={own.std}'"
            )
        return own, f"{own.text()} (recorded with the weights)"
    default = f"the default of {prefix + ':' if prefix else 'this layout'}"
    if wanted is None or own.matches(wanted):
        return own, f"{own.text()} ({default}; the file does not say: --set mean= and std= if others are right)"
    return wanted, f"{wanted.text()} (set by the config instead of {default}, {own.text()}; the file does not say)"


def _check_channels(backbone: Backbone, where: str) -> None:
    """Raise ValueError unless the backbone takes images of three channels."""
    first = next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), COLOURS)
    channels = backbone.cfg.channels if isinstance(backbone, ViT) else first
    if channels != COLOURS:
        raise ValueError(
            f"{where} takes images of {channels} channel(s) (encoder.channels, patch_embed.proj.weight), but images of "
            f"a transfer task have {COLOURS}: pretrain with model.encoder.channels=3, or convert its filters (for one "
            "channel, repeat them three times and divide by three)"
        )


def tokens_of(backbone: Backbone, size: int | tuple[int, int]) -> int | None:
    """Return the number of tokens of an image; None if the backbone is not a plain ViT.

    size: pixels of one side, or height and width.
    """
    return (
        prod(side // backbone.patch for side in sides(size)) + backbone.leading if isinstance(backbone, ViT) else None
    )


def flops_of(model: nn.Module, size: int | tuple[int, int], *, backward: bool) -> int:
    """Return the floating-point operations for one image, counted by torch. A multiply-add counts as 2.

    backward: add the backward pass, as far as it reaches trainable parameters.
    """
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    image = torch.zeros(1, 3, *sides(size), device=next(model.parameters()).device)
    # the counter misses some fused attention kernels; the plain one consists of matrix products
    plain = sdpa_kernel(SDPBackend.MATH)
    with (
        FlopCounterMode(display=False) as counter,
        plain,
        eagerly(model),
        keeping_activations(model),
        torch.set_grad_enabled(backward),
    ):
        output = model(image)
        if backward:  # heads that only training uses (a segmenter's auxiliary head) are not counted
            torch.autograd.grad((output if isinstance(output, Tensor) else output[0]).sum(), trained, allow_unused=True)
    return int(counter.get_total_flops())


def pretrain_of(reference: str) -> str:
    """Return the name that results give to the pretraining of a reference."""
    prefix, rest = checkpoints.split(reference, checkpoints.PREFIXES)
    if file := checkpoints.own_file(reference):
        return str(checkpoints.metadata(file).get("pretrain", "unknown"))
    return {"random": "none", "timm": reference, "released": rest}.get(prefix, prefix)


def load_same(encoder: Backbone, reference: str, statistics: Statistics, *, where: str) -> Backbone:
    """Return the backbone of a reference for a run that starts from it; sizes of images may differ.

    where: the key of the config that describes `encoder`.

    Raises:
        ValueError: names the field that differs, or the statistics of the images.
    """
    changes = dict[str, Any]()
    if isinstance(encoder, ViT):
        free = ("image_size", "drop_path", "skip_dropped", "positions", "antialias")
        changes = {name: getattr(encoder.cfg, name) for name in free}
    elif isinstance(encoder, TimmBackbone) and (size := encoder.described()["image_size"]):
        changes = {"image_size": tuple(size)}
    loaded = checkpoints.load(reference, changes=changes)
    choose_statistics(reference, loaded, statistics)
    if isinstance(encoder, ViT) and isinstance(loaded.backbone, ViT):
        ours, theirs = (_resolved(one.cfg) for one in (encoder, loaded.backbone))
        for name, value in ours.items():
            if theirs[name] != value:
                raise ValueError(
                    f"start = {reference!r} has {name} = {theirs[name]!r}, but {where} has {value!r}: set it to the "
                    "same"
                )
    return loaded.backbone


def _resolved(cfg: ViTConfig) -> dict[str, Any]:
    """Return what determines the features of an encoder with given weights."""
    return {**dict(cfg), **dict(zip(("dim", "depth", "heads"), cfg.shape(), strict=True)), "size": None, "init": None}
