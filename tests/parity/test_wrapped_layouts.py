"""Files of users: wrapped, prefixed, sharded, without a class position. Features equal timm's or transformers'."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_layouts import (
    CLOSE,
    DEPTH,
    DIM,
    HEADS,
    PATCH,
    SIZE,
    State,
    compare,
    mmpretrain,
    noise,
    original_swin,
    prefixed,
    randomize,
    save,
    timm_beit,
    vit,
)
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForMaskedImageModeling,
)

from mae_transfer import checkpoints
from mae_transfer.core.positions import sincos_2d

WRAPPED = {
    "state_dict of a Lightning module": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3},
    "DDP and compile": lambda state: {"model": prefixed(state, "module._orig_mod."), "optimizer": {"state": {}}},
    "a key of one's own": lambda state: {"net": {"weights": prefixed(state, "encoder.")}, "step": 5},
    "flat, with plain values beside": lambda state: state | {"epoch": 3},
}


@pytest.mark.parametrize("prefix", ["mae", "dino", "deit", "mae-finetuned", "ibot", "dinov2"])
@pytest.mark.parametrize("wrapper", WRAPPED)
@torch.no_grad()
def test_wrappers_and_prefixes_are_found_by_pattern(wrapper: str, prefix: str, tmp_path: Path) -> None:
    theirs = vit()
    ours = checkpoints.load_backbone(
        f"{prefix}:{save(tmp_path / 'x.pth', WRAPPED[wrapper](theirs.state_dict()))}", changes={"heads": HEADS}
    )
    images = torch.randn(1, 3, SIZE, SIZE)
    compare(ours, theirs.forward_features(images), images)


@torch.no_grad()
def test_of_student_and_teacher_in_one_dict_the_teacher_is_taken(tmp_path: Path) -> None:
    theirs, other = vit(), vit()
    state = (
        prefixed(theirs.state_dict(), "teacher.backbone.")
        | prefixed(other.state_dict(), "student.backbone.")
        | noise("teacher.head.mlp.0.weight")
    )
    ours = checkpoints.load_backbone(
        f"dino:{save(tmp_path / 'x.pth', {'state_dict': state})}", changes={"heads": HEADS}
    )
    images = torch.randn(1, 3, SIZE, SIZE)
    compare(ours, theirs.forward_features(images), images)


def test_two_models_in_one_file_are_not_chosen_between(tmp_path: Path) -> None:
    state = vit().state_dict()
    with pytest.raises(ValueError, match="holds several models, under ema, online"):
        checkpoints.load(f"mae:{save(tmp_path / 'x.pth', {'ema': state, 'online': state})}")
    with pytest.raises(ValueError, match=r"holds several encoders, under 'online\.', 'target\.'"):
        checkpoints.load(f"mae:{save(tmp_path / 'y.pth', prefixed(state, 'online.') | prefixed(state, 'target.'))}")


def test_a_refusal_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"no 'model' entry with \.\.\.patch_embed\.proj\.weight: its keys are weights, its names stem\.0\.weight",
    ):
        checkpoints.load(f"mae:{save(tmp_path / 'x.pth', {'weights': noise('stem.0.weight')})}")
    state = {name: tensor for name, tensor in vit().state_dict().items() if "fc1" not in name}
    with pytest.raises(
        ValueError,
        match=r"has no blocks\.0\.mlp\.fc1\.weight; its names \(in this package's terms\) are blocks\.0\.attn",
    ):
        checkpoints.load(f"mae:{save(tmp_path / 'y.pth', {'model': state})}")
    state = vit().state_dict() | {"pos_embed": torch.zeros(1, 12, DIM)}
    with pytest.raises(
        ValueError, match="has 12 rows in pos_embed, which is no square grid of patches with 1 class tokens"
    ):
        checkpoints.load(f"mae:{save(tmp_path / 'z.pth', {'model': state})}")


@torch.no_grad()
def test_dinov2_in_chunks_of_blocks(tmp_path: Path) -> None:
    """As block_chunks > 0 names them: the chunk, then the block's number in the whole encoder."""
    theirs = vit(init_values=0.1, patch_size=14, img_size=70, depth=4)
    state = {
        re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name): tensor
        for name, tensor in theirs.state_dict().items()
    }
    training = {
        "teacher": prefixed(state, "backbone.") | noise("dino_head.mlp.0.weight", "ibot_head.x", "backbone.mask_token")
    }
    for content in (state | noise("mask_token"), training):
        ours = checkpoints.load_backbone(f"dinov2:{save(tmp_path / 'x.pth', content)}", changes={"heads": HEADS})
        images = torch.randn(2, 3, 70, 70)
        compare(ours, theirs.forward_features(images), images)


