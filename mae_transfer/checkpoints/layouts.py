"""Released layouts of plain ViTs: what each one calls its tensors. A layout is asked for by name; nothing is guessed from keys.

The encoder of this suite bears the released MAE names, which are timm's, so most encoders need no renaming: a wrapper, a prefix and a list of what
is dropped tell them apart. Each function turns a file into a `Found`; `fit.fit` then puts it into an encoder, to the last tensor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mae_transfer.checkpoints.files import Tensors, named, read
from mae_transfer.checkpoints.names import join_qkv, rename, strip, unwrap
from mae_transfer.core.normalize import IMAGENET, Statistics
from mae_transfer.models.vit import SIZES, ViTConfig

HEAD = ("head.", "fc_norm.")  # a classifier's tensors: handed back, never dropped
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MAE_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")


class Found(NamedTuple):
    """What a layout finds in a file."""

    architecture: ViTConfig  # `heads` is None where neither the file nor the layout tells them
    tensors: dict[str, Tensor]  # the encoder's, in this suite's names
    head: dict[str, Tensor]  # a classifier's: fc_norm.* and head.*; empty where the file has none
    statistics: Statistics = IMAGENET  # what its images were normalised with


def mae(path: Path) -> Found:
    """mae_pretrain_*.pth, and detectron2's mirror of them."""
    return found(unwrap(read(path), "model", where=path), positions="fixed", where=path)


def mae_full(path: Path) -> Found:
    """*_full.pth and mae_visualize_*.pth: the encoder of a file that has the decoder too (`load_mae` reads both)."""
    return found(unwrap(read(path), "model", where=path), drop=MAE_DECODER, positions="fixed", where=path)


def mae_finetuned(path: Path) -> Found:
    """mae_finetuned_*.pth: mean-pooled ones have fc_norm and no norm; positions were trained."""
    return found(unwrap(read(path), "model", where=path), classifier=True, where=path)


def moco_v3(path: Path) -> Found:
    """MoCo v3: the base encoder without its projector. ViT-S has 12 heads; the sin-cos table (rows first) is loaded as it is stored."""
    tensors = unwrap(read(path), "state_dict", where=path)
    drop = ("module.base_encoder.head.", "module.momentum_encoder.", "module.predictor.")
    tensors = strip({name: tensor for name, tensor in tensors.items() if not named(name, drop)}, "module.base_encoder.")
    if "patch_embed.proj.0.weight" in tensors:
        raise ValueError(f"{path} has a convolutional stem (patch_embed.proj.0 ...), which this encoder has not; use the ViT with a patch embedding")
    return found(tensors, positions="fixed", heads={384: 12}, where=path)


def dino(path: Path) -> Found:
    """DINO: a flat backbone, or the teacher of a full checkpoint (its head is a projector and is dropped).

    Its own code resamples positions without antialiasing and with an offset of 0.1: at other sizes features agree nearly, not to the digit.
    """
    return found(strip(unwrap(read(path), "teacher", where=path), "module.", "backbone."), drop=HEAD, where=path)


def ibot(path: Path) -> Found:
    """iBOT: an extracted backbone under "state_dict", or the teacher of a full checkpoint."""
    tensors = strip(unwrap(read(path), "state_dict", "teacher", where=path), "module.", "backbone.")
    return found(tensors, drop=(*HEAD, "masked_embed"), where=path)


def deit(path: Path) -> Found:
    """DeiT and timm's supervised ViTs. A distilled one adds a second token, which this encoder has not: refused."""
    tensors = strip(unwrap(read(path), "model", where=path), "module.")
    if "dist_token" in tensors:
        name = "timm:deit_base_distilled_patch16_224@FILE"
        raise ValueError(f"{path} has a distillation token (dist_token, N + 2 positions), which this encoder has not; load it as {name} or its like")
    return found(tensors, drop=("pre_logits.",), classifier=True, where=path)


def dinov2(path: Path) -> Found:
    """DINOv2 without registers and with a plain MLP (S, B, L); positions are made for 518 px."""
    tensors = strip(unwrap(read(path), "teacher", where=path), "backbone.")
    for name, what in (("register_tokens", "register tokens"), ("blocks.0.mlp.w12.weight", "a SwiGLU MLP"), ("storage_tokens", "DINOv3's tokens")):
        if name in tensors:
            raise ValueError(f"{path} has {what} ({name}), which this encoder has not; load it through timm, e.g. timm:vit_small_patch14_reg4_dinov2")
    return found(tensors, drop=("mask_token", "dino_head.", "ibot_head."), where=path)


def beit(path: Path) -> Found:
    """BEiT, self-supervised (one shared table) or fine-tuned (a table per block); the key has no bias, LayerScale is gamma_1 and gamma_2.

    Its releases, trained on ImageNet-22k, saw images normalised with 0.5 and 0.5.
    """
    tensors = unwrap(read(path), "model", "module", where=path)
    rules = (
        (r"^rel_pos_bias\.relative_position_bias_table$", "rel_pos_bias.0.table"),
        (r"^blocks\.(\d+)\.attn\.relative_position_bias_table$", r"rel_pos_bias.\1.table"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
    )
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("relative_position_index")}
    return found(rename(kept, rules), drop=("lm_head.", "mask_token"), classifier=True, where=path)._replace(statistics=HALF)


