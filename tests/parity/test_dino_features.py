"""DINO's eval_linear features (class tokens of the last blocks, mean of the patch tokens) on copied weights.

The expected values come from plain tensor operations on the state dict, written from the paper and from the public
description of the recipe: n_last_blocks = 4 without mean for ViT-S, 1 with mean for ViT-B.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mae_transfer.interfaces import Backbone
from mae_transfer.models.heads import Probe, ProbeRow, check_pool, pool, taps_of
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import ViT, ViTConfig

DIM, DEPTH, HEADS, PATCH = 16, 5, 2, 8


def backbones() -> dict[str, tuple[Backbone, dict[str, Tensor]]]:
    """Return a ViT of this package and one of timm with random weights, and their weights by timm's names."""
    torch.manual_seed(0)
    options = {"size": None, "dim": DIM, "depth": DEPTH, "heads": HEADS, "patch": PATCH, "image_size": 32}
    vit: Any = ViT(ViTConfig.model_validate(options))
    plain = VisionTransformer(
        img_size=32, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=0
    )  # fmt: skip
    for module in (vit, plain):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
    return {
        "vit": (vit.double().eval(), vit.state_dict()),
        "timm": (TimmBackbone(plain).double().eval(), plain.state_dict()),
    }


def blocks_of(images: Tensor, w: dict[str, Tensor]) -> list[Tensor]:
    """Return the tokens (B, 1 + N, D) after each block, through the final norm."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    found = []
    for i in range(DEPTH):
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=2)
        )
        mixed = ((q @ k.mT) / (DIM // HEADS) ** 0.5).softmax(dim=3) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
        found.append(norm(x, "norm"))
    return found


@pytest.mark.parametrize("kind", ["vit", "timm"])
@pytest.mark.parametrize(("how", "last", "mean"), [("cls-4", 4, False), ("cls+mean", 1, True), ("cls-3+mean", 3, True)])
def test_features_are_those_of_dinos_evaluation(kind: str, how: str, last: int, mean: bool) -> None:
    backbone, weights = backbones()[kind]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = pool(backbone(images, taps=taps_of(backbone, (how,)), norm=True), how)
    blocks = blocks_of(images, {name: tensor.double() for name, tensor in weights.items()})
    parts = [tokens[:, 0] for tokens in blocks[-last:]] + ([blocks[-1][:, 1:].mean(dim=1)] if mean else [])
    torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-9, atol=1e-9)


def test_linear_probes_read_them() -> None:
    backbone, _ = backbones()["vit"]
    backbone = backbone.float()
    pools = ("cls", "mean", "cls-4", "cls+mean")
    torch.manual_seed(0)
    row = ProbeRow(backbone, 3, probes={how: Probe("linear", how) for how in pools}).train()
    images = torch.randn(8, 3, 32, 32)
    logits = row(images)
    assert logits.shape == (4, 8, 3)
    features = backbone(images, taps=taps_of(backbone, pools), norm=True)
    for index, how in enumerate(pools):
        vector = pool(features, how)
        normed = (vector - vector.mean(0)) / (vector.var(0, correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(logits[index], row.probes[how](normed), rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    alone = ProbeRow(backbone, 3, probes={how: Probe("linear", how) for how in ("cls", "mean")}).train()
    torch.testing.assert_close(alone(images), logits[:2], rtol=0, atol=0)


def test_what_cannot_be_pooled_is_refused() -> None:
    backbone, _ = backbones()["vit"]
    for how in ("cls-1", "cls-0", "max", "mean+cls", "cls-4+", ""):
        with pytest.raises(ValueError, match="is no pool: give 'cls', 'mean', 'cls.mean', 'cls-4' or 'cls-4.mean'"):
            check_pool(how)
    with pytest.raises(ValueError, match="pool 'cls-6': vit-16x5/8 has 5 blocks; lower the number"):
        taps_of(backbone, ("cls-6",))
    bare = ViT(
        ViTConfig.model_validate(
            {"size": None, "dim": 16, "depth": 2, "heads": 2, "image_size": 32, "class_token": False}
        )
    )
    with pytest.raises(ValueError, match="no class token: set pool to 'mean'"):
        pool(bare(torch.zeros(1, 3, 32, 32), taps=(0, 1)), "cls-2")
