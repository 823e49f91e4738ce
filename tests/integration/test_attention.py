"""tools/visualize.py --attention: the weights of any backbone's attention, drawn beside its images."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mae_transfer import checkpoints
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.draw.reconstructions import HEADER
from mae_transfer.engine.dist import Dist
from mae_transfer.metrics.attention import Recorder, attention_entropy
from mae_transfer.models.vit import ViT, ViTConfig
from mae_transfer.tasks.attention import attention, draw_attention
from mae_transfer.tasks.evaluation import attention_figures


@torch.no_grad()
def test_the_maps_are_the_softmax_of_the_last_blocks_queries_and_keys() -> None:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=None, dim=16, depth=2, heads=2, patch=4, image_size=(8, 12))).eval()
    images = torch.randn(3, 3, 8, 12)
    tokens = vit.encode(vit.place(vit.patch_embed(images), (2, 3)), (2, 3), taps=(0,), norm=False)[0]
    layer = vit.blocks[1]
    q, k, _ = layer.attn.qkv(layer.norm1(tokens)).view(3, 7, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-2, -1) / 8**0.5).softmax(dim=-1)[:, :, 0, 1:].view(3, 2, 2, 3)
    torch.testing.assert_close(attention(vit, images, (2, 3)), expected)
    assert not torch.allclose(attention(vit, images, (2, 3), block=0), expected)


def test_timms_models_have_maps_too_and_the_order_of_their_attention_is_that_of_their_blocks() -> None:
    backbone = checkpoints.load_backbone("random:vit_tiny_patch16_224")
    maps = attention(backbone, torch.randn(1, 3, 224, 224), (14, 14))
    assert maps.shape == (1, 3, 14, 14)
    assert (
        (maps.sum(dim=(2, 3)) > 0.5) & (maps.sum(dim=(2, 3)) <= 1)
    ).all()  # the class token keeps the rest for itself


def test_a_backbone_without_global_attention_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="made 0 calls of torch's fused attention"):
        attention(checkpoints.load_backbone("random:resnet18"), torch.randn(1, 3, 64, 64), (4, 4))
    swin = checkpoints.load_backbone("random:swin_tiny_patch4_window7_224")
    with pytest.raises(ValueError, match="made 0 calls|attends within windows or pools"):
        attention(swin, torch.randn(1, 3, 224, 224), (56, 56))


@torch.no_grad()
def test_the_entropy_is_that_of_the_last_blocks_attention_among_patches() -> None:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(size=None, dim=16, depth=2, heads=2, patch=4, image_size=(8, 12))).eval()
    vit.blocks[1].attn.qkv.weight.mul_(4)  # attention that is far from uniform
    images = torch.randn(3, 3, 8, 12)
    with Recorder() as recorder:
        vit(images)
    among = recorder.weights[1][:, :, 1:, 1:]
    among = among / among.sum(dim=-1, keepdim=True)
    expected = -torch.xlogy(among, among).sum(dim=-1).mean(dim=(1, 2)) / math.log(6)
    found = attention_entropy(vit, images)
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert (found < 0.9).all()
    vit.blocks[1].attn.qkv.weight.mul_(100)  # nothing but the class token, for some patches
    assert (attention_entropy(vit, images) >= 0).all()
    vit.blocks[1].attn.qkv.weight.zero_()  # equal logits
    uniform = attention_entropy(vit, images)
    assert uniform is not None
    torch.testing.assert_close(uniform, torch.ones(3))


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_the_entropy_is_absent_without_attention_among_all_patches(name: str) -> None:
    backbone = checkpoints.load_backbone(f"random:{name}", changes={"image_size": 224})
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    figures = attention_figures(backbone, [images], IMAGENET, Dist(torch.device("cpu")))
    assert figures.keys() == ({"statistics_attention"} if name.startswith("vit") else set())


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_the_recorded_weights_are_those_that_torch_gives_the_values(mask: str) -> None:
    query, key = torch.randn(2, 2, 3, 5, 4).unbind()
    masks: dict[str, dict[str, Any]] = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": torch.eye(5, dtype=torch.bool) | (torch.rand(5, 5) > 0.5)},
        "float": {"attn_mask": torch.randn(5, 5), "scale": 0.3},
    }
    with Recorder() as recorder:
        each = F.scaled_dot_product_attention(query, key, torch.eye(5).expand(2, 3, 5, 5), **masks[mask])
    torch.testing.assert_close(recorder.weights[0], each)


def test_one_patch_has_no_entropy() -> None:
    vit = ViT(ViTConfig(size=None, dim=16, depth=1, heads=2, patch=4, image_size=4)).eval()
    assert attention_entropy(vit, torch.randn(2, 3, 4, 4)) is None


def test_a_sheet_holds_image_mean_and_heads(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (80, 60), (index * 80, 90, 40)).save(tmp_path / f"{index}.png")
    path = draw_attention("random:ViT-Ti/16", tmp_path, out=tmp_path / "out", most=2, size=64)
    width, height = Image.open(path).size
    # image, mean, 3 heads; 64 px enlarged to 128
    assert (width, height) == (5 * 128 + 6 * 4, HEADER + 2 * 128 + 3 * 4)
