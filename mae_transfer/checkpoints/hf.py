"""Import and export of transformers' layout (ViT, ViTMAE, BEiT, DINOv2): weights with a config.json beside them.

An ImageGPT is read by image_gpt.py.

One table of names per model type serves both directions. These files hold query, key and value separately; this
package joins them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mae_transfer.checkpoints.files import read, read_json, unwrap, weight_file, without
from mae_transfer.checkpoints.fit import EncoderWeights
from mae_transfer.checkpoints.layouts import HALF, join_qkv, strip_prefix
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics, check_statistics
from mae_transfer.models.vit import ViT, ViTConfig

if TYPE_CHECKING:
    from mae_transfer.checkpoints.image_gpt import ImageGPTWeights

STEM = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
}  # fmt: skip
VIT_BLOCK = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
BLOCKS: dict[str, dict[str, str]] = {  # model type -> {this package's name within a block: transformers' name}
    "vit": VIT_BLOCK,
    "vit_mae": VIT_BLOCK,
    "beit": VIT_BLOCK | {"ls1.gamma": "lambda_1", "ls2.gamma": "lambda_2"},
    "dinov2": {
        "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
    },
}  # fmt: skip
ATTENTION, TABLE = "attention.attention", "relative_position_bias.relative_position_bias_table"
DROP = ("embeddings.mask_token", "pooler.dense.", "decoder.", "lm_head.")
HEADS = {"classifier.": "head.", "pooler.layernorm.": "fc_norm."}


def hf(path: Path) -> EncoderWeights | ImageGPTWeights:
    """Read a directory of `save_pretrained`, or a weight file with config.json beside it."""
    file = weight_file(path)
    stated = read_json(file.parent / "config.json")
    if stated.get("model_type") == "imagegpt":
        from mae_transfer.checkpoints.image_gpt import image_gpt

        return image_gpt(file, stated)
    stem = "embeddings.patch_embeddings.projection.weight"
    content, config = read(file), _config(stated, file.parent / "config.json")
    tensors, kind = unwrap(content, where=file, stem=stem), config["model_type"]
    norms = [name for name in tensors if name.endswith("layernorm.weight") and "layer." not in name]
    if set(norms) - {"layernorm.weight"}:  # BEiT for masked image modelling has a second norm outside the encoder
        tensors = without(tensors, ("layernorm.",))
    tensors = without(strip_prefix(tensors, where=file, stem=stem), DROP)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("relative_position_index")}
    head = {
        new + name.removeprefix(old): tensors.pop(name)
        for old, new in HEADS.items()
        for name in list(tensors)
        if name.startswith(old)
    }
    architecture = _architecture(config, final_norm="layernorm.weight" in tensors or kind != "beit", where=file)
    renamed = translate(tensors, {theirs: ours for ours, theirs in name_table(architecture, kind).items()})
    renamed = join_qkv(renamed, f"{ATTENTION}.query", f"{ATTENTION}.key", f"{ATTENTION}.value")
    renamed = {name.replace("encoder.layer.", "blocks."): tensor for name, tensor in renamed.items()}
    default = HALF if kind in ("vit", "beit") else IMAGENET
    return EncoderWeights(architecture, renamed, head, default, _processor(file.parent / "preprocessor_config.json"))


def name_table(cfg: ViTConfig, model_type: str) -> dict[str, str]:
    """Return a dict of this package's names -> transformers' names, without query, key and value.

    A name without its last part stands for weight and bias.
    """
    layers = range(cfg.shape()[1])
    table = {
        f"blocks.{i}.{ours}": f"encoder.layer.{i}.{theirs}"
        for i in layers
        for ours, theirs in BLOCKS[model_type].items()
    }
    if cfg.relative_positions == "per_block":
        table |= {f"rel_pos_bias.{i}.table": f"encoder.layer.{i}.{ATTENTION}.{TABLE}" for i in layers}
    else:
        table |= {"rel_pos_bias.0.table": f"encoder.{TABLE}"}
    return STEM | table


def translate(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors renamed by full name or by name without the last part; other names do not change."""
    renamed = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        renamed[table.get(name) or (f"{table[stem]}.{kind}" if stem in table else name)] = tensor
    return renamed


