"""Adapters: layers against formulas, strides for any patch, hierarchical backbones, gradients, and detection."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from mae_transfer.adapters import (
    AdaptedBackbone,
    AdapterConfig,
    AnyAdapter,
    SimpleFPNConfig,
    TapFPNConfig,
)
from mae_transfer.adapters.detectron2 import ABSENT, to_detectron2
from mae_transfer.config import members
from mae_transfer.interfaces import Adapter, Features, Maps
from mae_transfer.models.timm_backbone import TimmBackbone
from mae_transfer.models.vit import ViT, ViTConfig

DIM = 32
PLAIN = Maps((DIM,) * 4, (16,) * 4)


def features(*grids: tuple[int, int], widths: tuple[int, ...] = (DIM,) * 4) -> Features:
    return Features(tuple(torch.randn(2, width, *grid) for width, grid in zip(widths, grids, strict=True)), None)


def dense_vit(**options: object) -> ViT:
    defaults = {
        "size": None,
        "dim": DIM,
        "depth": 4,
        "heads": 2,
        "patch": 16,
        "image_size": 64,
        "class_token": False,
        "final_norm": False,
    }
    return ViT(ViTConfig.model_validate(defaults | options))


def up(x: Tensor, conv: nn.Module) -> Tensor:
    """A transposed 2x2 convolution of stride 2, written out: each pixel becomes a 2x2 block."""
    b, _, h, w = x.shape
    blocks = torch.einsum("bchw,cdij->bdhiwj", x, conv.weight)
    return blocks.reshape(b, -1, 2 * h, 2 * w) + conv.bias[:, None, None]


def normalized(x: Tensor, norm: nn.Module, groups: int | None) -> Tensor:
    """Over groups of channels and the image (GroupNorm), or over the channels of each pixel (None)."""
    if groups is None:
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    else:
        parts, each = x.reshape(len(x), groups, -1), x.shape[1] // groups
        mean, var = (
            s.repeat_interleave(each, 1)[..., None]
            for s in (parts.mean(2, True), parts.var(2, unbiased=False, keepdim=True))
        )
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def pooled(x: Tensor) -> Tensor:
    h, w = (side // 2 * 2 for side in x.shape[2:])
    return torch.stack([x[..., i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]).amax(0)


def randomize(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize(("norm", "groups"), [("group", 32), ("layer", None)])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@torch.no_grad()
def test_the_taps_are_scaled_by_the_published_layers(grid: tuple[int, int], norm: str, groups: int | None) -> None:
    adapter = TapFPNConfig(norm=norm, fpn=None).build(PLAIN)
    randomize(adapter)
    given = features(*(grid,) * 4)
    a, b, c, d = given.maps
    first, between, _, second = adapter.scale[0]
    expected = [up(F.gelu(normalized(up(a, first), between, groups)), second), up(b, adapter.scale[1][0]), c, pooled(d)]
    pyramid = adapter(given)
    assert list(pyramid) == list(adapter.strides) == ["p2", "p3", "p4", "p5"]
    for mine, theirs in zip(pyramid.values(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@torch.no_grad()
def test_the_fpn_adds_the_coarser_map_to_each_lateral_one(grid: tuple[int, int]) -> None:
    adapter = TapFPNConfig(fpn=8, fpn_norm="layer", p6=True).build(PLAIN)
    randomize(adapter)
    given = features(*(grid,) * 4)
    scaled = [scale(x) for scale, x in zip(adapter.scale, given.maps, strict=True)]
    pyramid, above = adapter(given), None
    for level in (3, 2, 1, 0):
        (lateral, lateral_norm), (output, output_norm) = (
            adapter.fpn.inner_blocks[level],
            adapter.fpn.layer_blocks[level],
        )
        assert lateral.bias is None
        inner = normalized(torch.einsum("bchw,dc->bdhw", scaled[level], lateral.weight[..., 0, 0]), lateral_norm, None)
        if above is not None:
            h, w = inner.shape[2:]
            rows, columns = torch.arange(h) * above.shape[2] // h, torch.arange(w) * above.shape[3] // w
            inner = inner + above[:, :, rows][..., columns]
        above = inner
        expected = normalized(F.conv2d(inner, output.weight, padding=1), output_norm, None)
        torch.testing.assert_close(pyramid[f"p{level + 2}"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(pyramid["p6"], pyramid["p5"][..., ::2, ::2])
    assert adapter.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@torch.no_grad()
def test_the_simple_pyramid_is_its_formula(grid: tuple[int, int]) -> None:
    adapter = SimpleFPNConfig(channels=8).build(PLAIN)
    randomize(adapter)
    given = Features((torch.randn(2, DIM, *grid),), None)
    x, scaled = given.maps[0], []
    first, between, _, second, *_ = adapter.levels[0]
    scaled = [up(F.gelu(normalized(up(x, first), between, None)), second), up(x, adapter.levels[1][0]), x, pooled(x)]
    assert [s.shape[1] for s in scaled] == [DIM // 4, DIM // 2, DIM, DIM]
    for (name, mine), theirs, level in zip(adapter(given).items(), scaled, adapter.levels, strict=False):
        one, one_norm, three, three_norm = level[-4:]
        assert one.bias is None
        assert three.bias is None
        narrow = normalized(torch.einsum("bchw,dc->bdhw", theirs, one.weight[..., 0, 0]), one_norm, None)
        expected = normalized(F.conv2d(narrow, three.weight, padding=1), three_norm, None)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["tap_fpn", "simple_fpn"])
@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_strides_are_4_to_32_whatever_the_patch(patch: int, name: str) -> None:
    vit = dense_vit(patch=patch)
    adapter = members(AnyAdapter)[name](norm="layer").build(vit.maps())
    assert isinstance(adapter, Adapter)
    pyramid = AdaptedBackbone(vit, adapter)(torch.randn(1, 3, 64, 128))
    assert {name: tuple(x.shape[2:]) for name, x in pyramid.items()} == {
        n: (64 // s, 128 // s) for n, s in adapter.strides.items() if s <= 64
    }
    assert all(x.shape[1] == 256 for x in pyramid.values())


def test_a_patch_of_14_is_scaled_relative_to_it_or_refused() -> None:
    vit = dense_vit(patch=14, image_size=56)
    maps = vit.maps()
    for cfg in (TapFPNConfig(), SimpleFPNConfig()):
        with pytest.raises(ValueError, match="'patch': 16.*scales='relative'"):
            cfg.build(maps)
    adapter = TapFPNConfig(scales="relative", fpn=None).build(maps)
    pyramid = AdaptedBackbone(vit, adapter)(torch.randn(1, 3, 56, 84))
    assert [tuple(x.shape[1:]) for x in pyramid.values()] == [(DIM, 16, 24), (DIM, 8, 12), (DIM, 4, 6), (DIM, 2, 3)]
    assert adapter.strides == {"p2": 3.5, "p3": 7, "p4": 14, "p5": 28}


@pytest.mark.parametrize("options", [{}, {"scales": "relative"}])
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_a_hierarchical_backbone_goes_to_the_fpn_as_it_is(name: str, options: dict[str, Any]) -> None:
    timm_options: dict[str, Any] = (
        {"img_size": 64, "embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)} if "swin" in name else {}
    )
    backbone = TimmBackbone(timm.create_model(name, num_classes=0, **timm_options), final_norm=False).eval()
    adapter = TapFPNConfig(fpn=16, **options).build(backbone.maps())
    assert not list(adapter.scale.parameters())
    pyramid = AdaptedBackbone(backbone, adapter)(torch.randn(1, 3, 64, 64))
    assert {n: tuple(x.shape[1:]) for n, x in pyramid.items()} == {
        "p2": (16, 16, 16),
        "p3": (16, 8, 8),
        "p4": (16, 4, 4),
        "p5": (16, 2, 2),
    }
    with pytest.raises(ValueError, match="use tap_fpn"):
        SimpleFPNConfig().build(backbone.maps())


@pytest.mark.parametrize(("cfg", "depth"), [
    (TapFPNConfig(fpn=16), 4), (TapFPNConfig(fpn=16, p6=True, fpn_norm="layer"), 6),
    (SimpleFPNConfig(channels=16), 3),
    (TapFPNConfig(taps=(0, 1, 3, 4), norm="batch", fpn=None), 5),
])  # fmt: skip
@pytest.mark.parametrize(
    "options", [{}, {"windows": 3, "global_blocks": (1,), "relative_positions": "decomposed", "positions": "learned"}]
)
def test_every_trainable_parameter_of_a_dense_model_has_a_gradient(
    cfg: AdapterConfig, depth: int, options: dict[str, Any]
) -> None:
    vit = dense_vit(depth=depth, **options)
    model = AdaptedBackbone(vit, cfg.build(vit.maps()))
    randomize(model)
    pyramid = model(torch.randn(2, 3, 96, 64))
    sum(x.square().mean() for x in pyramid.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_default_taps_are_the_quarters_of_the_depth() -> None:
    assert TapFPNConfig().build(Maps((DIM,) * 12, (16,) * 12)).taps == (2, 5, 8, 11)
    assert TapFPNConfig().build(Maps((DIM,) * 24, (16,) * 24)).taps == (5, 11, 17, 23)
    assert TapFPNConfig(taps=(3, 5, 7, 11)).build(Maps((DIM,) * 12, (16,) * 12)).taps == (3, 5, 7, 11)


@pytest.mark.parametrize(("options", "match"), [
    ({"taps": (0, 1, 2)}, "include the last one"), ({"taps": (0, 1, 3)}, "needs 4 maps"),
    ({"taps": (1, 0, 2, 3)}, "rising order"),
    ({"fpn": None, "p6": True}, "set the FPN's channels"),
])  # fmt: skip
def test_taps_that_make_no_pyramid_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TapFPNConfig(**options).build(PLAIN)
    with pytest.raises(ValueError, match="48 channels"):
        TapFPNConfig().build(Maps((48,) * 4, (16,) * 4))


def test_layers_and_weight_decay_follow_the_backbone() -> None:
    vit = dense_vit(positions="learned")
    model = AdaptedBackbone(vit, SimpleFPNConfig(channels=8).build(vit.maps()))
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert set(layers.values()) == {0, 1, 2, 3, 4, 5}
    assert layers["adapter.levels.0.0.weight"] == 5
    with pytest.raises(ValueError, match=r"'head.weight'"):
        model.layer_of("head.weight")


def test_torchvision_s_mask_r_cnn_trains_on_it() -> None:
    vit = dense_vit(patch=8)
    pyramid = AdaptedBackbone(vit, SimpleFPNConfig(p6=True).build(vit.maps()))
    anchors = AnchorGenerator(tuple((size,) for size in (8, 16, 32, 64, 128)), ((1.0,),) * 5)
    boxes, masks = (
        MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], output_size=size, sampling_ratio=0) for size in (7, 14)
    )
    model = MaskRCNN(
        pyramid, 2, min_size=64, max_size=64, rpn_anchor_generator=anchors, box_roi_pool=boxes, mask_roi_pool=masks
    )
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 48, dtype=torch.uint8),
    }
    sum(model([torch.rand(3, 64, 48)], [target]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_without_detectron2_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "detectron2", None)
    monkeypatch.setitem(__import__("sys").modules, "detectron2.layers", None)
    vit = dense_vit()
    with pytest.raises(ValueError, match="no-build-isolation") as error:
        to_detectron2(AdaptedBackbone(vit, TapFPNConfig().build(vit.maps())))
    assert str(error.value) == ABSENT