def mmpretrain(path: Path) -> Found:
    """mmpretrain's and mmselfsup's ViTs (MAE, MoCo v3 ...): other names, and sin-cos tables with rows first, loaded as they are stored."""
    tensors = unwrap(read(path), "state_dict", where=path)
    rules = (
        (r"^backbone\.patch_embed\.projection\.", "patch_embed.proj."),
        (r"^backbone\.layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
        (r"^backbone\.layers\.(\d+)\.attn\.(qkv|proj)\.", r"blocks.\1.attn.\2."),
        (r"^backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
        (r"^backbone\.layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
        (r"^backbone\.ln1\.", "norm."),
        (r"^backbone\.ln2\.", "fc_norm."),  # the norm of mean-pooled features
        (r"^backbone\.", ""),
        (r"^head\.(?:fc|layers\.head)\.", "head."),
    )
    return found(rename(tensors, rules), drop=("neck.", "data_preprocessor.", "target_generator."), classifier=True, where=path)


def augreg(path: Path) -> Found:
    """Google's .npz files (AugReg and the original ViTs): flax names, kernels transposed, head counts in the shapes; normalised with 0.5 and 0.5."""
    flax = read(path)
    if any(name.startswith("conv_root") for name in flax):
        raise ValueError(f"{path} is a hybrid with a ResNet stem (conv_root ...), which this encoder has not")
    rules = (
        (r"^embedding/", "patch_embed.proj/"), (r"^cls$", "cls_token"), (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
        (r"^Transformer/encoder_norm/", "norm/"), (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
        (r"LayerNorm_0/", "norm1/"), (r"LayerNorm_2/", "norm2/"), (r"MlpBlock_3/Dense_0/", "mlp.fc1/"), (r"MlpBlock_3/Dense_1/", "mlp.fc2/"),
        (r"MultiHeadDotProductAttention_1/out/", "attn.proj/"), (r"MultiHeadDotProductAttention_1/", "attn."),
        (r"/(?:kernel|scale)$", ".weight"), (r"/bias$", ".bias"),
    )  # fmt: skip
    tensors = rename(flax, rules)
    query = tensors.get("blocks.0.attn.query.weight")
    heads = {} if query is None else {query.shape[0]: query.shape[1]}
    tensors = {name: _from_flax(name, tensor) for name, tensor in tensors.items()}
    joined = join_qkv(tensors, "attn.query", "attn.key", "attn.value")
    return found(joined, drop=("pre_logits.",), classifier=True, heads=heads, where=path)._replace(statistics=HALF)


def _from_flax(name: str, tensor: Tensor) -> Tensor:
    """Return a flax tensor in torch's layout: kernels output first, heads merged into the width."""
    if ".attn." in name and tensor.ndim == 2 and name.endswith("bias"):
        return tensor.flatten()
    if name.endswith("proj.weight") and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if name.endswith("attn.proj.weight"):
        return tensor.flatten(0, 1).T.contiguous()
    if name.endswith(".weight") and tensor.ndim >= 2:
        return tensor.flatten(1).T.contiguous()
    return tensor


def found(
    tensors: Tensors,
    *,
    drop: Collection[str] = (),
    classifier: bool = False,
    positions: str = "learned",
    heads: Mapping[int, int] | None = None,
    where: Path,
) -> Found:
    """Sort tensors in this suite's names into encoder and head, without `drop`.

    classifier: the layout has one, and its tensors are handed back. heads: the layout's own head counts, by width.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not named(name, drop)}
    head = {name: kept.pop(name) for name in list(kept) if classifier and named(name, HEAD)}
    return Found(architecture(kept, pooled="fc_norm.weight" in head, positions=positions, heads=heads or {}, where=where), kept, head)


def architecture(tensors: Tensors, *, pooled: bool, positions: str, heads: Mapping[int, int], where: Path) -> ViTConfig:
    """Return the architecture that shapes and names tell. The head count is in neither: it is the layout's or the named size's, else None.

    Raises:
        ValueError: a tensor that tells the shape is missing, or the grid is not square.
    """
    try:
        dim, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        side = _side(tensors)
    except (KeyError, ValueError):
        raise ValueError(f"{where} has no square grid of patch_embed, positions and blocks in the names of its layout") from None
    size = next((name for name, (width, blocks, _) in SIZES.items() if (width, blocks) == (dim, depth)), None)
    tables = sum(name.startswith("rel_pos_bias.") for name in tensors)
    fields: dict[str, Any] = {
        "size": size, "dim": None if size else dim, "depth": None if size else depth, "heads": heads.get(dim), "patch": patch,
        "channels": channels, "image_size": side * patch, "mlp_ratio": hidden / dim, "class_token": "cls_token" in tensors,
        "final_norm": "norm.weight" in tensors or not pooled, "positions": positions if "pos_embed" in tensors else "none",
        "relative_positions": "none" if not tables else "shared" if tables == 1 else "per_block",
        "qkv_bias": "qkv" if "blocks.0.attn.qkv.bias" in tensors else "qv" if "blocks.0.attn.q_bias" in tensors else "none",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
    }  # fmt: skip
    return ViTConfig.model_validate(fields)


def _side(tensors: Tensors) -> int:
    """Return the side of the square grid that positions are made for; ValueError where it is none."""
    leading = int("cls_token" in tensors)
    if "pos_embed" in tensors:
        side = math.isqrt(max(0, tensors["pos_embed"].shape[1] - leading))
        square = side > 0 and side**2 + leading == tensors["pos_embed"].shape[1]
    else:
        offsets = tensors["rel_pos_bias.0.table"].shape[0] - 3 * leading
        side = (math.isqrt(max(0, offsets)) + 1) // 2
        square = (2 * side - 1) ** 2 == offsets
    if not square:
        raise ValueError("no square grid")
    return side
