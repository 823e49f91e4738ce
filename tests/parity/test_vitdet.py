"""Encoder and simple pyramid equal detectron2's ViTDet with copied weights, where detectron2 is installed."""

import warnings

import pytest
import torch
from torch import nn

from mae_transfer.checkpoints.export import detectron2_names
from mae_transfer.models.vit import ViT, ViTConfig

pytestmark = [pytest.mark.detectron2, pytest.mark.filterwarnings("ignore")]  # detectron2's own imports warn

DIM, DEPTH, HEADS, PATCH, PRETRAINED, WINDOW = 32, 4, 4, 4, 32, 3


@pytest.fixture(scope="module")
def vitdet() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("detectron2.modeling.backbone.vit", reason="detectron2 is not installed; it is not on PyPI", exc_type=ImportError)


def encoder(image_size: int, *, relative: bool) -> ViT:
    cfg = ViTConfig(
        size=None, dim=DIM, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=image_size, class_token=False, final_norm=False, positions="learned",
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
def test_the_encoder_equals_detectron2_s(image: tuple[int, int], relative: bool, vitdet: object) -> None:
    theirs = vitdet.ViT(
        img_size=PRETRAINED, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, use_rel_pos=relative, window_size=WINDOW,
        window_block_indexes=(0, 2), pretrain_img_size=PRETRAINED, pretrain_use_cls_token=False, norm_layer=lambda d: nn.LayerNorm(d, eps=1e-6),
    ).eval()  # fmt: skip
    ours = encoder(PRETRAINED, relative=relative)
    randomize(ours)
    theirs.load_state_dict({name.removeprefix("backbone.net."): tensor for name, tensor in detectron2_names(ours).items()})  # strict
    images = torch.randn(2, 3, *image)
    torch.testing.assert_close(ours(images).maps[0], theirs(images)["last_feat"], rtol=1e-5, atol=1e-5)
