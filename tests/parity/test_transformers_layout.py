"""The hf layout against transformers: files that it writes and reads; exports with timm's and detectron2's names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from mae_transfer import checkpoints
from mae_transfer.checkpoints.export import FORMATS, to_timm, to_vitdet
from mae_transfer.models import vit

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 48, "patch_size": 16}
MLP = SHAPE | {"intermediate_size": 96}
BIASED = {"use_mean_pooling": False, "use_absolute_position_embeddings": False}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

MODELS = {
    "ViT": lambda: ViTModel(ViTConfig(**MLP)),
    "ViT without pooler": lambda: ViTModel(ViTConfig(**MLP), add_pooling_layer=False),
    "DINOv2": lambda: Dinov2Model(Dinov2Config(**SHAPE)),
    "BEiT, shared table": lambda: BeitModel(BeitConfig(**MLP, **BIASED, use_shared_relative_position_bias=True)),
    "BEiT, a table per block": lambda: BeitModel(BeitConfig(**MLP, **BIASED, use_relative_position_bias=True)),
}


def randomize(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def tokens(model: Any, images: torch.Tensor) -> torch.Tensor:
    return model(images).last_hidden_state


def ours(backbone: Any, images: torch.Tensor) -> torch.Tensor:
    features = backbone(images, norm=True)
    return torch.cat([features.cls[:, None], features.maps[0].flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_saved_model_gives_its_features_and_comes_back_through_our_export(name: str, tmp_path: Path) -> None:
    theirs = randomize(MODELS[name]())
    theirs.save_pretrained(tmp_path / "in")
    backbone = checkpoints.load_backbone(f"hf:{tmp_path / 'in'}")
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(backbone, images), tokens(theirs, images), **CLOSE)
    FORMATS["hf"](tmp_path / "out", backbone, {})
    again = AutoModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(tokens(again, images), tokens(theirs, images), **CLOSE)
    same = checkpoints.load_backbone(f"hf:{tmp_path / 'out' / 'model.safetensors'}")
    assert all(torch.equal(tensor, same.state_dict()[key]) for key, tensor in backbone.state_dict().items())


@torch.no_grad()
def test_vit_mae_is_read_without_its_decoder(tmp_path: Path) -> None:
    theirs = randomize(
        ViTMAEForPreTraining(
            ViTMAEConfig(
                **MLP,
                decoder_num_hidden_layers=1,
                decoder_hidden_size=32,
                decoder_num_attention_heads=4,
                mask_ratio=0.0,
            )
        )
    )
    theirs.save_pretrained(tmp_path)
    backbone = checkpoints.load_backbone(f"hf:{tmp_path}")
    images = torch.randn(2, 3, 48, 48)
    in_order = theirs.vit(images, noise=torch.arange(9.0).expand(2, 9)).last_hidden_state
    torch.testing.assert_close(ours(backbone, images), in_order, **CLOSE)
    assert not backbone.pos_embed.requires_grad


@torch.no_grad()
def test_classifiers_hand_their_heads_back(tmp_path: Path) -> None:
    beit = randomize(BeitForImageClassification(BeitConfig(**MLP, use_relative_position_bias=True, num_labels=5)))
    beit.save_pretrained(tmp_path / "beit")
    loaded = checkpoints.load(f"hf:{tmp_path / 'beit'}")
    images = torch.randn(2, 3, 48, 48)
    pooled = loaded.backbone(images).maps[0].mean((2, 3))
    normed = nn.functional.layer_norm(
        pooled, (32,), loaded.head["fc_norm.weight"], loaded.head["fc_norm.bias"], eps=1e-12
    )
    logits = nn.functional.linear(normed, loaded.head["head.weight"], loaded.head["head.bias"])
    torch.testing.assert_close(logits, beit(images).logits, **CLOSE)
    vit = randomize(ViTForImageClassification(ViTConfig(**MLP, num_labels=5)))
    vit.save_pretrained(tmp_path / "vit")
    loaded = checkpoints.load(f"hf:{tmp_path / 'vit'}")
    logits = nn.functional.linear(
        loaded.backbone(images, norm=True).cls, loaded.head["head.weight"], loaded.head["head.bias"]
    )
    torch.testing.assert_close(logits, vit(images).logits, **CLOSE)


@pytest.mark.parametrize("value", [None, "4", 0, float("nan"), float("inf"), [4]])
def test_a_width_of_the_mlp_that_is_no_number_is_refused_by_its_name(value: Any, tmp_path: Path) -> None:
    randomize(MODELS["DINOv2"]()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mlp_ratio": value}))
    with pytest.raises(ValueError, match=r"config\.json has mlp_ratio="):
        checkpoints.load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize(("change", "match"), [
    ({"model_type": "swin"}, "describes a 'swin'"), ({"model_type": ["vit"]}, r"describes a \['vit'\]"),
    ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'"), (None, "not JSON"),
    ({"num_attention_heads": 5}, "heads = 5 does not divide dim"),
    ({"num_hidden_layers": 3}, "missing: blocks.2.norm1.weight"),
])  # fmt: skip
def test_a_config_that_is_not_ours_is_refused(change: dict[str, Any] | None, match: str, tmp_path: Path) -> None:
    randomize(MODELS["ViT"]()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=match):
        checkpoints.load_backbone(f"hf:{tmp_path}")


def encoder(**options: Any) -> vit.ViT:
    return randomize(
        vit.ViT(
            vit.ViTConfig.model_validate({"size": None, "dim": 32, "depth": 2, "heads": 4, "image_size": 48} | options)
        )
    )


BEIT = {"positions": "none", "qkv_bias": "qv", "layer_scale": 1.0}


@pytest.mark.parametrize(
    "options",
    [{}, {"layer_scale": 0.1}, BEIT | {"relative_positions": "shared"}, BEIT | {"relative_positions": "per_block"}],
)
@torch.no_grad()
def test_timm_s_names_fill_timm_s_model_and_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    backbone = encoder(**options)
    FORMATS["timm"](tmp_path / "x.safetensors", backbone, {})
    shape = {
        "img_size": 48,
        "patch_size": 16,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 0,
        "init_values": options.get("layer_scale"),
    }
    if "qkv_bias" in options:
        shared = options["relative_positions"] == "shared"
        tables = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
        theirs = timm.create_model("beit_base_patch16_224", global_pool="token", **shape, **tables)
    else:
        theirs = timm.create_model("vit_tiny_patch16_224", **shape)
    theirs.load_state_dict(checkpoints.read(tmp_path / "x.safetensors"))
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(backbone, images), theirs.eval().forward_features(images), **CLOSE)
    prefix = "beit" if "qkv_bias" in options else "deit"
    again = checkpoints.load_backbone(f"{prefix}:{tmp_path / 'x.safetensors'}", changes={"heads": 4})
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in backbone.state_dict().items())


def test_detectron2_gets_vitdet_s_names_and_they_come_back(tmp_path: Path) -> None:
    backbone = encoder()
    FORMATS["detectron2"](tmp_path / "x.pth", backbone, {"reference": "x"})
    written = checkpoints.read(tmp_path / "x.pth")["model"]
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = {
        f"backbone.net.blocks.{i}.{part}.{kind}" for i in range(2) for part in block for kind in ("weight", "bias")
    }
    assert set(written) == blocks | {
        f"backbone.net.{name}" for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    assert written["backbone.net.pos_embed"].shape == (1, 10, 32)
    assert all(
        torch.equal(tensor, backbone.state_dict()[name.removeprefix("backbone.net.")])
        for name, tensor in written.items()
    )


@pytest.mark.parametrize("options", [{"layer_scale": 0.1}, {"relative_positions": "shared"}, {"positions": "none"}])
def test_what_detectron2_would_drop_in_silence_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot hold this encoder"):
        to_vitdet(encoder(**options))


def test_a_timm_model_goes_out_in_timm_s_names_only(tmp_path: Path) -> None:
    backbone = checkpoints.load_backbone("random:convnext_atto")
    assert to_timm(backbone).keys() == timm.create_model("convnext_atto", num_classes=0).state_dict().keys()
    for name in ("ours", "hf", "detectron2"):
        with pytest.raises(ValueError, match="use --format timm"):
            FORMATS[name](tmp_path / "x", backbone, {})
    with pytest.raises(ValueError, match="timm has no model"):
        to_timm(encoder(relative_positions="shared"))
    with pytest.raises(ValueError, match="transformers has no model"):
        FORMATS["hf"](tmp_path / "x", encoder(class_token=False), {})


def test_files_of_older_releases_and_their_image_processor_are_read(tmp_path: Path) -> None:
    """pytorch_model.bin, with the index buffers that BEiT's older files hold; the processor tells the normalisation."""
    theirs = randomize(MODELS["BEiT, a table per block"]())
    theirs.save_pretrained(tmp_path)
    tensors = checkpoints.read(tmp_path / "model.safetensors")
    buffers = {
        f"{name.removesuffix('_bias_table')}_index": torch.zeros(10, 10)
        for name in tensors
        if name.endswith("_bias_table")
    }
    assert len(buffers) == 2
    (tmp_path / "model.safetensors").unlink()
    torch.save({f"beit.{name}": tensor for name, tensor in (tensors | buffers).items()}, tmp_path / "pytorch_model.bin")
    loaded = checkpoints.load(f"hf:{tmp_path}")
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(loaded.backbone, images), tokens(theirs, images), **CLOSE)
    assert loaded.statistics.mean == (0.5, 0.5, 0.5)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]})
    )
    assert checkpoints.load(f"hf:{tmp_path}").statistics.mean == (0.1, 0.2, 0.3)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no image_mean"):
        checkpoints.load(f"hf:{tmp_path}")
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        checkpoints.load(f"hf:{tmp_path}")


