"""Export of encoders: this package's own format, timm (and BEiT's release), transformers and detectron2's ViTDet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import STATISTICS, write
from mae_transfer.checkpoints.fit import released_name
from mae_transfer.disk import atomic_write, write_text
from mae_transfer.interfaces import Backbone
from mae_transfer.models.mae import MAE
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import ViT

FORMAT = "mae_transfer.backbone/1"

Export = Callable[[Path, Backbone, Mapping[str, Any]], None]


def export_backbone(path: Path, backbone: ViT | TimmBackbone, *, about: Mapping[str, Any]) -> None:
    """Write an encoder as .safetensors; `load_backbone(path)` reads it back.

    The names are those of MAE's release, or of timm's model. The metadata hold its architecture and `about`.
    """
    if isinstance(backbone, ViT):
        tensors, architecture = backbone.state_dict(), backbone.cfg.model_dump(mode="json")
    else:
        tensors, architecture = backbone.model.state_dict(), backbone.described()
    write(path, tensors, {"format": FORMAT, "architecture": architecture, **about})


def export_mae(path: Path, model: MAE, *, about: Mapping[str, Any]) -> None:
    """Write encoder and decoder as .safetensors under MAE's released names. ValueError for CrossMAE's decoder."""
    if model.cfg.decoder.kind != "self":
        raise ValueError("MAE's released layout cannot hold CrossMAE's decoder: export the encoder (export_backbone)")
    write(path, {released_name(name): tensor for name, tensor in model.state_dict().items()}, about)


def to_dtype(backbone: Backbone, dtype: torch.dtype, *, where: str) -> None:
    """Convert the trained parameters in place. Fixed tables and running statistics keep their type.

    Raises:
        ValueError: a value is too large for `dtype`.
    """
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            converted = parameter.detach().to(dtype)
            if not torch.isfinite(converted).all():
                raise ValueError(f"{where}: {name} holds values that {dtype} cannot represent; use bfloat16 or float32")
            parameter.data = converted


def _metadata(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a foreign format: statistics at the top level, for loaders, the rest under "source"."""
    rest = {key: value for key, value in about.items() if key != STATISTICS}
    return {"source": rest} | ({STATISTICS: about[STATISTICS]} if STATISTICS in about else {})


def export_timm(path: Path, backbone: Backbone, about: Mapping[str, Any]) -> None:
    """Write .safetensors under timm's names.

    These are the names of VisionTransformer; of Beit (the same as BEiT's release) for an encoder with relative-position
    tables; or those of the timm model itself.
    """
    write(path, to_timm(backbone), _metadata(about))


def to_timm(backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors under timm's names; ValueError if timm has no class for this encoder."""
    if isinstance(backbone, TimmBackbone):
        return dict(backbone.model.state_dict())
    vit = _plain(backbone, "timm")
    cfg, tensors = vit.cfg, vit.state_dict()
    if cfg.relative_positions == "none" and cfg.qkv_bias != "qv" and not cfg.windows:
        return dict(tensors)
    if cfg.qkv_bias != "qv" or cfg.windows:
        options = f"relative_positions={cfg.relative_positions!r}, qkv_bias={cfg.qkv_bias!r}, windows={cfg.windows}"
        raise ValueError(f"timm has no model with {options}: export with --format ours")
    shared = cfg.relative_positions == "shared"
    table = "rel_pos_bias.relative_position_bias_table" if shared else r"blocks.\1.attn.relative_position_bias_table"
    renamed = ((re.sub(r"^rel_pos_bias\.(\d+)\.table$", table, name), tensor) for name, tensor in tensors.items())
    return {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): tensor for name, tensor in renamed}


def export_hf(path: Path, backbone: Backbone, about: Mapping[str, Any]) -> None:
    """Write a directory for transformers' `AutoModel.from_pretrained`.

    It holds config.json, model.safetensors and, if the statistics are known, preprocessor_config.json.
    """
    from mae_transfer.checkpoints.hf import describe_processor, to_hf

    config, tensors = to_hf(_plain(backbone, "hf"))
    path.mkdir(parents=True, exist_ok=True)
    write(path / "model.safetensors", tensors, _metadata(about), framework="pt")
    files = {"config.json": config}
    if STATISTICS in about:
        files["preprocessor_config.json"] = describe_processor(about[STATISTICS], side=config["image_size"])
    for name, content in files.items():
        write_text(path / name, json.dumps(content, indent=2) + "\n")


def export_detectron2(path: Path, backbone: Backbone, about: Mapping[str, Any]) -> None:
    """Write a file for `train.init_checkpoint` of detectron2's ViTDet.

    The class token and the final norm are left out because ViTDet has neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "model": to_vitdet(_plain(backbone, "detectron2")),
        "__author__": "mae_transfer",
        "source": json.dumps(about),
    }
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def to_vitdet(vit: ViT) -> dict[str, Tensor]:
    """Return the tensors of projects/ViTDet's backbone.net.

    pos_embed keeps the row of the class token, because `pretrain_use_cls_token` of ViTDet expects it.

    Raises:
        ValueError: the encoder has an option that ViTDet would silently drop (LayerScale, BEiT's tables and biases), or
            lacks one that ViTDet needs (absolute positions).
    """
    cfg = vit.cfg
    if (
        cfg.layer_scale is not None
        or cfg.relative_positions not in ("none", "decomposed")
        or cfg.qkv_bias != "qkv"
        or cfg.positions == "none"
    ):
        raise ValueError(f"detectron2's ViTDet cannot hold this encoder: {cfg.model_dump_json(exclude_defaults=True)}")
    return {
        f"backbone.net.{name}": tensor
        for name, tensor in vit.state_dict().items()
        if not re.match(r"cls_token$|norm\.", name)
    }


def _plain(backbone: Backbone, name: str) -> ViT:
    if isinstance(backbone, TimmBackbone):
        raise ValueError(
            f"format {name!r} cannot hold timm's {type(backbone.model).__name__}, only this package's encoder: "
            "use --format timm"
        )
    if not isinstance(backbone, ViT):
        raise ValueError(f"format {name!r} cannot hold {backbone.name()}, only this package's encoder: keep its file")
    return backbone


FORMATS: dict[str, Export] = {
    "ours": lambda path, backbone, about: export_backbone(path, _plain(backbone, "ours"), about=about),
    "timm": export_timm,
    "hf": export_hf,
    "detectron2": export_detectron2,
}
