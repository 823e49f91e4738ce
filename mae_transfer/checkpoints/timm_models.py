"""Layouts that load into a timm model: `timm:NAME`, and the Swin encoders of MoBY, EsViT and SimMIM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from mae_transfer.checkpoints.files import SHOWN, Tensors, check_finite, named, read, shortened
from mae_transfer.checkpoints.names import STEM, core, unwrap
from mae_transfer.core.normalize import Statistics
from mae_transfer.models.timm_backbone import TimmBackbone

MOBY_DROP = ("encoder_k.", "projector.", "projector_k.", "predictor.", "queue1", "queue2", "queue_ptr")
MAY_CHANGE = ("image_size", "drop_path", "class_token", "final_norm")


def timm_model(name: str, file: Path | None, changes: Mapping[str, Any]) -> TimmBackbone:
    """Return a timm model with timm's own weights, or with those of a local file under timm's names."""
    if file is None:
        return wrap(name, changes, pretrained=True)
    return wrap(name, changes, tensors=_flat(read(file), where=file), where=str(file))


def _flat(content: Mapping[str, Any], *, where: Path) -> dict[str, Tensor]:
    """Return the tensors of a timm model's file, without the prefixes of DDP and compile.

    They are under one of the usual keys or at the top level.
    """
    inner = next(
        (
            content[key]
            for key in ("model", "state_dict", "model_state_dict", "module")
            if isinstance(content.get(key), dict)
        ),
        content,
    )
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{where} holds no tensors; its keys are {shortened(list(content)) or 'none'}: save the model's state dict"
        )
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def moby(path: Path, changes: Mapping[str, Any]) -> TimmBackbone:
    """Read MoBY's Swin: the online encoder, not the momentum one (encoder_k)."""
    tensors = unwrap(read(path), "model", where=path)
    kept = {name: tensor for name, tensor in tensors.items() if not named(name.removeprefix("module."), MOBY_DROP)}
    return swin(core(kept, "encoder", where=path), changes, where=path)


def esvit(path: Path, changes: Mapping[str, Any]) -> TimmBackbone:
    """Read EsViT's Swin: the teacher without its two projectors."""
    tensors = core(unwrap(read(path), "teacher", "state_dict", where=path), "teacher", where=path)
    return swin(
        {name: tensor for name, tensor in tensors.items() if not named(name, ("head.", "head_dense."))},
        changes,
        where=path,
    )


def simmim_swin(tensors: Tensors, changes: Mapping[str, Any], *, where: Path) -> TimmBackbone:
    """Convert SimMIM's Swin, without its decoder and mask token."""
    return swin(
        {name: tensor for name, tensor in tensors.items() if not named(name, ("decoder.", "mask_token"))},
        changes,
        where=where,
    )


def swin(tensors: Tensors, changes: Mapping[str, Any], *, where: Path) -> TimmBackbone:
    """Return the Swin that the tensors describe.

    Their shapes determine width, depths, heads and window. The last stage is one window at the native image size.
    """
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
        names = f"its names are {shortened(sorted(tensors))}"
        wanted = f"{STEM}, layers.N.blocks.N.attn.relative_position_bias_table"
        raise ValueError(f"{where} holds no Swin encoder ({wanted}); {names}: name the file's layout")
    shapes = [tuple(tables[stage, 0].shape) for stage in range(len(stages))]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(
            f"{where} has tables of relative positions of shapes {shapes}, which are not those of a Swin: "
            "name the file's layout"
        )
    window = (round(shapes[0][0] ** 0.5) + 1) // 2
    dim, channels, patch, _ = stem.shape
    options = {
        "embed_dim": dim, "patch_size": patch, "depths": tuple(stages),
        "num_heads": tuple(heads for _, heads in shapes), "window_size": window,
        "img_size": window * patch * 2 ** (len(stages) - 1), "in_chans": channels,
    }  # fmt: skip
    return wrap("swin_tiny_patch4_window7_224", changes, tensors=tensors, options=options, where=str(where))


def wrap(
    name: str,
    changes: Mapping[str, Any],
    *,
    tensors: Tensors | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
    where: str = "",
) -> TimmBackbone:
    """Return a timm model as a Backbone. Its weights are `tensors`, timm's own (`pretrained`), or random.

    Args:
        name: the timm model.
        changes: image_size (for a model with a fixed input size), drop_path, class_token, final_norm.
        tensors: weights under the model's names or names that timm converts.
        pretrained: use timm's weights.
        options: further arguments of timm.create_model.
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
    if "image_size" in changes and cfg.fixed_input_size:
        arguments["img_size"] = changes["image_size"]
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
    return TimmBackbone(model, class_token=changes.get("class_token", True), final_norm=changes.get("final_norm", True))


def _classes(tensors: Tensors, classifier: str | Sequence[str]) -> int:
    """Return the number of classes of a file's classifier; 0 if it has none."""
    names = [classifier] if isinstance(classifier, str) else list(classifier)
    return next((len(tensors[f"{name}.weight"]) for name in [*names, "head"] if f"{name}.weight" in tensors), 0)


def statistics(backbone: TimmBackbone) -> Statistics:
    """Return the image statistics that timm records for this model's weights."""
    cfg = backbone.model.pretrained_cfg
    return Statistics(tuple(cfg["mean"]), tuple(cfg["std"]))


def _known(name: str) -> Any:
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    if cfg is None:
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"some are {', '.join(near)}" if near else "see timm.list_models()"
        raise ValueError(f"timm {timm.__version__} has no model {name!r}; {hint}")
    return cfg


def _create(
    name: str, arguments: Mapping[str, Any], *, overlay: Mapping[str, Any], pretrained: bool, where: str
) -> Any:
    """Build the model and load its weights; timm converts original names and resamples tables to the model's size."""
    try:
        return timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=dict(overlay), **arguments)
    except (
        RuntimeError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        AssertionError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        reason = "\n".join(str(error).splitlines()[:SHOWN]) or type(error).__name__
        source = f" from {where}" if where else ""
        raise ValueError(f"timm:{name} cannot be created{source}: {reason}") from None
