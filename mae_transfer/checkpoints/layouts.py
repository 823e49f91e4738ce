"""Released layouts of plain ViTs. The user names the layout; it is never guessed from keys.

This suite's encoder uses the names of MAE's release, which are timm's. Most layouts therefore need no renaming and
differ only in the tensors to drop and the number of heads. Wrappers and prefixes are found by pattern (names.unwrap,
names.core). Each function turns a file into a `Found`; `fit.fit` then loads it strictly into an encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import Tensors, named, read, shortened
from mae_transfer.checkpoints.names import STEM, core, join_qkv, rename, unwrap
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics, checked
from mae_transfer.core.positions import fixed_grid, sincos_2d
from mae_transfer.models.vit import SIZES, ViTConfig

HEAD = ("head.", "fc_norm.")  # tensors of a classifier; they are returned, never dropped
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PUBLISHED_HEADS = {192: (3, 12), 384: (6, 12)}  # 192: DeiT and MAE-Lite; 384: DeiT, DINO, iBOT, DINOv2 and MoCo v3
MAE_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")


class Found(NamedTuple):
    """The content of a file in this suite's terms."""

    architecture: ViTConfig  # `heads` is None if neither the file nor the layout determines it
    tensors: dict[str, Tensor]  # of the encoder, under this suite's names
    head: dict[str, Tensor]  # of the classifier: fc_norm.* and head.*; empty if the file has none
    statistics: Statistics = IMAGENET  # normalisation of the images in the layout's releases
    recorded: Statistics | None = None  # normalisation that the file records
    counts: tuple[int, ...] = ()  # published numbers of heads for this width, if `heads` is None


def mae(path: Path) -> Found:
    """Read mae_pretrain_*.pth, or detectron2's mirror of them."""
    return found(_encoder(path, "model"), positions="fixed", where=path)


def mae_full(path: Path) -> Found:
    """Read the encoder of *_full.pth or mae_visualize_*.pth, which also hold the decoder (`load_mae` reads both)."""
    return found(_encoder(path, "model"), drop=MAE_DECODER, positions="fixed", where=path)


def mae_finetuned(path: Path) -> Found:
    """Read mae_finetuned_*.pth. Mean-pooled models have fc_norm and no norm; positions were trained."""
    return found(_encoder(path, "model"), classifier=True, where=path)


def moco_v3(path: Path) -> Found:
    """Read MoCo v3: the base encoder without its projector.

    ViT-S has 12 heads. The sin-cos table (rows first) is loaded as stored.
    """
    tensors = unwrap(read(path), "state_dict", where=path, stem=(STEM, "patch_embed.proj.0.weight"))
    if stem := next((name for name in tensors if name.endswith("patch_embed.proj.0.weight")), None):
        raise ValueError(
            f"{path} has a convolutional stem ({stem} ...), which this encoder does not support; "
            "use the ViT with a patch embedding"
        )
    tensors = core(tensors, "base_encoder", where=path)
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not re.match(r"(module\.)?(momentum_encoder|predictor)\.", name)
    }
    return found(tensors, drop=("head.",), positions="fixed", heads={384: 12}, where=path)


def dino(path: Path) -> Found:
    """Read DINO: a flat backbone, or the teacher of a full checkpoint; its head is a projector and is dropped.

    DINO's code resamples positions without antialiasing and with an offset of 0.1, so at other image sizes its features
    differ slightly from these.
    """
    return found(_encoder(path, "teacher"), drop=HEAD, heads={192: 3, 384: 6}, where=path)


def ibot(path: Path) -> Found:
    """Read iBOT: an extracted backbone under "state_dict", or the teacher of a full checkpoint."""
    return found(
        _encoder(path, "state_dict", "teacher"), drop=(*HEAD, "masked_embed"), heads={192: 3, 384: 6}, where=path
    )