def test_an_encoder_of_images_that_are_not_square_goes_out_and_comes_back(tmp_path: Path) -> None:
    """BEiT and DINOv2 are refused: transformers swaps the sides of BEiT's tables and assumes square DINOv2 grids."""
    torch.manual_seed(0)
    shape = {
        "size": None,
        "dim": 32,
        "depth": 2,
        "heads": 4,
        "patch": 8,
        "image_size": (32, 48),
        "positions": "learned",
    }
    ours = vit.ViT(vit.ViTConfig.model_validate(shape)).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    FORMATS["hf"](tmp_path, ours, {})
    images = torch.randn(2, 3, 32, 48)
    expected, found = AutoModel.from_pretrained(tmp_path).eval()(images).last_hidden_state, ours(images, norm=True)
    torch.testing.assert_close(found.maps[0].flatten(2).transpose(1, 2), expected[:, 1:], rtol=1e-4, atol=1e-4)
    again = checkpoints.load_backbone(f"hf:{tmp_path}")
    assert again.cfg.grid() == (4, 6)
    torch.testing.assert_close(again(images, norm=True).maps[0], found.maps[0], rtol=1e-5, atol=1e-5)
    for options in (
        {"layer_scale": 0.1},
        {"positions": "none", "relative_positions": "shared", "qkv_bias": "qv", "layer_scale": 0.1},
    ):
        with pytest.raises(ValueError, match="transformers has no model with this architecture"):
            FORMATS["hf"](tmp_path, vit.ViT(vit.ViTConfig.model_validate(shape | options)), {})


