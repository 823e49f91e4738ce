"""Every layout: random weights, saved by an independent implementation and loaded here, give the same features.

If timm or transformers implement the layout, they write the file. For other layouts, the key map from timm's names is
written by hand, from the descriptions of the released files.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from mae_transfer import checkpoints
from mae_transfer.core.positions import sincos_2d

DIM, DEPTH, HEADS, PATCH, SIZE = 32, 2, 4, 16, 64
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
State = dict[str, Tensor]


def randomize(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def vit(**options: Any) -> Any:
    defaults = {
        "img_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 0,
    }
    return randomize(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **(defaults | options)))


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noise(*names: str) -> State:
    return {name: torch.randn(3) for name in names}


def mae(path: Path, state: State) -> Path:
    return save(path, {"model": state, "epoch": 1600, "args": argparse.Namespace(lr=1e-3)})


def mae_full(path: Path, state: State) -> Path:
    decoder = (
        "mask_token",
        "decoder_embed.weight",
        "decoder_pos_embed",
        "decoder_blocks.0.norm1.weight",
        "decoder_norm.bias",
        "decoder_pred.bias",
    )
    return save(path, {"model": state | noise(*decoder)})


def moco(path: Path, state: State) -> Path:
    other = noise("module.momentum_encoder.cls_token", "module.predictor.0.weight", "module.base_encoder.head.0.weight")
    return save(
        path,
        {
            "epoch": 300,
            "arch": "vit_small",
            "state_dict": prefixed(state, "module.base_encoder.") | other,
            "optimizer": {},
        },
    )


def dino_flat(path: Path, state: State) -> Path:
    return save(path, state)


def dino_full(path: Path, state: State) -> Path:
    student = prefixed(state, "module.backbone.") | noise("module.head.mlp.0.weight")
    teacher = prefixed(state, "backbone.") | noise(
        "head.mlp.0.weight", "head.last_layer.weight_g", "head.last_layer.weight_v"
    )
    return save(
        path,
        {
            "student": {name: -tensor for name, tensor in student.items()},
            "teacher": teacher,
            "epoch": 100,
            "args": argparse.Namespace(),
        },
    )


def ibot(path: Path, state: State) -> Path:
    return save(path, {"state_dict": state | noise("masked_embed")})


def ibot_full(path: Path, state: State) -> Path:
    return save(
        path,
        {
            "teacher": prefixed(state, "module.backbone.")
            | noise("module.backbone.masked_embed", "module.head.last_layer.weight_g")
        },
    )


def deit(path: Path, state: State) -> Path:
    return save(path, {"model": state | {"head.weight": torch.randn(5, DIM), "head.bias": torch.randn(5)}})


def mmpretrain(path: Path, state: State) -> Path:
    """mmpretrain's VisionTransformer: ln1, ln2, ffn.layers.0.0, ffn.layers.1, patch_embed.projection, a final ln1."""
    rules = {
        "patch_embed.proj.": "patch_embed.projection.", "blocks.": "layers.", ".norm1.": ".ln1.", ".norm2.": ".ln2.",
        "mlp.fc1.": "ffn.layers.0.0.",
        "mlp.fc2.": "ffn.layers.1.",
    }  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in rules.items():
            name = name.replace(ours, theirs)
        renamed["backbone." + re.sub(r"^norm\.", "ln1.", name)] = tensor
    return save(
        path,
        {
            "meta": {},
            "state_dict": renamed | noise("neck.mask_token", "neck.decoder_pred.bias", "data_preprocessor.mean"),
        },
    )


def augreg(path: Path, state: State) -> Path:
    """Flax names and shapes, as the .npz files of Google's vision_transformer have them."""
    head = DIM // HEADS
    arrays = {
        "cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"], "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": torch.randn(DIM, 5), "head/bias": torch.randn(5), "pre_logits/kernel": torch.randn(DIM, DIM),
    }  # fmt: skip
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for number, norm in ((0, "norm1"), (2, "norm2")):
            arrays |= {
                f"{theirs}LayerNorm_{number}/{a}": state[f"{ours}{norm}.{b}"]
                for a, b in (("scale", "weight"), ("bias", "bias"))
            }
        for number in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}mlp.fc{number + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}mlp.fc{number + 1}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{ours}attn.qkv.weight"].chunk(3),
            state[f"{ours}attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            arrays[f"{attention}{part}/kernel"], arrays[f"{attention}{part}/bias"] = (
                weight.T.reshape(DIM, HEADS, head),
                bias.reshape(HEADS, head),
            )
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(HEADS, head, DIM)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
    path = path.with_suffix(".npz")
    np.savez(path, **{name: array.contiguous().numpy() for name, array in arrays.items()})
    return path