def to_hf(vit: ViT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the content of config.json and the tensors for transformers' ViTModel, Dinov2Model or BeitModel.

    Raises:
        ValueError: transformers has no class for this encoder (no class token, no final norm, tables or LayerScale with
            images that are not square ...).
    """
    cfg = vit.cfg
    kind = "beit" if cfg.qkv_bias == "qv" else "vit" if cfg.layer_scale is None else "dinov2"
    if kind == "beit":
        fits = cfg.layer_scale is not None
    else:
        integral = kind == "vit" or cfg.mlp_ratio.is_integer()
        fits = integral and cfg.qkv_bias == "qkv" and cfg.relative_positions == "none" and cfg.positions != "none"
    if not (fits and (kind == "vit" or len(set(cfg.grid())) == 1) and cfg.class_token and cfg.final_norm):
        raise ValueError(
            f"transformers has no model with this architecture: {cfg.model_dump_json(exclude_defaults=True)}"
        )
    renamed = translate(_split_qkv(vit.state_dict()), name_table(cfg, kind))
    return _hf_config(vit, kind), {
        name.replace("blocks.", "encoder.layer."): tensor.contiguous() for name, tensor in renamed.items()
    }


def describe_processor(statistics: Mapping[str, Any], *, side: int) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: images are resized to a square and normalised as in training."""
    return {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": side, "width": side},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(statistics["mean"]), "image_std": list(statistics["std"]),
    }  # fmt: skip


def _split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with attn.qkv split and the biases of query and value under transformers' names."""
    split = {}
    for name, tensor in tensors.items():
        stem, found, kind = name.partition(".attn.qkv.")
        if found:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[f"{stem}.{ATTENTION}.{part}.{kind}"] = piece
        else:
            biases = {".attn.q_bias": f".{ATTENTION}.query.bias", ".attn.v_bias": f".{ATTENTION}.value.bias"}
            new = next((name.replace(ours, theirs) for ours, theirs in biases.items() if name.endswith(ours)), name)
            split[new] = tensor
    return split


def _hf_config(vit: ViT, kind: str) -> dict[str, Any]:
    cfg = vit.cfg
    dim, depth, heads = cfg.shape()
    shared = {
        "model_type": kind, "hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": heads,
        "layer_norm_eps": cfg.norm_eps, "hidden_act": "gelu", "image_size": cfg.image_size, "patch_size": cfg.patch,
        "num_channels": cfg.channels,
    }  # fmt: skip
    if kind == "dinov2":
        return shared | {
            "architectures": ["Dinov2Model"],
            "mlp_ratio": int(cfg.mlp_ratio),
            "qkv_bias": True,
            "use_swiglu_ffn": False,
            "use_mask_token": False,
        }
    shared["intermediate_size"] = round(dim * cfg.mlp_ratio)
    if kind == "vit":
        return shared | {"architectures": ["ViTModel"], "qkv_bias": True}
    return shared | {
        "architectures": ["BeitModel"], "use_absolute_position_embeddings": cfg.positions != "none",
        "use_mean_pooling": False, "use_relative_position_bias": cfg.relative_positions == "per_block",
        "use_shared_relative_position_bias": cfg.relative_positions == "shared",
    }  # fmt: skip


def _config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return config.json with defaults; ValueError if this package's encoder cannot hold the model it describes."""
    if config.get("model_type") not in list(BLOCKS):  # a list, because the value may be unhashable
        raise ValueError(
            f"{path} describes a {config.get('model_type')!r}; supported are {', '.join(BLOCKS)}, imagegpt"
        )
    for key, value in {"hidden_act": "gelu", "use_swiglu_ffn": False, "qkv_bias": True}.items():
        if config.get(key, value) != value:
            raise ValueError(f"{path} has {key}={config[key]!r}; this package's encoder supports {value!r} only")
    dinov2 = config["model_type"] == "dinov2"
    config = {
        "num_channels": 3,
        "patch_size": 16,
        "image_size": 224,
        "layer_norm_eps": 1e-6 if dinov2 else 1e-12,
    } | config
    wanted = ("hidden_size", "num_hidden_layers", "num_attention_heads", *(() if dinov2 else ("intermediate_size",)))
    if wrong := [key for key in wanted if not isinstance(config.get(key), int) or config[key] < 1]:
        raise ValueError(f"{path} has no positive integer {', '.join(wrong)}; save the model again with transformers")
    ratio = config.get("mlp_ratio", 4)
    if dinov2 and not (isinstance(ratio, int | float) and 0 < ratio < math.inf):
        raise ValueError(f"{path} has mlp_ratio={ratio!r}; set it to (MLP width) / (model width), usually 4")
    return config


def _processor(path: Path) -> Statistics | None:
    """Return mean and standard deviation of the image processor beside the weights, for values in [0, 1].

    Returns None if there is no such file. transformers computes (x * rescale_factor - mean) / std for values x in
    0..255; do_rescale=False and do_normalize=False each skip a part of it.
    """
    if not path.is_file():
        return None
    processor = read_json(path)
    if processor.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    elif isinstance(processor.get("image_mean"), list) and isinstance(processor.get("image_std"), list):
        mean, std = processor["image_mean"], processor["image_std"]
    else:
        raise ValueError(f"{path} has no image_mean and image_std; correct or remove it")
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        raise ValueError(f"{path} has rescale_factor={factor!r}; it must be above 0")
    if abs(factor * 255 - 1) < 1e-3:
        return check_statistics(mean, std, where=str(path))
    try:
        return check_statistics(
            [value / factor / 255 for value in mean], [value / factor / 255 for value in std], where=str(path)
        )
    except TypeError:
        raise ValueError(f"{path}: image_mean {mean} and image_std {std} must be lists of numbers") from None


def _architecture(config: Mapping[str, Any], *, final_norm: bool, where: Path) -> ViTConfig:
    """Return the architecture that config.json describes, with its number of heads.

    final_norm: whether the weights have one. config.json of BEiT does not tell: a model for masked image modelling has
        its norm outside the encoder.
    """
    kind, size = config["model_type"], config["image_size"]
    dim = config["hidden_size"]
    hidden = round(dim * config.get("mlp_ratio", 4)) if kind == "dinov2" else config["intermediate_size"]
    tables = {(True, False): "shared", (False, True): "per_block"}
    fields: dict[str, Any] = {
        "size": None, "dim": dim, "depth": config["num_hidden_layers"], "heads": config["num_attention_heads"],
        "mlp_ratio": hidden / dim, "patch": config["patch_size"],
        "image_size": tuple(size) if isinstance(size, list) else size, "channels": config["num_channels"],
        "norm_eps": config["layer_norm_eps"],
        "positions": "fixed" if kind == "vit_mae" else "learned", "layer_scale": 1.0 if kind == "dinov2" else None,
    }  # fmt: skip
    if kind == "beit":
        flags = (
            config.get("use_shared_relative_position_bias", False),
            config.get("use_relative_position_bias", False),
        )
        fields |= {
            "qkv_bias": "qv", "layer_scale": 1.0, "final_norm": final_norm,
            "relative_positions": tables.get(flags, "none"),
            "positions": "learned" if config.get("use_absolute_position_embeddings") else "none",
        }  # fmt: skip
    return validate(fields, ViTConfig, where=f"config.json beside {where}")
