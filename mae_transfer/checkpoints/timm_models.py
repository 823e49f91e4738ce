"""Layouts that end in a timm model: `timm:NAME`, and the Swin encoders of MoBY and EsViT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from mae_transfer.checkpoints.files import Tensors, named, read
from mae_transfer.checkpoints.names import strip, unwrap
from mae_transfer.core.normalize import Statistics
from mae_transfer.models.timm_backbone import TimmBackbone

MOBY_DROP = ("encoder_k.", "projector.", "projector_k.", "predictor.", "queue1", "queue2", "queue_ptr")
MAY_CHANGE = ("image_size", "drop_path", "class_token", "final_norm")


def timm_model(reference: str, changes: Mapping[str, Any]) -> TimmBackbone:
    """Return timm's NAME with the weights that timm has for it, or, for NAME@FILE, with those of a local file in timm's names."""
    name, _, path = reference.partition("@")
    tensors = unwrap(read(Path(path)), "model", "state_dict", where=Path(path)) if path else None
    return wrap(name, changes, tensors=tensors, pretrained=not path)


def moby(path: Path, changes: Mapping[str, Any]) -> TimmBackbone:
    """MoBY's Swin: the online encoder, not the momentum one (encoder_k)."""
    tensors = unwrap(read(path), "model", where=path)
    return swin(strip({name: tensor for name, tensor in tensors.items() if not named(name, MOBY_DROP)}, "encoder."), changes, where=path)


def esvit(path: Path, changes: Mapping[str, Any]) -> TimmBackbone:
    """EsViT's Swin: the teacher without its two projectors."""
    tensors = strip(unwrap(read(path), "teacher", "state_dict", where=path), "module.", "backbone.")
    return swin({name: tensor for name, tensor in tensors.items() if not named(name, ("head.", "head_dense."))}, changes, where=path)


def swin(tensors: Tensors, changes: Mapping[str, Any], *, where: Path) -> TimmBackbone:
    """Return the Swin that the tensors describe: width, depths, heads and window are in their shapes; its native size is 32 windows."""
    tables = {name: tensor for name, tensor in tensors.items() if name.endswith("attn.relative_position_bias_table")}
    places = [[int(part) for part in name.split(".") if part.isdigit()] for name in tables]
    if "patch_embed.proj.weight" not in tensors or not tables or any(len(place) != 2 for place in places):
        raise ValueError(f"{where} holds no Swin encoder where its layout has one (patch_embed, layers.N.blocks.N ...)")
    depths = [1 + max(block for stage, block in places if stage == number) for number in range(1 + max(stage for stage, _ in places))]
    shapes = [tables[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape for stage in range(len(depths))]
    window = (round(shapes[0][0] ** 0.5) + 1) // 2
    dim, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    options = {
        "embed_dim": dim, "patch_size": patch, "depths": tuple(depths), "num_heads": tuple(heads for _, heads in shapes), "window_size": window,
        "img_size": window * patch * 2 ** (len(depths) - 1),
    }  # fmt: skip
    return wrap("swin_tiny_patch4_window7_224", changes, tensors=tensors, options=options)


def wrap(
    name: str,
    changes: Mapping[str, Any],
    *,
    tensors: Tensors | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> TimmBackbone:
    """Return a timm model as a Backbone. Weights: `tensors` (in its names or in those that timm converts), timm's own, or random.

    changes: image_size (where the model is made for one), drop_path, class_token, final_norm.
    Raises:
        ValueError: timm knows no such model or no weights for it, a change is not to be had, or a tensor does not fit.
    """
    unknown = [key for key in changes if key not in MAY_CHANGE]
    if unknown:
        raise ValueError(f"timm:{name}: {', '.join(unknown)} cannot be changed on loading; what can: {', '.join(MAY_CHANGE)}")
    arguments: dict[str, Any] = dict(options or {})
    cfg = _known(name)
    if "image_size" in changes and cfg.fixed_input_size:
        arguments["img_size"] = changes["image_size"]
    if changes.get("drop_path"):
        arguments["drop_path_rate"] = changes["drop_path"]
    overlay: dict[str, Any] = {}
    if tensors is not None:
        classes = _classes(tensors, cfg.classifier)
        arguments["num_classes"] = classes  # timm is strict only where the file's number of classes is the model's
        overlay = {"state_dict": dict(tensors), "custom_load": False, "num_classes": classes}
    model = _create(name, arguments, overlay=overlay, pretrained=pretrained or tensors is not None)
    model.reset_classifier(0)
    return TimmBackbone(model, class_token=changes.get("class_token", True), final_norm=changes.get("final_norm", True))


def _classes(tensors: Tensors, classifier: str | Sequence[str]) -> int:
    """Return the number of classes of a file's classifier; 0 where it has none."""
    names = [classifier] if isinstance(classifier, str) else list(classifier)
    return next((len(tensors[f"{name}.weight"]) for name in [*names, "head"] if f"{name}.weight" in tensors), 0)


def statistics(backbone: TimmBackbone) -> Statistics:
    """Return what timm says that the images of this model's weights were normalised with."""
    cfg = backbone.model.pretrained_cfg
    return Statistics(tuple(cfg["mean"]), tuple(cfg["std"]))


def _known(name: str) -> Any:
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    if cfg is None:
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm {timm.__version__} has no model {name!r}; {'some are ' + ', '.join(near) if near else 'see timm.list_models()'}")
    return cfg


def _create(name: str, arguments: Mapping[str, Any], *, overlay: Mapping[str, Any], pretrained: bool) -> Any:
    """Build the model and fill it; timm converts original names and resamples tables to its size."""
    try:
        return timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=dict(overlay), **arguments)
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"timm:{name} cannot be made of this: {error}") from None
