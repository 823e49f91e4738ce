"""timm models: `timm:NAME`, and the releases of MoBY, EsViT, SimMIM, iBOT and DINOv2.

Their Swins, and DINOv2 with registers or SwiGLU MLPs, load through timm; their plain ViTs are this package's encoder.
timm's plain ViTs convert to this package's encoder, which has windows and relative positions for dense tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mae_transfer.checkpoints.files import SHOWN, STEM, Tensors, check_finite, matches, read, shorten, unwrap, without
from mae_transfer.checkpoints.fit import EncoderWeights
from mae_transfer.checkpoints.layouts import HEAD, as_encoder, read_tensors, rename, rename_beit, strip_prefix
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import ViT

MOBY_DROP = ("encoder_k.", "projector.", "projector_k.", "predictor.", "queue1", "queue2", "queue_ptr")
SWIN_SIZES = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
"""(width, blocks of the deepest stage) -> size in timm's names."""
DINOV2_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
MAY_CHANGE = ("image_size", "drop_path", "class_token", "final_norm")


class TimmWeights(NamedTuple):
    """The content of a file that a timm model can load."""

    name: str  # of the timm model
    tensors: dict[str, Tensor]
    options: dict[str, Any]  # further arguments of timm.create_model
    head: dict[str, Tensor] = {}  # noqa: RUF012 - never filled: timm's models keep no classifier
    statistics: Statistics = IMAGENET  # normalisation of the images in the layout's releases
    recorded: Statistics | None = None  # normalisation that the file records
    label: str | None = None  # name in tables; None: `name`

    def build(self, changes: Mapping[str, Any], *, where: str) -> TimmBackbone:
        """Call `wrap`."""
        return wrap(self.name, changes, tensors=self.tensors, options=self.options, label=self.label, where=where)


def load_timm(
    name: str, file: Path | None, changes: Mapping[str, Any], *, where: str
) -> tuple[ViT | TimmBackbone, Statistics]:
    """Return a timm model with timm's own weights, or with those of a file under timm's names, and its statistics.

    If only this package's encoder supports the changes, a plain ViT is converted to it.
    """
    converts = any(key not in MAY_CHANGE for key in changes)
    tensors = _read_flat(file) if file else None
    model = wrap(name, {} if converts else changes, tensors=tensors, pretrained=not file, where=str(file or ""))
    recorded = model.model.pretrained_cfg
    statistics = Statistics(tuple(recorded["mean"]), tuple(recorded["std"]))
    return _as_plain_vit(model.model, where=where).build(changes, where=where) if converts else model, statistics


def _read_flat(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a timm model's file, without the prefixes of DDP and compile.

    They are under one of the usual keys or at the top level.
    """
    content = read(path)
    keys = ("model", "state_dict", "model_state_dict", "module")
    inner = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors; its keys are {shorten(list(content)) or 'none'}: save the model's state dict"
        )
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def moby(path: Path) -> EncoderWeights | TimmWeights:
    """Read MoBY's Swin or DeiT-S: the online encoder, not the momentum one (encoder_k)."""
    tensors = unwrap(read(path), "model", where=path)
    kept = {name: tensor for name, tensor in tensors.items() if not matches(name.removeprefix("module."), MOBY_DROP)}
    kept = strip_prefix(kept, "encoder", where=path)
    return as_encoder(kept, heads={384: 6}, where=path) if _is_vit(kept) else _as_swin(kept, where=path)


def esvit(path: Path) -> TimmWeights:
    """Read EsViT's Swin: the teacher without its two projectors."""
    tensors = strip_prefix(unwrap(read(path), "teacher", "state_dict", where=path), "teacher", where=path)
    return _as_swin(tensors, drop=("head.", "head_dense."), where=path)


def ibot(path: Path) -> EncoderWeights | TimmWeights:
    """Read iBOT's ViT or Swin: an extracted backbone under "state_dict", or the teacher of a full checkpoint."""
    tensors, drop = read_tensors(path, "state_dict", "teacher"), (*HEAD, "masked_embed")
    if not _is_vit(tensors):
        return _as_swin(tensors, drop=drop, where=path)
    return as_encoder(tensors, drop=drop, heads={192: 3, 384: 6}, where=path)


def dinov2(path: Path) -> EncoderWeights | TimmWeights:
    """Read DINOv2. Models with registers, and g with its SwiGLU MLP, load through timm.

    Positions are made for 518 px. Chunked block names (blocks.0.3.) are flattened.
    """
    tensors = read_tensors(path, "teacher")
    if any(re.match(r"blocks\.\d+\.\d+\.", name) for name in tensors):
        tensors = rename(tensors, ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),))
    if "storage_tokens" in tensors:
        raise ValueError(
            f"{path} has DINOv3's tokens (storage_tokens), which this layout does not support; load it through timm, "
            "e.g. timm:vit_small_patch16_dinov3"
        )
    tensors = without(tensors, ("dino_head.", "ibot_head."))
    if "register_tokens" in tensors or "blocks.0.mlp.w12.weight" in tensors:
        return _as_timm_dinov2(tensors, where=path)
    return as_encoder(tensors, drop=("mask_token",), heads={384: 6}, where=path)


