"""Conversion of timm's plain ViTs (DINO, DeiT, AugReg ...) to this suite's encoder.

Unlike the timm models, this suite's encoder has windows and relative positions for dense tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mae_transfer.checkpoints.layouts import Found, found
from mae_transfer.checkpoints.timm_models import MAY_CHANGE


def asks_for_more(changes: Mapping[str, Any]) -> bool:
    """Return whether the changes include one that only this suite's encoder supports."""
    return any(key not in MAY_CHANGE for key in changes)


def plain_vit(model: Any, *, where: str) -> Found:
    """Return a timm model without its classifier as a `Found`. The names are the same; `fit` loads it strictly.

    Raises:
        ValueError: the model is not a plain ViT; the message gives the reason.
    """
    if reason := _not_plain(model):
        raise ValueError(
            f"{where} cannot have windows or relative positions: {reason}. Only timm's plain ViTs convert to this "
            f"suite's encoder; any other model can only change {', '.join(MAY_CHANGE)}"
        )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    width, attention = model.embed_dim, model.blocks[0].attn
    result = found(tensors, classifier=True, heads={width: attention.num_heads}, where=Path(where))
    architecture = result.architecture.model_copy(update={"norm_eps": model.blocks[0].norm1.eps})
    return result._replace(architecture=architecture, head={})


def _not_plain(model: Any) -> str:
    """Return why this suite's encoder cannot hold the model; "" if it can.

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