PLAIN: dict[str, tuple[str, Callable[[Path, State], Path]]] = {
    "mae": ("mae", mae), "mae-full": ("mae-full", mae_full), "moco-v3": ("moco-v3", moco),
    "dino, backbone": ("dino", dino_flat),
    "dino, full": ("dino", dino_full), "ibot, extracted": ("ibot", ibot), "ibot, full": ("ibot", ibot_full),
    "deit": ("deit", deit),
    "timm's file as deit": ("deit", dino_flat), "mmpretrain": ("mmpretrain", mmpretrain), "augreg": ("augreg", augreg),
    "mae-finetuned, class token": ("mae-finetuned", deit),
}  # fmt: skip


def compare(backbone: Any, tokens: Tensor, images: Tensor) -> None:
    """Features after the final norm against tokens (B, 1 + N, D)."""
    features = backbone(images, norm=True)
    scale = max(1.0, float(tokens.abs().max()))  # tokens that no norm has seen are in the tens
    torch.testing.assert_close(features.maps[0].flatten(2).transpose(1, 2) / scale, tokens[:, 1:] / scale, **CLOSE)
    torch.testing.assert_close(features.cls / scale, tokens[:, 0] / scale, **CLOSE)


@pytest.mark.parametrize("case", PLAIN)
@torch.no_grad()
def test_plain_vits_give_timm_s_features(case: str, tmp_path: Path) -> None:
    prefix, write = PLAIN[case]
    theirs = vit()
    reference = f"{prefix}:{write(tmp_path / 'x.pth', theirs.state_dict())}"
    ours = checkpoints.load_backbone(reference, changes={"heads": HEADS})
    assert not ours.training
    for size in (SIZE, 96):
        images = torch.randn(2, 3, size, size)
        compare(ours, theirs.forward_features(images), images)
    larger = checkpoints.load_backbone(reference, changes={"heads": HEADS, "image_size": 96})
    assert larger.grid == (6, 6)
    compare(larger, theirs.forward_features(images), images)


@pytest.mark.parametrize("size", ["tiny", "small"])
@torch.no_grad()
def test_named_sizes_know_their_heads_at_224_px_and_beyond(size: str, tmp_path: Path) -> None:
    theirs = randomize(timm.create_model(f"vit_{size}_patch16_224", num_classes=0, dynamic_img_size=True))
    loaded = checkpoints.load(f"deit:{deit(tmp_path / 'x.pth', theirs.state_dict())}")
    assert loaded.backbone.cfg.size == f"vit_{size}"
    for side in (224, 288):
        images = torch.randn(1, 3, side, side)
        compare(loaded.backbone, theirs.forward_features(images), images)


def test_statistics_are_those_of_the_releases(tmp_path: Path) -> None:
    """timm's configurations of the same releases say so too."""
    state = vit().state_dict()
    beit = save(tmp_path / "b.pth", {"model": timm_beit(SIZE, shared=True).state_dict()})
    for reference, name in (
        (f"augreg:{augreg(tmp_path / 'x', state)}", "vit_base_patch16_224.augreg_in21k"),
        (f"mae:{mae(tmp_path / 'm.pth', state)}", "vit_base_patch16_224.mae"),
        (f"dino:{dino_full(tmp_path / 'c.pth', state)}", "vit_base_patch16_224.dino"),
        (f"deit:{deit(tmp_path / 'd.pth', state)}", "deit_base_patch16_224.fb_in1k"),
        (f"beit:{beit}", "beit_base_patch16_224.in22k_ft_in22k"),
    ):
        cfg = timm.get_pretrained_cfg(name)
        assert checkpoints.load(reference, changes={"heads": HEADS}).statistics == (cfg.mean, cfg.std), reference


def test_the_npz_that_these_tests_write_is_one_for_timm_too(tmp_path: Path) -> None:
    theirs, again = vit(), vit(num_classes=5)
    again.load_pretrained(str(augreg(tmp_path / "x", theirs.state_dict())))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())