def simmim(path: Path) -> EncoderWeights | TimmWeights:
    """Read SimMIM's Swin without its decoder, or its ViT, pretrained (one shared table) or fine-tuned.

    The ViT has BEiT's names and ImageNet's statistics.
    """
    tensors = strip_prefix(unwrap(read(path), "model", where=path), where=path)
    drop = ("decoder.", "mask_token")
    if not _is_vit(tensors):
        return _as_swin(tensors, drop=drop, where=path)
    return as_encoder(rename_beit(tensors), drop=drop, classifier=True, where=path)


def _is_vit(tensors: Tensors) -> bool:
    """Return whether the names are those of a plain ViT, not of a hierarchical model."""
    return not any(name.startswith("layers.") for name in tensors)


def _as_timm_dinov2(tensors: Tensors, *, where: Path) -> TimmWeights:
    """Return the model of timm that DINOv2's tensors describe. Each of its heads has 64 channels."""
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    wide = f"blocks.0.mlp.{'w12' if swiglu else 'fc1'}.weight"
    ranks = {STEM: 4, wide: 2, "pos_embed": 3, "cls_token": 3}
    ranks |= {"register_tokens": 3} if "register_tokens" in tensors else {}
    found = {name: tensors[name] for name in ranks if name in tensors and tensors[name].numel()}
    if wrong := [name for name, rank in ranks.items() if name not in found or found[name].ndim != rank]:
        raise ValueError(f"{where} lacks {', '.join(wrong)}, or their shapes are not a ViT's: name the file's layout")
    dim, channels, patch, _ = tensors[STEM].shape
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    options = {
        "embed_dim": dim, "depth": depth, "num_heads": max(1, dim // 64), "patch_size": patch, "in_chans": channels,
        "mlp_ratio": (len(tensors[wide]) + 0.5) / dim, "img_size": side * patch,
    }  # fmt: skip
    if "register_tokens" in tensors:
        options["reg_tokens"] = tensors["register_tokens"].shape[1]
    kind = f"patch14_{'reg4_' if 'reg_tokens' in options else ''}dinov2"
    label = f"vit_{DINOV2_SIZES.get(dim, f'{dim}x{depth}')}_{kind}"
    # timm recognises the layout by its mask token
    tensors = {"mask_token": torch.zeros(1, dim), **tensors}
    return TimmWeights(f"vit_{'giant' if swiglu else 'small'}_{kind}", tensors, options, label=label)


def _as_swin(tensors: Tensors, *, drop: Collection[str] = (), where: Path) -> TimmWeights:
    """Return the Swin that the tensors describe, without `drop`.

    Their shapes determine width, depths, heads and window. The last stage is one window at the native image size.
    """
    tensors = without(tensors, drop)
    pattern = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table")
    tables = {(int(match[1]), int(match[2])): tensors[name] for name in tensors if (match := pattern.fullmatch(name))}
    stages = [
        max((block for stage, block in tables if stage == number), default=-1) + 1
        for number in range(1 + max(tables, default=(-1,))[0])
    ]
    stem = tensors.get(STEM)
    if (
        stem is None
        or stem.ndim != 4
        or not stages
        or min(stages) < 1
        or any((stage, 0) not in tables for stage in range(len(stages)))
    ):
        names = f"its names are {shorten(sorted(tensors))}"
        wanted = f"{STEM}, layers.N.blocks.N.attn.relative_position_bias_table"
        raise ValueError(f"{where} holds no Swin encoder ({wanted}); {names}: name the file's layout")
    shapes = [tuple(tables[stage, 0].shape) for stage in range(len(stages))]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(
            f"{where} has tables of relative positions of shapes {shapes}, which are not those of a Swin: "
            "name the file's layout"
        )
    window, last = ((round(rows**0.5) + 1) // 2 for rows in (shapes[0][0], shapes[-1][0]))
    dim, channels, patch, _ = stem.shape
    options = {
        "embed_dim": dim, "patch_size": patch, "depths": tuple(stages),
        "num_heads": tuple(heads for _, heads in shapes), "window_size": window,
        "img_size": last * patch * 2 ** (len(stages) - 1), "in_chans": channels,
    }  # fmt: skip
    size = SWIN_SIZES.get((dim, max(stages)), f"{dim}x{max(stages)}")
    label = f"swin_{size}_patch{patch}_window{window}_{options['img_size']}"
    return TimmWeights("swin_tiny_patch4_window7_224", tensors, options, label=label)


def wrap(
    name: str,
    changes: Mapping[str, Any],
    *,
    tensors: Tensors | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
    label: str | None = None,
    where: str = "",
) -> TimmBackbone:
    """Return a timm model as a Backbone. Its weights are `tensors`, timm's own (`pretrained`), or random.

    Args:
        name: the timm model.
        changes: image_size (for a model with a fixed input size), drop_path, class_token, final_norm.
        tensors: weights under the model's names or names that timm converts.
        pretrained: use timm's weights.
        options: further arguments of timm.create_model.
        label: name in tables; None: `name`.
        where: the file of the tensors, for error messages.
    Raises:
        ValueError: timm has no such model or no weights for it, a change is impossible, or a tensor does not fit.
    """
    unknown = [key for key in changes if key not in MAY_CHANGE]
    if unknown:
        raise ValueError(
            f"timm:{name}: {', '.join(unknown)} cannot be changed on loading; choose from {', '.join(MAY_CHANGE)}"
        )
    arguments: dict[str, Any] = dict(options or {})
    cfg = _known(name)
    if "image_size" in changes:
        arguments |= sized(name, changes["image_size"])
    if changes.get("drop_path"):
        arguments["drop_path_rate"] = changes["drop_path"]
    overlay: dict[str, Any] = {}
    if tensors is not None:
        classes = _classes(tensors, cfg.classifier)
        arguments["num_classes"] = classes  # timm loads strictly only if model and file have the same number of classes
        overlay = {"state_dict": dict(tensors), "custom_load": False, "num_classes": classes}
    model = _create(name, arguments, overlay=overlay, pretrained=pretrained or tensors is not None, where=where)
    if pretrained or tensors is not None:
        check_finite(model.state_dict(), where=where or f"timm:{name}")
    model.reset_classifier(0)
    return TimmBackbone(
        model, class_token=changes.get("class_token", True), final_norm=changes.get("final_norm", True), label=label
    )


def _classes(tensors: Tensors, classifier: str | Sequence[str]) -> int:
    """Return the number of classes of a file's classifier; 0 if it has none."""
    names = [classifier] if isinstance(classifier, str) else list(classifier)
    return next((len(tensors[f"{name}.weight"]) for name in [*names, "head"] if f"{name}.weight" in tensors), 0)


def _known(name: str) -> Any:
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    if cfg is None:
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"some are {', '.join(near)}" if near else "see timm.list_models()"
        raise ValueError(f"timm {timm.__version__} has no model {name!r}; {hint}")
    return cfg


def sized(name: str, size: Any) -> dict[str, Any]:
    """Return the arguments of timm.create_model for images of a size, which not every model fixes."""
    return {"img_size": size} if _known(name).fixed_input_size else {}


def _create(
    name: str, arguments: Mapping[str, Any], *, overlay: Mapping[str, Any], pretrained: bool, where: str
) -> Any:
    """Build the model and load its weights; timm converts original names and resamples tables to the model's size."""
    try:
        return timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=dict(overlay), **arguments)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        RuntimeError,
        ZeroDivisionError,
    ) as error:
        reason = "\n".join(str(error).splitlines()[:SHOWN]) or type(error).__name__
        source = f" from {where}" if where else ""
        raise ValueError(f"timm:{name} cannot be created{source}: {reason}") from None


