"""Windows and decomposed relative positions equal timm's SAM ViT with copied weights."""

import pytest
import torch
from timm.models.vision_transformer_sam import VisionTransformerSAM

from mae_transfer.models.vit import ViT, ViTConfig

DIM, DEPTH, HEADS, PATCH = 32, 4, 4, 4


def pair(size: int, *, window: int, global_blocks: tuple[int, ...], relative: bool) -> tuple[ViT, VisionTransformerSAM]:
    torch.manual_seed(0)
    theirs = VisionTransformerSAM(
        img_size=size, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=0,
        use_rel_pos=relative, window_size=window,
        global_attn_indexes=global_blocks, neck_chans=0, norm_layer=None,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    cfg = ViTConfig(
        size=None, dim=DIM, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=size, class_token=False, final_norm=False,
        positions="learned",
        relative_positions="decomposed" if relative else "none", windows=window, global_blocks=global_blocks,
    )  # fmt: skip
    ours = ViT(cfg).eval()
    state = {
        name: tensor.flatten(1, 2) if name == "pos_embed" else tensor for name, tensor in theirs.state_dict().items()
    }
    ours.load_state_dict(
        {name: tensor for name, tensor in state.items() if name in ours.state_dict()}
    )  # strict: every name of ours is theirs
    return ours, theirs


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("image", [(32, 32), (24, 40), (20, 36), (12, 64)])
@torch.no_grad()
def test_every_block_equals_timm_s(image: tuple[int, int], relative: bool) -> None:
    ours, theirs = pair(32, window=3, global_blocks=(1, 3), relative=relative)
    images = torch.randn(2, 3, *image)
    expected = theirs.forward_intermediates(images, indices=list(range(DEPTH)), intermediates_only=True)
    for mine, their in zip(ours(images, taps=tuple(range(DEPTH))).maps, expected, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-5)


def test_gradients_equal_timm_s() -> None:
    ours, theirs = pair(32, window=5, global_blocks=(2,), relative=True)
    images = torch.randn(1, 3, 24, 36)
    weights = torch.randn(1, DIM, 6, 9)
    (ours(images).maps[0] * weights).mean().backward()
    (theirs.forward_intermediates(images, indices=[DEPTH - 1], intermediates_only=True)[0] * weights).mean().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad.flatten(), expected[name].flatten(), rtol=1e-3, atol=1e-5)