@torch.no_grad()
def test_deit_iii_has_layer_scale_and_no_position_of_its_class_token(tmp_path: Path) -> None:
    options = {
        "img_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 5,
    }
    theirs = randomize(timm.create_model("deit3_small_patch16_224", dynamic_img_size=True, **options))
    assert theirs.pos_embed.shape[1] == (SIZE // PATCH) ** 2
    released = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): tensor for name, tensor in theirs.state_dict().items()}
    for state in (released, theirs.state_dict()):
        loaded = checkpoints.load(f"deit:{save(tmp_path / 'x.pth', {'model': state})}", changes={"heads": HEADS})
        assert set(loaded.head) == {"head.weight", "head.bias"}
        for size in (SIZE, 96):
            images = torch.randn(2, 3, size, size)
            compare(loaded.backbone, theirs.forward_features(images), images)


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_simmim_s_vit_is_beit_s_under_encoder(shared: bool, tmp_path: Path) -> None:
    theirs = timm_beit(SIZE, shared=shared)
    state = (
        prefixed(theirs.state_dict() | noise("mask_token", "rel_pos_bias.relative_position_index"), "encoder.")
        if shared
        else theirs.state_dict()
    )
    path = save(tmp_path / "x.pth", {"model": state | (noise("decoder.0.weight", "decoder.0.bias") if shared else {})})
    loaded = checkpoints.load(f"simmim:{path}")
    images = torch.randn(2, 3, SIZE, SIZE)
    assert loaded.backbone.cfg.heads == HEADS  # a table of relative positions tells
    compare(loaded.backbone, theirs.forward_features(images), images)
    assert loaded.statistics.mean == (0.485, 0.456, 0.406)
    if shared:
        with pytest.raises(ValueError, match=r"not used: decoder[\s\S]*looks like 'simmim:"):
            checkpoints.load(f"beit:{path}")


@torch.no_grad()
def test_simmim_s_swin(tmp_path: Path) -> None:
    options = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4, "num_classes": 0}
    theirs = randomize(timm.create_model("swin_tiny_patch4_window7_224", img_size=32, **options))
    state = prefixed(original_swin(theirs.state_dict()) | noise("mask_token"), "encoder.") | noise("decoder.0.weight")
    ours = checkpoints.load_backbone(f"simmim:{save(tmp_path / 'x.pth', {'model': state})}")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images, norm=True).cls, theirs(images), **CLOSE)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 48, "patch_size": 16}
MLP = SHAPE | {"intermediate_size": 96}
FREE = {"use_absolute_position_embeddings": False, "use_mask_token": True, "vocab_size": 16}


@pytest.mark.parametrize("pooling", [True, False])
@torch.no_grad()
def test_transformers_beit_of_masked_modelling(pooling: bool, tmp_path: Path) -> None:
    """With mean pooling the encoder's final norm is separate; without, the other norm is part of the head."""
    theirs = randomize(
        BeitForMaskedImageModeling(
            BeitConfig(**MLP, **FREE, use_mean_pooling=pooling, use_shared_relative_position_bias=True)
        )
    )
    theirs.save_pretrained(tmp_path)
    loaded = checkpoints.load(f"hf:{tmp_path}")
    images = torch.randn(2, 3, 48, 48)
    expected = theirs.beit(images).last_hidden_state
    compare(loaded.backbone, theirs.layernorm(expected) if pooling else expected, images)


@pytest.mark.parametrize("name", ["ViT", "DINOv2"])
@torch.no_grad()
def test_transformers_other_heads_leave_the_encoder(name: str, tmp_path: Path) -> None:
    theirs: Any = (
        ViTForMaskedImageModeling(ViTConfig(**MLP))
        if name == "ViT"
        else Dinov2ForImageClassification(Dinov2Config(**SHAPE, num_labels=5))
    )
    randomize(theirs).save_pretrained(tmp_path)
    backbone = checkpoints.load_backbone(f"hf:{tmp_path}")
    images = torch.randn(2, 3, 48, 48)
    compare(backbone, (theirs.vit if name == "ViT" else theirs.dinov2)(images).last_hidden_state, images)


def small_state(width: int = 384) -> State:
    return timm.create_model(
        "vit_small_patch16_224", img_size=32, embed_dim=width, depth=12, num_classes=0
    ).state_dict()


@pytest.mark.parametrize("layout", ["mae", "mae-finetuned", "mmpretrain"])
def test_a_head_count_that_nothing_tells_is_asked_for(layout: str, tmp_path: Path) -> None:
    path = (
        mmpretrain(tmp_path / "x.pth", small_state())
        if layout == "mmpretrain"
        else save(tmp_path / "x.pth", {"model": small_state()})
    )
    with pytest.raises(
        ValueError,
        match=r"x\.pth: encoders of width 384 are published with 6 or 12 heads.*--heads N of export_checkpoint",
    ):
        checkpoints.load(f"{layout}:{path}")
    assert checkpoints.load_backbone(f"{layout}:{path}", changes={"heads": 12}).cfg.shape() == (384, 12, 12)


def test_deit_knows_its_heads_but_not_those_of_a_converted_moco_v3(tmp_path: Path) -> None:
    state = small_state()
    assert checkpoints.load_backbone(f"deit:{save(tmp_path / 'x.pth', state)}").cfg.shape()[2] == 6
    assert checkpoints.load_backbone(f"dino:{tmp_path / 'x.pth'}").cfg.shape()[2] == 6
    state["pos_embed"] = sincos_2d(384, (2, 2)).roll(192, dims=2)
    with pytest.raises(ValueError, match="6 or 12 heads"):
        checkpoints.load(f"deit:{save(tmp_path / 'y.pth', state)}")
