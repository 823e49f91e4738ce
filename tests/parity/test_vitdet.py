"""Encoder and simple pyramid equal detectron2's ViTDet with copied weights, where detectron2 is installed."""

from types import ModuleType

import pytest
import torch
from torch import nn

from mae_transfer.adapters import AdaptedBackbone, SimpleFPNConfig, TapFPNConfig
from mae_transfer.adapters.detectron2 import to_detectron2
from mae_transfer.checkpoints.export import to_vitdet
from mae_transfer.models.vit import ViT, ViTConfig

pytestmark = [pytest.mark.detectron2, pytest.mark.filterwarnings("ignore")]  # detectron2's own imports warn

DIM, DEPTH, HEADS, PATCH, PRETRAINED, WINDOW = 32, 4, 4, 4, 32, 3


def encoder(image_size: int, *, relative: bool) -> ViT:
    cfg = ViTConfig(
        size=None, dim=DIM, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=image_size, class_token=False,
        final_norm=False, positions="learned",
        relative_positions="decomposed" if relative else "none", windows=WINDOW, global_blocks=(1, 3), antialias=False,
    )  # fmt: skip
    return ViT(cfg).eval()


def randomize(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("image", [(32, 32), (48, 48), (24, 40), (52, 36)])
@torch.no_grad()
def test_the_encoder_equals_detectron2_s(image: tuple[int, int], relative: bool, detectron2: ModuleType) -> None:
    theirs = detectron2.backbone.vit.ViT(
        img_size=PRETRAINED, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, use_rel_pos=relative,
        window_size=WINDOW,
        window_block_indexes=(0, 2), pretrain_img_size=PRETRAINED, pretrain_use_cls_token=False,
        norm_layer=lambda d: nn.LayerNorm(d, eps=1e-6),
    ).eval()  # fmt: skip
    ours = encoder(PRETRAINED, relative=relative)
    randomize(ours)
    theirs.load_state_dict(
        {name.removeprefix("backbone.net."): tensor for name, tensor in to_vitdet(ours).items()}
    )  # strict
    images = torch.randn(2, 3, *image)
    torch.testing.assert_close(ours(images).maps[0], theirs(images)["last_feat"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image", [(64, 64), (96, 160)])
@torch.no_grad()
def test_encoder_and_simple_pyramid_through_the_bridge_equal_detectron2_s(
    image: tuple[int, int], detectron2: ModuleType
) -> None:
    options = {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "use_rel_pos": True,
        "pretrain_img_size": 64,
    }
    net = detectron2.backbone.vit.ViT(
        **options,
        window_size=WINDOW,
        window_block_indexes=(0, 2),
        pretrain_use_cls_token=False,
        norm_layer=lambda d: nn.LayerNorm(d, eps=1e-6),
    )
    theirs = detectron2.backbone.vit.SimpleFeaturePyramid(
        net=net, in_feature="last_feat", out_channels=8, scale_factors=(4.0, 2.0, 1.0, 0.5), norm="LN", square_pad=64,
        top_block=detectron2.backbone.fpn.LastLevelMaxPool(),
    ).eval()  # fmt: skip
    randomize(theirs)
    vit = ViT(encoder(64, relative=True).cfg.model_copy(update={"patch": 16}))
    ours = to_detectron2(AdaptedBackbone(vit, SimpleFPNConfig(channels=8).build(vit.maps())), square=64).eval()
    vit.load_state_dict(net.state_dict())
    for level in range(4):
        mine, their = ours.pyramid.adapter.levels[level], theirs.stages[level]
        assert [p.shape for p in mine.parameters()] == [
            p.shape for p in their.parameters()
        ]  # both in the order of their use
        for a, b in zip(mine.parameters(), their.parameters(), strict=True):
            a.copy_(b)
    images = torch.randn(2, 3, *image)
    pyramid, expected = ours(images), theirs(images)
    assert ours.output_shape() == theirs.output_shape()
    assert (ours.size_divisibility, ours.padding_constraints["square_size"]) == (32, 64)
    assert list(pyramid) == list(expected)
    for name in expected:
        torch.testing.assert_close(pyramid[name], expected[name], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_fpn_equals_detectron2_s(detectron2: ModuleType) -> None:
    vit = ViT(encoder(64, relative=False).cfg.model_copy(update={"patch": 16}))
    adapter = TapFPNConfig(norm="layer", fpn=8, fpn_norm="layer").build(vit.maps()).eval()
    randomize(vit)
    randomize(adapter)
    bottom = to_detectron2(
        AdaptedBackbone(vit, TapFPNConfig(norm="layer", fpn=None).build(vit.maps()))
    ).eval()  # the scaled taps alone
    bottom.pyramid.adapter.scale.load_state_dict(adapter.scale.state_dict())
    theirs = detectron2.backbone.FPN(bottom, ["p2", "p3", "p4", "p5"], 8, norm="LN").eval()
    for level in range(4):
        for mine, their in (
            (adapter.fpn.inner_blocks, f"fpn_lateral{level + 2}"),
            (adapter.fpn.layer_blocks, f"fpn_output{level + 2}"),
        ):
            for a, b in zip(getattr(theirs, their).parameters(), mine[level].parameters(), strict=True):
                a.copy_(b)
    images = torch.randn(1, 3, 64, 96)
    expected = theirs(images)
    for name, mine in adapter(vit(images, taps=adapter.taps)).items():
        torch.testing.assert_close(mine, expected[name], rtol=1e-5, atol=1e-5)
