"""Released layouts of plain ViTs. The user names the layout; it is never guessed from keys.

Layouts that also hold other models (iBOT, DINOv2, MoBY, SimMIM) are read by timm_models.py.

This package's encoder uses the names of MAE's release, which are timm's. Most layouts therefore need no renaming and
differ only in the tensors to drop and the number of heads. `read_tensors` finds wrappers and prefixes by pattern. Each
layout is a function from a file to EncoderWeights, whose `build` loads them strictly into an encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import STEM, Tensors, matches, metadata, read, shorten, unwrap, weight_file, without
from mae_transfer.checkpoints.fit import EncoderWeights, grid_side, table_side
from mae_transfer.config import validate
from mae_transfer.core.normalize import IMAGENET, Statistics, check_statistics
from mae_transfer.core.positions import fixed_grid, sincos_2d
from mae_transfer.models.vit import SIZES, ViTConfig

HEAD = ("head.", "fc_norm.")  # tensors of a classifier; they are returned, never dropped
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PUBLISHED_HEADS = {192: (3, 12), 384: (6, 12)}  # 192: DeiT and MAE-Lite; 384: DeiT, DINO, iBOT, DINOv2 and MoCo v3
MAE_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")

SIGNS: tuple[tuple[tuple[str, ...], Callable[[set[str], set[str]], bool]], ...] = (
    (("moco-v3",), lambda top, names: _starts(names, "module.base_encoder.")),
    (("augreg",), lambda top, names: _starts(names, "Transformer/")),
    (("mmpretrain",), lambda top, names: "backbone.layers.0.ln1.weight" in names),
    (("moby",), lambda top, names: _starts(names, "encoder_k.")),
    (("esvit",), lambda top, names: "teacher" in top and any("layers.0.blocks.0." in name for name in names)),
    (("simmim",), lambda top, names: "encoder.mask_token" in names),
    (("hf",), lambda top, names: any(name.endswith("embeddings.cls_token") for name in names)),
    (("ibot",), lambda top, names: any(name.endswith("masked_embed") for name in names)),
    (("dino", "ibot"), lambda top, names: "teacher" in top),
    (("beit",), lambda top, names: "blocks.0.attn.q_bias" in names),
    (("dinov2",), lambda top, names: "blocks.0.ls1.gamma" in names),
    (("mae-full",), lambda top, names: "decoder_embed.weight" in names),
    (("mae-finetuned",), lambda top, names: "fc_norm.weight" in names),
    (("deit", "mae-finetuned"), lambda top, names: "head.weight" in names),
    (("mae", "deit"), lambda top, names: "model" in top and "blocks.0.attn.qkv.weight" in names),
    (("dino", "deit", "mae"), lambda top, names: "blocks.0.attn.qkv.weight" in names),
)
"""(layouts, test of the file's keys and of the names of its tensors), for error messages; the first match counts."""


def mae(path: Path) -> EncoderWeights:
    """Read mae_pretrain_*.pth, or detectron2's mirror of them."""
    return as_encoder(read_tensors(path, "model"), positions="fixed", where=path)


def mae_full(path: Path) -> EncoderWeights:
    """Read the encoder of *_full.pth or mae_visualize_*.pth, which also hold the decoder (`load_mae` reads both)."""
    return as_encoder(read_tensors(path, "model"), drop=MAE_DECODER, positions="fixed", where=path)


def mae_finetuned(path: Path) -> EncoderWeights:
    """Read mae_finetuned_*.pth. Mean-pooled models have fc_norm and no norm; positions were trained."""
    return as_encoder(read_tensors(path, "model"), classifier=True, where=path)


def moco_v3(path: Path) -> EncoderWeights:
    """Read MoCo v3: the base encoder without its projector.

    ViT-S has 12 heads. The sin-cos table (rows first) is loaded as stored.
    """
    tensors = unwrap(read(path), "state_dict", where=path, stem=(STEM, "patch_embed.proj.0.weight"))
    if stem := next((name for name in tensors if name.endswith("patch_embed.proj.0.weight")), None):
        raise ValueError(
            f"{path} has a convolutional stem ({stem} ...), which this encoder does not support; "
            "use the ViT with a patch embedding"
        )
    tensors = strip_prefix(tensors, "base_encoder", where=path)
    drop = ("head.", "momentum_encoder.", "predictor.", "module.momentum_encoder.", "module.predictor.")
    return as_encoder(tensors, drop=drop, positions="fixed", heads={384: 12}, where=path)


def dino(path: Path) -> EncoderWeights:
    """Read DINO: a flat backbone, or the teacher of a full checkpoint; its head is a projector and is dropped.

    DINO's code resamples positions without antialiasing and with an offset of 0.1, so at other image sizes its features
    differ slightly from these.
    """
    return as_encoder(read_tensors(path, "teacher"), drop=HEAD, heads={192: 3, 384: 6}, where=path)


def deit(path: Path) -> EncoderWeights:
    """Read DeiT, DeiT III or a supervised ViT of timm. A distilled model is refused because it has a second token.

    MoCo v3's conversion to DeiT's names keeps its sin-cos table. A ViT-S with such a table may have 12 heads instead of
    DeiT's 6, so the user must pass the number.
    """
    tensors = rename(read_tensors(path, "model"), ((r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),))
    if "dist_token" in tensors:
        name = "timm:deit_base_distilled_patch16_224@FILE"
        raise ValueError(
            f"{path} has a distillation token (dist_token, N + 2 positions), which this encoder does not support; "
            f"load it through timm, e.g. {name}"
        )
    heads = {} if _is_sincos(tensors.get("pos_embed")) else {192: 3, 384: 6}
    return as_encoder(tensors, drop=("pre_logits.",), classifier=True, heads=heads, where=path)


def beit(path: Path) -> EncoderWeights:
    """Read BEiT, self-supervised (one shared table) or fine-tuned (a table per block).

    The key has no bias; LayerScale is gamma_1 and gamma_2. The releases, trained on ImageNet-22k, normalise images with
    0.5 and 0.5. A file of BEiT's training script records its own choice under "args".
    """
    content = read(path)
    tensors = rename_beit(strip_prefix(unwrap(content, "model", "module", where=path), where=path))
    flag = getattr(content.get("args"), "imagenet_default_mean_and_std", None)
    recorded = None if flag is None else IMAGENET if flag else HALF
    result = as_encoder(tensors, drop=("lm_head.", "mask_token"), classifier=True, where=path)
    return result._replace(statistics=HALF, recorded=recorded)


def rename_beit(tensors: Tensors) -> dict[str, Tensor]:
    """Return BEiT's tensors under this package's names, without the tables of indices."""
    rules = (
        (r"^rel_pos_bias\.relative_position_bias_table$", "rel_pos_bias.0.table"),
        (r"^blocks\.(\d+)\.attn\.relative_position_bias_table$", r"rel_pos_bias.\1.table"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
    )
    return rename(
        {name: tensor for name, tensor in tensors.items() if not name.endswith("relative_position_index")}, rules
    )


def mmpretrain(path: Path) -> EncoderWeights:
    """Read a ViT of mmpretrain or mmselfsup (MAE, MoCo v3 ...).

    The names differ from ours. Sin-cos tables (rows first) are loaded as stored.
    """
    stem = "patch_embed.projection.weight"
    tensors = strip_prefix(unwrap(read(path), "state_dict", where=path, stem=stem), "backbone", where=path, stem=stem)
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
    return as_encoder(rename(tensors, rules), drop=drop, classifier=True, where=path)._replace(recorded=recorded)


def _preprocessor(tensors: Tensors, *, where: Path) -> Statistics | None:
    """Return the statistics of mmpretrain's data preprocessor, converted from the scale 0..255 to 0..1."""
    stored = [tensors.get(f"data_preprocessor.{name}") for name in ("mean", "std")]
    if any(values is None for values in stored):
        return None
    mean, std = (tuple(float(value) / 255 for value in values.flatten()) for values in stored if values is not None)
    return check_statistics(mean, std, where=f"data_preprocessor in {where}")


def augreg(path: Path) -> EncoderWeights:
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
        raise ValueError(f"{path} has no {wanted}; its names are {shorten(list(flax)) or 'none'}")
    heads = {query.shape[0]: query.shape[1]}
    tensors = {name: _from_flax(name, tensor) for name, tensor in tensors.items()}
    joined = join_qkv(tensors, "attn.query", "attn.key", "attn.value")
    return as_encoder(joined, drop=("pre_logits.",), classifier=True, heads=heads, where=path)._replace(statistics=HALF)


def read_tensors(path: Path, *keys: str) -> dict[str, Tensor]:
    """Return the tensors of a file without wrapper (`unwrap`) and prefix; of a student and a teacher, the teacher's."""
    return strip_prefix(unwrap(read(path), *keys, where=path), "teacher", where=path)


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


def as_encoder(
    tensors: Tensors,
    *,
    drop: Collection[str] = (),
    classifier: bool = False,
    positions: str = "learned",
    heads: Mapping[int, int] | None = None,
    where: Path,
) -> EncoderWeights:
    """Split tensors under this package's names into encoder and head, without `drop`.

    A position table without a row for the class token (DeiT III) gets a row of zeros, which is equivalent.

    classifier: the layout can have a classifier; its tensors are returned. heads: width -> number of heads.
    """
    kept = without(tensors, drop)
    head = {name: kept.pop(name) for name in list(kept) if classifier and matches(name, HEAD)}
    table = kept.get("pos_embed")
    if table is not None and table.ndim == 3 and "cls_token" in kept and (grid_side(table.shape[1]) or 0) > 1:
        kept["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    cfg = _architecture(kept, pooled="fc_norm.weight" in head, positions=positions, heads=heads or {}, where=where)
    counts = () if cfg.heads else PUBLISHED_HEADS.get(kept[STEM].shape[0], ())
    return EncoderWeights(cfg, kept, head, counts=counts)


def _architecture(
    tensors: Tensors, *, pooled: bool, positions: str, heads: Mapping[int, int], where: Path
) -> ViTConfig:
    """Return the architecture, derived from shapes and names.

    The number of heads follows from a table of relative positions; otherwise it is the layout's, or None.

    Raises:
        ValueError: a tensor that determines the architecture is missing, or the grid is not square.
    """
    table = "pos_embed" if "pos_embed" in tensors else "rel_pos_bias.0.table"
    ranks = {STEM: 4, "blocks.0.mlp.fc1.weight": 2, table: 3 if table == "pos_embed" else 2}
    if lost := [name for name in ranks if name not in tensors]:
        raise ValueError(
            f"{where} has no {' and no '.join(lost)}; its names (in this package's terms) are "
            f"{shorten(sorted(tensors))}"
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
        return grid_side(tensors["pos_embed"].shape[1] - leading)
    return table_side(tensors["rel_pos_bias.0.table"].shape[0], leading=leading)


def _is_sincos(table: Tensor | None) -> bool:
    """Return whether a position table (1, 1 + N, D) is a fixed sin-cos table.

    Both orders of rows and columns count: MoCo v3's and MAE's.
    """
    if table is None or table.ndim != 3 or table.shape[2] % 4:
        return False
    side, dim = grid_side(table.shape[1] - 1), table.shape[2]
    if side is None:
        return False
    ours = sincos_2d(dim, (side, side))
    return any(torch.allclose(table.float(), turned, atol=1e-4) for turned in (ours, ours.roll(dim // 2, dims=2)))


def rename(tensors: Tensors, rules: Collection[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with the regular expressions of `rules` replaced in their names, in order.

    Raises:
        ValueError: two tensors would get the same name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(f"two tensors would be named {new}, one of them {name}: name the file's layout")
        renamed[new] = tensor
    return renamed


def join_qkv(tensors: Tensors, query: str, key: str, value: str) -> dict[str, Tensor]:
    """Return the tensors with query, key and value of each block joined into attn.qkv.

    If the key has no bias, the other two biases become q_bias and v_bias.
    """
    joined = dict(tensors)
    for name in [name for name in tensors if f".{query}." in name]:
        stem, _, kind = name.partition(f".{query}.")
        parts = {part: joined.pop(f"{stem}.{part}.{kind}", None) for part in (query, key, value)}
        first, last = parts[query], parts[value]
        if parts[key] is None and kind == "bias" and first is not None and last is not None:
            joined[f"{stem}.attn.q_bias"], joined[f"{stem}.attn.v_bias"] = first, last
        elif any(part is None for part in parts.values()):
            lost = ", ".join(part for part, tensor in parts.items() if tensor is None)
            raise ValueError(f"{stem} has {name} but no {lost} ({kind}): the file is incomplete, save it again")
        else:
            found = [part for part in parts.values() if part is not None]
            if len({part.shape[1:] for part in found}) > 1 or not found[0].ndim:
                shapes = [tuple(part.shape) for part in found]
                raise ValueError(
                    f"{name}: query, key and value of {stem} have shapes {shapes}, which cannot be joined: "
                    "save the file again"
                )
            joined[f"{stem}.attn.qkv.{kind}"] = torch.cat(found)
    return joined


def strip_prefix(tensors: Tensors, *prefer: str, where: Path, stem: str = STEM) -> dict[str, Tensor]:
    """Return the tensors without the common prefix of the encoder's names ("module.backbone.", "encoder." ...).

    Tensors outside the encoder lose only the part of the prefix that all names share. If several encoders have a
    `stem`, the one whose prefix contains a word of `prefer` is taken, and the tensors of the others are dropped.

    Raises:
        ValueError: no tensor is named `stem`, or several encoders have one and none is preferred.
    """
    prefixes = [name.removesuffix(stem) for name in tensors if name == stem or name.endswith(f".{stem}")]
    if not prefixes:
        raise ValueError(
            f"{where} has no tensor named ...{stem}; its names are {shorten(list(tensors)) or 'none'}: "
            "name the file's layout"
        )
    preferred = next(
        (found for word in prefer if (found := [prefix for prefix in prefixes if word in prefix.split(".")])), prefixes
    )
    if preferred is prefixes and len(prefixes) > 1:
        raise ValueError(
            f"{where} holds several encoders, under {', '.join(map(repr, prefixes))}; "
            "save the intended one in its own file"
        )
    own = min(preferred, key=len)
    others = tuple(prefix for prefix in prefixes if prefix not in ("", own))
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(own) or not name.startswith(others)}
    return _without(kept, own)


def _without(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Return the tensors without a prefix; other tensors lose the part of it that every name has."""
    words, shared = prefix.split(".")[:-1], ""
    for word in words:
        if not all(name.startswith(f"{shared}{word}.") for name in tensors):
            break
        shared += f"{word}."
    stripped = {
        name.removeprefix(prefix if name.startswith(prefix) else shared): tensor for name, tensor in tensors.items()
    }
    if len(stripped) < len(tensors):
        both = next(name for name in tensors if prefix + name in tensors)
        raise ValueError(
            f"names with and without the prefix {prefix!r} collide, e.g. {both}: save the encoder in its own file"
        )
    return stripped


def looks_like(path: Path) -> tuple[str, ...]:
    """Return the prefixes of the layouts that a file looks like; "" is this package's own.

    For error messages only: loading always follows the reference. The result is empty if no test matches or the file
    cannot be read.
    """
    try:
        file = weight_file(path)
        if file.suffix == ".safetensors" and metadata(file).get("format"):
            return ("",)
        content = read(file)
    except ValueError:
        return ()
    inner: dict[str, Any] = next(
        (content[key] for key in ("model", "state_dict", "teacher") if isinstance(content.get(key), dict)), content
    )
    names = {str(name) for name in inner}
    prefixes = {stem.removesuffix(STEM) for stem in names if stem.endswith(f".{STEM}")}
    names |= {name.removeprefix(prefix) for prefix in prefixes for name in names}  # as strip_prefix does
    return next((prefixes for prefixes, sign in SIGNS if sign(set(content), names)), ())


def _starts(names: set[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