def deit(path: Path) -> Found:
    """Read DeiT, DeiT III or a supervised ViT of timm. A distilled model is refused because it has a second token.

    MoCo v3's conversion to DeiT's names keeps its sin-cos table. A ViT-S with such a table may have 12 heads instead of
    DeiT's 6, so the user must pass the number.
    """
    tensors = rename(_encoder(path, "model"), ((r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),))
    if "dist_token" in tensors:
        name = "timm:deit_base_distilled_patch16_224@FILE"
        raise ValueError(
            f"{path} has a distillation token (dist_token, N + 2 positions), which this encoder does not support; "
            f"load it through timm, e.g. {name}"
        )
    heads = {} if _is_sincos(tensors.get("pos_embed")) else {192: 3, 384: 6}
    return found(tensors, drop=("pre_logits.",), classifier=True, heads=heads, where=path)


def dinov2(path: Path) -> Found:
    """Read DINOv2 without registers and with a plain MLP (S, B, L).

    Positions are made for 518 px. Chunked block names (blocks.0.3.) are flattened.
    """
    tensors = _encoder(path, "teacher")
    if any(re.match(r"blocks\.\d+\.\d+\.", name) for name in tensors):
        tensors = rename(tensors, ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),))
    for name, what in (
        ("register_tokens", "register tokens"),
        ("blocks.0.mlp.w12.weight", "a SwiGLU MLP"),
        ("storage_tokens", "DINOv3's tokens"),
    ):
        if name in tensors:
            raise ValueError(
                f"{path} has {what} ({name}), which this encoder does not support; "
                "load it through timm, e.g. timm:vit_small_patch14_reg4_dinov2"
            )
    return found(tensors, drop=("mask_token", "dino_head.", "ibot_head."), heads={384: 6}, where=path)


def beit(path: Path) -> Found:
    """Read BEiT, self-supervised (one shared table) or fine-tuned (a table per block).

    The key has no bias; LayerScale is gamma_1 and gamma_2. The releases, trained on ImageNet-22k, normalise images with
    0.5 and 0.5. A file of BEiT's training script records its own choice under "args".
    """
    content = read(path)
    tensors = _beit_names(core(unwrap(content, "model", "module", where=path), where=path))
    flag = getattr(content.get("args"), "imagenet_default_mean_and_std", None)
    recorded = None if flag is None else IMAGENET if flag else HALF
    result = found(tensors, drop=("lm_head.", "mask_token"), classifier=True, where=path)
    return result._replace(statistics=HALF, recorded=recorded)


def simmim(tensors: Tensors, *, where: Path) -> Found:
    """Convert SimMIM's ViT, pretrained (one shared table) or fine-tuned: BEiT's names, ImageNet's statistics."""
    return found(_beit_names(tensors), drop=("decoder.", "mask_token"), classifier=True, where=where)


