"""models/timm_backbone.py: any timm model behind the Backbone interface."""

from typing import Any

import pytest
import timm
import torch

from mae_transfer.checkpoints import load_backbone
from mae_transfer.interfaces import Backbone
from mae_transfer.models.heads import Classifier, Probe, ProbeRow, pool, tokens
from mae_transfer.models.timm_backbone import TimmBackbone

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "beit_base_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "embed_dim": 16,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "window_size": 4,
    },
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "resnet18": {},
}
STRIDES = {"vit_tiny_patch16_224": (16,) * 3, "beit_base_patch16_224": (16,) * 3,
    "swin_tiny_patch4_window7_224": (4, 8),
           "convnext_atto": (4, 8, 16, 32), "resnet18": (2, 4, 8, 16, 32)}  # fmt: skip


def small(name: str, **options: bool) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(timm.create_model(name, num_classes=0, **SMALL[name]), **options)


@pytest.mark.parametrize("name", SMALL)
def test_maps_have_the_widths_and_strides_that_the_backbone_tells(name: str) -> None:
    backbone = small(name).eval()
    side = SMALL[name].get("img_size", 64)
    assert isinstance(backbone, Backbone)
    assert backbone.strides == STRIDES[name]
    assert (backbone.patch, backbone.dim) == (backbone.strides[0], backbone.channels[-1])
    features = backbone(torch.randn(2, 3, side, side), taps=range(len(backbone.strides)))
    assert [tuple(m.shape) for m in features.maps] == [
        (2, c, side // s, side // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert features.cls.shape == (2, backbone.dim)
    with pytest.raises(ValueError, match=r"taps \(99,\)"):
        backbone(torch.randn(2, 3, side, side), taps=(99,))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_its_layer(name: str) -> None:
    backbone = small(name)
    layers = {key: backbone.layer_of(key) for key, _ in backbone.named_parameters()}
    assert set(layers.values()) <= set(range(backbone.depth + 2))
    assert set(range(1, backbone.depth + 1)) <= set(layers.values())
    first = {
        "vit_tiny_patch16_224": "model.patch_embed.proj.weight",
        "resnet18": "model.conv1.weight",
        "convnext_atto": "model.stem.0.weight",
    }
    assert layers[first.get(name, "model.patch_embed.proj.weight")] == 0
    with pytest.raises(ValueError, match="not a parameter"):
        backbone.layer_of("model.blocks.7.attn.qkv.weight")


def test_layers_of_some_parameters_by_hand() -> None:
    swin, vit, convnext = small("swin_tiny_patch4_window7_224"), small("vit_tiny_patch16_224"), small("convnext_atto")
    assert (swin.depth, vit.depth, convnext.depth) == (2, 3, 4)
    assert swin.layer_of("model.layers.1.downsample.reduction.weight") == 2
    assert swin.layer_of("model.norm.weight") == 3
    assert vit.layer_of("model.blocks.2.mlp.fc1.weight") == 3
    assert vit.layer_of("model.norm.weight") == 4
    assert vit.layer_of("model.cls_token") == 0
    assert convnext.layer_of("model.stages.3.downsample.1.weight") == 4
    assert "model.cls_token" in vit.no_weight_decay()
    assert any("relative_position_bias_table" in key for key in swin.no_weight_decay())


@pytest.mark.parametrize("name", SMALL)
def test_without_class_token_and_norm_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = small(name, class_token=False, final_norm=False)
    side = SMALL[name].get("img_size", 64)
    features = backbone(torch.randn(2, 3, side, side), taps=range(len(backbone.strides)))
    assert features.cls is None
    sum(map_.square().sum() for map_ in features.maps).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_checkpointing_changes_nothing() -> None:
    backbone = small("vit_tiny_patch16_224")
    images = torch.randn(2, 3, 32, 32)
    before = backbone(images).maps[0]
    backbone.set_grad_checkpointing()
    torch.testing.assert_close(backbone(images).maps[0], before)


def test_a_model_without_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="no intermediate maps"):
        TimmBackbone(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("reference", "changes", "match"), [
    ("random:vit_tinny", {}, "no model 'vit_tinny'"), ("random:resnet18", {"heads": 3}, "heads cannot be changed"),
    ("random:ViT-X/16", {}, "ViT-{Ti,S,B,L,H}/PATCH"), ("random:ViT-B/x", {}, "PATCH"),
    ("random:ViT-B/16", {"depth": 2}, "depth cannot be changed"),
])  # fmt: skip
def test_random_backbones_that_nobody_knows_are_refused(reference: str, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_backbone(reference, changes=changes)


def test_random_backbones_follow_the_seed_and_the_changes() -> None:
    backbones = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        backbones.append(
            load_backbone("random:ViT-Ti/16", changes={"image_size": 32, "drop_path": 0.1, "class_token": False})
        )
    weights = [backbone.blocks[0].attn.qkv.weight for backbone in backbones]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (backbones[0].grid, backbones[0].leading, backbones[0].dim) == ((2, 2), 0, 192)
    swin = load_backbone("random:swin_tiny_patch4_window7_224", changes={"image_size": 56, "drop_path": 0.2})
    assert swin(torch.randn(1, 3, 56, 56)).maps[0].shape == (1, 768, 2, 2)


HEADED: dict[str, dict[str, Any]] = SMALL | {
    "hiera_tiny_224": {"img_size": (64, 64), "embed_dim": 16, "stages": (1, 1, 2, 1)},
    "cait_xxs24_224": {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.1},
    "vit_relpos_small_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "deit3_small_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "lcnet_035": {},
    "test_efficientnet": {}, "test_coatnet": {}, "test_nfnet": {}, "test_resnet": {}, "swiftformer_xs": {},
    "ese_vovnet19b_slim_dw": {},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADED)
@torch.no_grad()
def test_cls_is_what_the_model_s_own_head_reads(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **HEADED[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    side = HEADED[name].get("img_size", model.default_cfg["input_size"][-1] if "test_" in name else 64)
    images = torch.randn(1, 3, *((side, side) if isinstance(side, int) else side))
    classifier = model.get_classifier()
    read: list[torch.Tensor] = []
    first = classifier[0] if isinstance(classifier, tuple | list) else classifier
    handle = first.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(images)
    handle.remove()
    model.reset_classifier(0)
    backbone = TimmBackbone(model).eval()
    torch.testing.assert_close(backbone(images, norm=True).cls, read[0].flatten(1))
    assert backbone.cls_dim == read[0].flatten(1).shape[1]
    assert backbone(images, taps=(0,), norm=True).maps[0].shape[1] == backbone.channels[0]
    layers = {key: backbone.layer_of(key) for key, _ in backbone.named_parameters()}
    assert set(range(1, backbone.depth + 1)) <= set(layers.values())


def test_the_head_of_another_width_than_the_last_map_is_refused_before_it_is_built() -> None:
    backbone = TimmBackbone(timm.create_model("lcnet_035", num_classes=0))
    assert backbone.cls_dim != backbone.dim
    with pytest.raises(ValueError, match=r"lcnet_035 passes 1280 values to its classifier.*set pool to 'mean'"):
        Classifier(backbone, 5, how="cls")
    with pytest.raises(ValueError, match="set pool to 'mean'"):
        ProbeRow(backbone, 5, probes={"a": Probe("linear", "mean"), "b": Probe("linear", "cls")})
    assert Classifier(backbone, 5, how="mean")(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["coat_tiny", "hrnet_w18_small", "pit_ti_224", "rdnet_tiny"])
def test_a_model_without_maps_or_layers_is_one_error(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(ValueError, match=r"timm's \w+ has no (intermediate maps|layer groups)"):
        TimmBackbone(model)


def test_a_vector_that_the_classifier_would_not_take_is_refused() -> None:
    backbone = small("vit_tiny_patch16_224").eval()
    backbone.cls_dim = 31
    with pytest.raises(
        ValueError,
        match=r"timm's vit_tiny_patch16_224 returns \(32,\) but its classifier takes 31 values: pool the maps",
    ):
        backbone(torch.randn(1, 3, 32, 32), norm=True)


AVERAGED: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "vit_small_patch16_dinov3": {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2},
}


@pytest.mark.parametrize("name", AVERAGED)
@torch.no_grad()
def test_the_class_token_is_read_even_if_the_model_s_own_head_reads_a_mean(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(timm.create_model(name, num_classes=0, **AVERAGED[name])).eval()
    side = AVERAGED[name]["img_size"]
    images = torch.randn(2, 3, side, side)
    outputs = backbone.model.forward_intermediates(
        images, indices=[1, 2], norm=backbone.normalizes, return_prefix_tokens=True, intermediates_only=True
    )
    expected = [prefix[:, 0] for _, prefix in outputs]
    features = backbone(images, taps=(1, 2), norm=True)
    torch.testing.assert_close(pool(features, "cls"), expected[1])
    torch.testing.assert_close(pool(features, "cls-2"), torch.cat(expected, dim=1))
    torch.testing.assert_close(tokens(features, "all")[:, 0], expected[1])
    classifier = Classifier(backbone, 3, how="cls").eval()
    torch.testing.assert_close(classifier(images), classifier.head(features.cls))
    assert not torch.allclose(features.cls, expected[1])


@torch.no_grad()
def test_a_register_is_no_class_token() -> None:
    options = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    backbone = TimmBackbone(timm.create_model("vit_medium_patch16_reg4_gap_256", **options)).eval()
    with pytest.raises(ValueError, match=r"have no class token: set pool to 'cls' \(of probes: protocol.pools\)"):
        pool(backbone(torch.randn(1, 3, 32, 32), taps=(0, 1), norm=True), "cls-2")