def _as_plain_vit(model: Any, *, where: str) -> EncoderWeights:
    """Return the weights of a timm model without its classifier; the names are the same.

    Raises:
        ValueError: the model is not a plain ViT; the message gives the reason.
    """
    if reason := _not_plain(model):
        raise ValueError(
            f"{where} cannot have windows or relative positions: {reason}. Only timm's plain ViTs convert to this "
            f"package's encoder; any other model can only change {', '.join(MAY_CHANGE)}"
        )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    width, attention = model.embed_dim, model.blocks[0].attn
    weights = as_encoder(tensors, classifier=True, heads={width: attention.num_heads}, where=Path(where))
    architecture = weights.architecture.model_copy(update={"norm_eps": model.blocks[0].norm1.eps})
    return weights._replace(architecture=architecture, head={})


def _not_plain(model: Any) -> str:
    """Return why this package's encoder cannot hold the model; "" if it can.

    Only properties that do not show in the tensors are checked.
    """
    if type(model) is not VisionTransformer:
        return f"it is a {type(model).__name__}"
    if model.reg_token is not None:
        return "it has register tokens"
    if not isinstance(model.norm_pre, nn.Identity):
        return "it has a norm before its blocks"
    block = model.blocks[0]
    if type(block) is not Block:
        return f"its blocks are {type(block).__name__}"
    if type(block.mlp) is not Mlp:
        return f"its blocks have a {type(block.mlp).__name__}"
    if not isinstance(block.mlp.act, nn.GELU) or block.mlp.act.approximate != "none":
        return f"its activation is {type(block.mlp.act).__name__}, not the exact GELU"
    if not isinstance(block.norm1, nn.LayerNorm) or not isinstance(block.attn.q_norm, nn.Identity):
        return "its norms are not plain layer norms"
    return ""