def as_dinov2(tensors: dict[str, torch.Tensor], chunk: str) -> dict[str, torch.Tensor]:
    """Tensors of transformers' file under the names of DINOv2's releases."""
    rules = (
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"), (r"^embeddings\.", ""), (r"^layernorm\.", "norm."),
        (r"^encoder\.layer\.", f"blocks.{chunk}"), (r"attention\.output\.dense", "attn.proj"),
        (r"layer_scale([12])\.lambda1", r"ls\1.gamma"), (r"weights_in", "w12"), (r"weights_out", "w3"),
    )  # fmt: skip
    named = {}
    for name, tensor in tensors.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        named[name] = tensor
    queries = [name for name in named if ".attention.attention.query." in name]
    for query in queries:
        parts = [named.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        named[query.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return named


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("chunk", ["", "0."])
@torch.no_grad()
def test_dinov2_with_registers_loads_through_timm(swiglu: bool, chunk: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    theirs = randomize(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, use_swiglu_ffn=swiglu)))
    theirs.save_pretrained(tmp_path)
    torch.save(as_dinov2(load_file(tmp_path / "model.safetensors"), chunk), tmp_path / "x.pth")
    backbone = checkpoints.load_backbone(f"dinov2:{tmp_path / 'x.pth'}")
    images = torch.randn(2, 3, 70, 70)
    features, expected = backbone(images, norm=True), tokens(theirs, images)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(features.cls / scale, expected[:, 0] / scale, **CLOSE)
    patches = features.maps[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches / scale, expected[:, 5:] / scale, **CLOSE)