@torch.no_grad()
def test_moco_v3_s_small_vit_has_twelve_heads_and_its_own_order_of_positions(tmp_path: Path) -> None:
    theirs = vit(embed_dim=384, num_heads=12, depth=1)
    table = sincos_2d(384, (4, 4))
    theirs.pos_embed.copy_(
        torch.cat([table[..., 192:], table[..., :192]], dim=-1)
    )  # rows first, as torch.meshgrid(w, h) orders them
    ours = checkpoints.load_backbone(f"moco-v3:{moco(tmp_path / 'x.pth', theirs.state_dict())}")
    assert ours.cfg.heads == 12
    assert torch.equal(ours.pos_embed, theirs.pos_embed)
    assert not ours.pos_embed.requires_grad
    images = torch.randn(2, 3, SIZE, SIZE)
    compare(ours, theirs.forward_features(images), images)


@torch.no_grad()
def test_dinov2_keeps_its_layer_scale(tmp_path: Path) -> None:
    theirs = vit(init_values=0.1, patch_size=14, img_size=70)
    path = save(tmp_path / "x.pth", theirs.state_dict() | {"mask_token": torch.zeros(1, DIM)})
    ours = checkpoints.load_backbone(f"dinov2:{path}", changes={"heads": HEADS})
    assert (ours.patch, ours.grid) == (14, (5, 5))
    for size in (70, 112):
        images = torch.randn(2, 3, size, size)
        compare(ours, theirs.forward_features(images), images)


@torch.no_grad()
def test_a_fine_tuned_mae_and_its_head_give_timm_s_logits(tmp_path: Path) -> None:
    theirs = vit(global_pool="avg", num_classes=5)
    assert "fc_norm.weight" in theirs.state_dict()
    loaded = checkpoints.load(f"mae-finetuned:{mae(tmp_path / 'x.pth', theirs.state_dict())}", changes={"heads": HEADS})
    assert set(loaded.head) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert loaded.backbone.norm is None
    assert loaded.sha256 == checkpoints.sha256(tmp_path / "x.pth")
    images = torch.randn(2, 3, SIZE, SIZE)
    pooled = loaded.backbone(images).maps[0].mean((2, 3))
    normed = F.layer_norm(pooled, (DIM,), loaded.head["fc_norm.weight"], loaded.head["fc_norm.bias"], eps=1e-6)
    torch.testing.assert_close(
        F.linear(normed, loaded.head["head.weight"], loaded.head["head.bias"]), theirs(images), **CLOSE
    )


