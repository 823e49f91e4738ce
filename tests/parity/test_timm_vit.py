"""timm's plain ViTs as this project's encoder: equal features up to rounding, and windows for detection recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mae_transfer.checkpoints import load, load_backbone
from mae_transfer.config import load as load_config
from mae_transfer.models.vit import ViT
from mae_transfer.tasks.detect import DetectConfig

CONVERT = {"antialias": True}  # a change that timm's own model does not have
DINO, DEIT, DEIT3, AUGREG = (
    "vit_small_patch16_224.dino",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_tiny_patch16_224.augreg_in21k",
)
NAMES = (DINO, DEIT, DEIT3, AUGREG, "vit_small_patch14_dinov2", "test_vit")


def saved(name: str, tmp_path: Path, **options: Any) -> tuple[nn.Module, str]:
    """Return a timm model with weights of which none is zero or one, and the reference of its file."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    return model, f"timm:{name}@{tmp_path / 'x.pth'}"


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_timms(name: str, tmp_path: Path) -> None:
    model, reference = saved(name, tmp_path)
    ours = load(reference, changes=CONVERT).backbone
    assert isinstance(ours, ViT)
    side = ours.grid[0] * ours.patch
    images, taps = torch.randn(1, 3, side, side), (1, ours.depth - 1)
    with torch.no_grad():
        maps = model.forward_intermediates(images, indices=list(taps), intermediates_only=True)  # type: ignore[operator]
        found = ours(images, taps=taps)
        last = model.forward_features(images)  # type: ignore[operator]
        final = ours(images, norm=ours.norm is not None)
    for theirs, mine in zip(maps, found.maps, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.maps[0].flatten(2).transpose(1, 2), last[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.cls, last[:, 0], rtol=1e-4, atol=1e-4)


def test_a_window_as_large_as_the_grid_gives_what_timm_gives_without_class_token(tmp_path: Path) -> None:
    model, reference = saved("vit_tiny_patch16_224", tmp_path)
    bare = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False).eval()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "cls_token"}
    bare.load_state_dict(tensors | {"pos_embed": tensors["pos_embed"][:, 1:]})
    changes = {"windows": 14, "global_blocks": (2, 5, 8, 11), "class_token": False, "final_norm": False}
    ours = load_backbone(reference, changes=changes)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        theirs = bare.forward_intermediates(images, indices=[11], intermediates_only=True)[0]
        torch.testing.assert_close(ours(images).maps[0], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["mask_rcnn_vitdet_base_one_gpu", "mask_rcnn_vit_base_li2021_100ep"])
def test_the_detection_recipes_take_it(recipe: str, tmp_path: Path) -> None:
    _, reference = saved(DEIT, tmp_path)
    cfg = load_config(Path(__file__).parents[2] / f"configs/detect/{recipe}.py", DetectConfig)
    changes = {"image_size": 128, "class_token": False, "final_norm": False, "drop_path": 0.1, **cfg.backbone.changes}
    ours = load_backbone(reference, changes=changes)
    assert isinstance(ours, ViT)
    assert (ours.cfg.windows, ours.cfg.relative_positions) == (14, cfg.backbone.changes["relative_positions"])
    assert ours(torch.randn(1, 3, 128, 128)).maps[0].shape == (1, 192, 8, 8)


def test_statistics_stay_timms(tmp_path: Path) -> None:
    _, reference = saved(AUGREG, tmp_path)
    assert load(reference, changes=CONVERT).statistics == load(reference).statistics == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deit_tiny_distilled_patch16_224", "it is a VisionTransformerDistilled"),
        ("test_vit2", "it has register tokens"),
        ("vit_small_patch16_18x2_224", "its blocks are ParallelThingsBlock"),
        ("convnext_atto", "it is a ConvNeXt"),
    ],
)
def test_what_is_no_plain_vit_is_refused_with_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    _, reference = saved(name, tmp_path)
    with pytest.raises(ValueError, match=rf"cannot have windows or relative positions: ({reason}).*plain ViTs"):
        load_backbone(reference, changes={"windows": 14})