def _beit_names(tensors: Tensors) -> dict[str, Tensor]:
    rules = (
        (r"^rel_pos_bias\.relative_position_bias_table$", "rel_pos_bias.0.table"),
        (r"^blocks\.(\d+)\.attn\.relative_position_bias_table$", r"rel_pos_bias.\1.table"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
    )
    return rename(
        {name: tensor for name, tensor in tensors.items() if not name.endswith("relative_position_index")}, rules
    )


def mmpretrain(path: Path) -> Found:
    """Read a ViT of mmpretrain or mmselfsup (MAE, MoCo v3 ...).

    The names differ from ours. Sin-cos tables (rows first) are loaded as stored.
    """
    stem = "patch_embed.projection.weight"
    tensors = core(unwrap(read(path), "state_dict", where=path, stem=stem), "backbone", where=path, stem=stem)
    recorded = _preprocessor(tensors, where=path)
    rules = (
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
        (r"^layers\.(\d+)\.attn\.(qkv|proj)\.", r"blocks.\1.attn.\2."),
        (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
        (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
        (r"^ln1\.", "norm."),
        (r"^ln2\.", "fc_norm."),  # the norm of mean-pooled features
        (r"^head\.(?:fc|layers\.head)\.", "head."),
    )
    drop = ("neck.", "data_preprocessor.", "target_generator.", "momentum_encoder.")
    return found(rename(tensors, rules), drop=drop, classifier=True, where=path)._replace(recorded=recorded)


def _preprocessor(tensors: Tensors, *, where: Path) -> Statistics | None:
    """Return the statistics of mmpretrain's data preprocessor, converted from the scale 0..255 to 0..1."""
    stored = [tensors.get(f"data_preprocessor.{name}") for name in ("mean", "std")]
    if any(values is None for values in stored):
        return None
    mean, std = (tuple(float(value) / 255 for value in values.flatten()) for values in stored if values is not None)
    return checked(mean, std, where=f"data_preprocessor in {where}")


def augreg(path: Path) -> Found:
    """Read Google's .npz files (AugReg and the original ViTs).

    They have flax names and transposed kernels, and their shapes give the number of heads. Images are normalised with
    0.5 and 0.5.
    """
    flax = read(path)
    if any(name.startswith("conv_root") for name in flax):
        raise ValueError(
            f"{path} is a hybrid with a ResNet stem (conv_root ...), which this encoder does not support; "
            "use a plain ViT"
        )
    rules = (
        (r"^embedding/", "patch_embed.proj/"), (r"^cls$", "cls_token"),
        (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
        (r"^Transformer/encoder_norm/", "norm/"), (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
        (r"LayerNorm_0/", "norm1/"), (r"LayerNorm_2/", "norm2/"),
        (r"MlpBlock_3/Dense_0/", "mlp.fc1/"), (r"MlpBlock_3/Dense_1/", "mlp.fc2/"),
        (r"MultiHeadDotProductAttention_1/out/", "attn.proj/"), (r"MultiHeadDotProductAttention_1/", "attn."),
        (r"/(?:kernel|scale)$", ".weight"), (r"/bias$", ".bias"),
    )  # fmt: skip
    tensors = rename({name: tensor for name, tensor in flax.items() if isinstance(tensor, Tensor)}, rules)
    query = tensors.get("blocks.0.attn.query.weight")
    if query is None or query.ndim != 3:
        wanted = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel of three dimensions"
        raise ValueError(f"{path} has no {wanted}; its names are {shortened(list(flax)) or 'none'}")
    heads = {query.shape[0]: query.shape[1]}
    tensors = {name: _from_flax(name, tensor) for name, tensor in tensors.items()}
    joined = join_qkv(tensors, "attn.query", "attn.key", "attn.value")
    return found(joined, drop=("pre_logits.",), classifier=True, heads=heads, where=path)._replace(statistics=HALF)


def _encoder(path: Path, *keys: str) -> dict[str, Tensor]:
    """Return the encoder's tensors without wrapper and prefix; of a student and a teacher, the teacher's."""
    return core(unwrap(read(path), *keys, where=path), "teacher", where=path)


def _from_flax(name: str, tensor: Tensor) -> Tensor:
    """Return a flax tensor in torch's layout: output dimension first, heads merged into the width."""
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
    """Split tensors under this suite's names into encoder and head, without `drop`.

    A position table without a row for the class token (DeiT III) gets a row of zeros, which is equivalent.

    classifier: the layout can have a classifier; its tensors are returned. heads: width -> number of heads.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not named(name, drop)}
    head = {name: kept.pop(name) for name in list(kept) if classifier and named(name, HEAD)}
    table = kept.get("pos_embed")
    if (
        table is not None
        and table.ndim == 3
        and "cls_token" in kept
        and math.isqrt(table.shape[1]) ** 2 == table.shape[1] > 1
    ):
        kept["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    cfg = architecture(kept, pooled="fc_norm.weight" in head, positions=positions, heads=heads or {}, where=where)
    counts = () if cfg.heads else PUBLISHED_HEADS.get(kept[STEM].shape[0], ())
    return Found(cfg, kept, head, counts=counts)


def architecture(tensors: Tensors, *, pooled: bool, positions: str, heads: Mapping[int, int], where: Path) -> ViTConfig:
    """Return the architecture, derived from shapes and names.

    The number of heads follows from a table of relative positions; otherwise it is the layout's, or None.

    Raises:
        ValueError: a tensor that determines the architecture is missing, or the grid is not square.
    """
    table = "pos_embed" if "pos_embed" in tensors else "rel_pos_bias.0.table"
    ranks = {STEM: 4, "blocks.0.mlp.fc1.weight": 2, table: 3 if table == "pos_embed" else 2}
    if lost := [name for name in ranks if name not in tensors]:
        raise ValueError(
            f"{where} has no {' and no '.join(lost)}; its names (in this suite's terms) are "
            f"{shortened(sorted(tensors))}"
        )
    if flat := [
        f"{name} {tuple(tensors[name].shape)}"
        for name, rank in ranks.items()
        if tensors[name].ndim != rank or not tensors[name].numel()
    ]:
        raise ValueError(f"{where} has {', '.join(flat)}, which is not a shape of a ViT: name the file's layout")
    dim, channels, patch, width = tensors[STEM].shape
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    if patch != width:
        raise ValueError(f"{where} has patches of {patch} x {width} pixels ({STEM}); only square patches are supported")
    side = _side(tensors)
    if side is None:
        rows = tensors[table].shape[-2]
        raise ValueError(
            f"{where} has {rows} rows in {table}, which is no square grid of patches with "
            f"{int('cls_token' in tensors)} class tokens"
        )
    grid = fixed_grid(tensors[table], leading=int("cls_token" in tensors)) if table == "pos_embed" else None
    if grid not in (None, (side, side)):
        raise ValueError(
            f"{where} has the positions of {grid} patches, but its layout is for square images; "
            "load the file that it was exported from"
        )
    size = next((name for name, (width, blocks, _) in SIZES.items() if (width, blocks) == (dim, depth)), None)
    tables = sum(name.startswith("rel_pos_bias.") for name in tensors)
    own = tensors["rel_pos_bias.0.table"].shape[1] if "rel_pos_bias.0.table" in tensors else None
    fields: dict[str, Any] = {
        "size": size, "dim": None if size else dim, "depth": None if size else depth, "heads": own or heads.get(dim),
        "patch": patch, "channels": channels, "image_size": side * patch, "mlp_ratio": hidden / dim,
        "class_token": "cls_token" in tensors, "final_norm": "norm.weight" in tensors or not pooled,
        "positions": positions if "pos_embed" in tensors else "none",
        "relative_positions": "none" if not tables else "shared" if tables == 1 else "per_block",
        "qkv_bias": (
            "qkv" if "blocks.0.attn.qkv.bias" in tensors else "qv" if "blocks.0.attn.q_bias" in tensors else "none"
        ),
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
    }  # fmt: skip
    return validate(fields, ViTConfig, where=f"architecture of {where}")


def _side(tensors: Tensors) -> int | None:
    """Return the side of the square grid of the positions; None if the number of rows fits no square grid."""
    leading = int("cls_token" in tensors)
    if "pos_embed" in tensors:
        side = math.isqrt(max(0, tensors["pos_embed"].shape[1] - leading))
        return side if side > 0 and side**2 + leading == tensors["pos_embed"].shape[1] else None
    offsets = tensors["rel_pos_bias.0.table"].shape[0] - 3 * leading
    side = (math.isqrt(max(0, offsets)) + 1) // 2
    return side if side > 0 and (2 * side - 1) ** 2 == offsets else None


def _is_sincos(table: Tensor | None) -> bool:
    """Return whether a position table (1, 1 + N, D) is a fixed sin-cos table.

    Both orders of rows and columns count: MoCo v3's and MAE's.
    """
    if table is None or table.ndim != 3 or table.shape[2] % 4:
        return False
    side, dim = math.isqrt(max(0, table.shape[1] - 1)), table.shape[2]
    if side < 1 or side**2 + 1 != table.shape[1]:
        return False
    ours = sincos_2d(dim, (side, side))
    return any(torch.allclose(table.float(), turned, atol=1e-4) for turned in (ours, ours.roll(dim // 2, dims=2)))