def timm_beit(size: int, *, shared: bool) -> Any:
    options = {
        "img_size": size,
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 0,
        "init_values": 0.1,
    }
    pool = (
        {"global_pool": "token", "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
        if shared
        else {"global_pool": "avg"}
    )
    return randomize(timm.create_model("beit_base_patch16_224", **options, **pool))


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_beit_gives_timm_s_features_with_shared_and_with_own_tables(shared: bool, tmp_path: Path) -> None:
    theirs = timm_beit(SIZE, shared=shared)
    drop = noise(
        "mask_token", "lm_head.weight", "blocks.0.attn.relative_position_index", "rel_pos_bias.relative_position_index"
    )
    path = save(tmp_path / "x.pth", {"model": theirs.state_dict() | drop})
    loaded = checkpoints.load(f"beit:{path}", changes={"heads": HEADS})
    assert loaded.backbone.cfg.relative_positions == ("shared" if shared else "per_block")
    assert set(loaded.head) == (set() if shared else {"fc_norm.weight", "fc_norm.bias"})
    images = torch.randn(2, 3, SIZE, SIZE)
    compare(loaded.backbone, theirs.forward_features(images), images)
    larger = timm_beit(96, shared=shared)
    for name, parameter in larger.named_parameters():
        new = theirs.get_parameter(name)
        parameter.copy_(resize_rel_pos_bias_table_simple(new, (6, 6), parameter.shape) if "table" in name else new)
    images = torch.randn(2, 3, 96, 96)
    compare(
        checkpoints.load_backbone(f"beit:{path}", changes={"heads": HEADS, "image_size": 96}),
        larger.forward_features(images),
        images,
    )
    if shared:  # as BEiT's fine-tuning does: the shared table becomes each block's
        own = checkpoints.load_backbone(f"beit:{path}", changes={"heads": HEADS, "relative_positions": "per_block"})
        images = torch.randn(2, 3, SIZE, SIZE)
        assert len(own.rel_pos_bias) == DEPTH
        compare(own, theirs.forward_features(images), images)


def original_swin(state: State) -> State:
    """timm's names back to those of the Swin repository: a stage's downsampling closes the stage before."""
    return {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("layout", ["moby", "esvit"])
@torch.no_grad()
def test_swin_encoders_of_moby_and_esvit_give_timm_s_features(layout: str, tmp_path: Path) -> None:
    options = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4, "num_classes": 0}
    theirs = randomize(timm.create_model("swin_tiny_patch4_window7_224", img_size=32, **options))
    state = original_swin(theirs.state_dict())
    buffers = noise("layers.0.blocks.0.attn.relative_position_index", "layers.0.blocks.1.attn_mask")
    if layout == "moby":
        content = (
            prefixed(state | buffers, "encoder.")
            | prefixed(state, "encoder_k.")
            | noise("projector.linear_out.weight", "queue1", "queue_ptr")
        )
        save(tmp_path / "x.pth", {"model": content})
    else:
        save(
            tmp_path / "x.pth",
            {
                "teacher": prefixed(state | buffers, "module.backbone.")
                | noise("module.head.mlp.0.bias", "module.head_dense.x")
            },
        )
    ours = checkpoints.load_backbone(f"{layout}:{tmp_path / 'x.pth'}")
    assert (ours.channels, ours.strides, ours.depth) == ((16, 32), (4, 8), 2)
    images = torch.randn(2, 3, 32, 32)
    features = ours(images, taps=(0, 1), norm=True)
    torch.testing.assert_close(features.cls, theirs(images), **CLOSE)
    assert [map_.shape for map_ in features.maps] == [(2, 16, 8, 8), (2, 32, 4, 4)]
    larger = checkpoints.load_backbone(
        f"{layout}:{tmp_path / 'x.pth'}", changes={"image_size": 64, "final_norm": False}
    )
    expected = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, **options).eval()
    expected.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for a, b in zip(
        larger(images, taps=(0, 1)).maps,
        expected.forward_intermediates(images, indices=[0, 1], intermediates_only=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **CLOSE)


@torch.no_grad()
def test_the_deit_of_moby_is_a_plain_vit_with_six_heads(tmp_path: Path) -> None:
    theirs = vit(embed_dim=384, num_heads=6, depth=1)
    other = prefixed(vit(embed_dim=384, num_heads=6, depth=1).state_dict(), "encoder_k.")
    state = prefixed(theirs.state_dict(), "encoder.") | other | noise("queue1", "predictor.linear_out.bias")
    ours = checkpoints.load_backbone(f"moby:{save(tmp_path / 'x.pth', {'model': state})}")
    assert ours.cfg.heads == 6
    images = torch.randn(2, 3, SIZE, SIZE)
    compare(ours, theirs.forward_features(images), images)


@pytest.mark.parametrize("layout", ["ibot", "esvit"])
@pytest.mark.parametrize("window", [2, 4])
@torch.no_grad()
def test_swins_of_ibot_and_esvit_keep_the_smaller_window_of_their_last_stage(
    layout: str, window: int, tmp_path: Path
) -> None:
    """Of three stages of 8, 4 and 2 cells, the last holds a window of 2 cells at most."""
    options = {"embed_dim": 16, "depths": (1, 2, 1), "num_heads": (2, 4, 4), "window_size": window, "num_classes": 0}
    theirs = randomize(timm.create_model("swin_tiny_patch4_window7_224", img_size=32, **options))
    state = original_swin(theirs.state_dict())
    content = {
        "ibot": {"state_dict": state | noise("masked_embed")},
        "esvit": {"teacher": prefixed(state, "module.backbone.") | noise("module.head.mlp.0.bias")},
    }
    ours = checkpoints.load_backbone(f"{layout}:{save(tmp_path / 'x.pth', content[layout])}")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images, norm=True).cls, theirs(images), **CLOSE)


def timm_file(tmp_path: Path, name: str, **options: Any) -> Any:
    theirs = randomize(timm.create_model(name, **options))
    save(tmp_path / "x.pth", theirs.state_dict())
    return theirs


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convnext_atto", "resnet18"]
)
@pytest.mark.parametrize("classes", [0, 5])
@torch.no_grad()
def test_timm_s_models_load_from_a_local_file(name: str, classes: int, tmp_path: Path) -> None:
    theirs = timm_file(tmp_path, name, num_classes=classes)
    ours = checkpoints.load_backbone(f"timm:{name}@{tmp_path / 'x.pth'}")
    images = torch.randn(1, 3, 224, 224)
    features = ours(images, norm=True)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features.cls, expected, **CLOSE)
    torch.testing.assert_close(
        features.maps[0],
        theirs.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0],
        **CLOSE,
    )
