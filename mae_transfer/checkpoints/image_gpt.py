"""Import of ImageGPT in transformers' layout: weights, config.json, and the colours in preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mae_transfer.checkpoints.files import load_strict, read, read_json, unwrap
from mae_transfer.checkpoints.layouts import HALF, rename, strip_prefix
from mae_transfer.core.normalize import Statistics
from mae_transfer.core.patches import sides
from mae_transfer.models.image_gpt import ImageGPT

MAY_CHANGE = ("depth", "image_size", "final_norm", "class_token", "drop_path")
STEM = "wte.weight"
RULES = (
    (r"^wte\.", "token_embed."), (r"^wpe\.weight$", "pos_embed"), (r"^ln_f\.", "norm."),
    (r"^h\.(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."), (r"^h\.(\d+)\.attn\.c_attn\.", r"blocks.\1.attn.qkv."),
    (r"^h\.(\d+)\.attn\.c_proj\.", r"blocks.\1.attn.proj."), (r"^h\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (r"^h\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
)  # fmt: skip


class ImageGPTWeights(NamedTuple):
    """The content of a directory that holds an ImageGPT."""

    clusters: Tensor  # (K, 3) colours
    heads: int
    tensors: dict[str, Tensor]  # under this package's names
    head: dict[str, Tensor] = {}  # noqa: RUF012 - never filled: the head predicts colours
    statistics: Statistics = HALF
    recorded: Statistics | None = HALF  # the colours are on this scale

    def build(self, changes: Mapping[str, Any], *, where: str) -> ImageGPT:
        """Return the model, cut after `depth` blocks: its norm is then the first norm of the next block.

        Raises:
            ValueError: a change is impossible, or a tensor is unexpected or missing.
        """
        if unknown := [key for key in changes if key not in MAY_CHANGE]:
            raise ValueError(
                f"{where}: {', '.join(unknown)} of an ImageGPT cannot be changed; choose from {', '.join(MAY_CHANGE)}"
            )
        if changes.get("class_token") or changes.get("drop_path"):
            raise ValueError(f"{where}: an ImageGPT has neither class token nor drop path; set them to False and 0")
        blocks = 1 + max(int(name.split(".")[1]) for name in self.tensors if name.startswith("blocks."))
        depth, final_norm = changes.get("depth", blocks), changes.get("final_norm", True)
        if not (isinstance(depth, int) and 1 <= depth <= blocks):
            raise ValueError(f"{where}: changes.depth = {depth!r}, but the model has {blocks} blocks: set 1..{blocks}")
        positions, dim = self.tensors["pos_embed"].shape[-2:]
        side = math.isqrt(positions)
        if "image_size" in changes and sides(changes["image_size"]) != (side, side):
            raise ValueError(
                f"{where}: this ImageGPT takes images of {side} x {side} pixels, not {changes['image_size']}: set "
                f"data.size={side}"
            )
        hidden = self.tensors["blocks.0.mlp.fc1.weight"].shape[0]
        model = ImageGPT(
            self.clusters, dim=dim, depth=depth, heads=self.heads, hidden=hidden, side=side, final_norm=final_norm
        )
        load_strict(model, self._cut(depth, blocks, final_norm=final_norm), absent=("clusters",), where=where)
        return model

    def _cut(self, depth: int, blocks: int, *, final_norm: bool) -> dict[str, Tensor]:
        """Return the tensors of the first `depth` blocks, and of the norm after them."""
        later = tuple(f"blocks.{number}." for number in range(depth, blocks))
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith((*later, "norm."))}
        last = "norm.weight" if depth == blocks else f"blocks.{depth}.norm1.weight"
        return kept | ({"norm.weight": self.tensors[last]} if final_norm and last in self.tensors else {})


def image_gpt(file: Path, config: Mapping[str, Any]) -> ImageGPTWeights:
    """Read an ImageGPT from its weight file, the content of config.json, and preprocessor_config.json beside it."""
    for key, value in {"activation_function": "quick_gelu", "scale_attn_weights": True, "layer_norm_epsilon": 1e-5,
                       "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}.items():  # fmt: skip
        if config.get(key, value) != value:
            raise ValueError(f"{file.parent}/config.json has {key}={config[key]!r}; supported is {value!r} only")
    heads = config.get("n_head")
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"{file.parent}/config.json has no positive integer n_head; save the model again")
    tensors = strip_prefix(unwrap(read(file), where=file, stem=STEM), where=file, stem=STEM)
    masks = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored by earlier versions of transformers
    kept = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight" and not name.endswith(masks)}
    named = {name: _linear(name, tensor) for name, tensor in rename(kept, RULES).items()}
    ranks = {"pos_embed": 3, "token_embed.weight": 2, "blocks.0.mlp.fc1.weight": 2, "norm.weight": 1}
    if wrong := [name for name, rank in ranks.items() if name not in named or named[name].ndim != rank]:
        raise ValueError(
            f"{file} has no {', '.join(wrong)} (in this package's terms) of the right rank: save the whole model again"
        )
    if (dim := named["norm.weight"].shape[0]) % heads:
        raise ValueError(f"{file.parent}/config.json has n_head={heads}, which does not divide the width {dim}")
    clusters = _clusters(file.parent / "preprocessor_config.json", len(named["token_embed.weight"]) - 1)
    return ImageGPTWeights(clusters, heads, named)


def _linear(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in torch's layout: transformers stores the weights of linear layers transposed."""
    if name == "pos_embed":
        return tensor[None]
    linear = name.endswith(".weight") and (".attn." in name or ".mlp." in name)
    return tensor.T.contiguous() if linear and tensor.ndim == 2 else tensor


def _clusters(path: Path, count: int) -> Tensor:
    """Return the colours, (K, 3) in [-1, 1], from the file of the image processor."""
    stored = read_json(path).get("clusters")
    try:
        clusters = torch.tensor(stored, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        clusters = torch.zeros(0)
    if clusters.shape != (count, 3) or not clusters.isfinite().all():
        raise ValueError(f"{path} has no `clusters` of {count} colours, three numbers each: download it with the model")
    return clusters
