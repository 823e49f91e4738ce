"""BEiT and SimMIM as configurations of the MAE: BEiT against transformers, SimMIM's loss against its formula."""

import numpy as np
import torch
from torch import Tensor
from transformers import BeitConfig, BeitForMaskedImageModeling

from mae_transfer.core.masks import Random
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.patches import unpatchify
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import Frame, PixelConfig

CODES, DIM, DEPTH, HEADS = 11, 32, 3, 4
SIZE, PATCH = 32, 8
BLOCK = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip


def masks(hidden: int) -> Mask:
    order = torch.rand(3, 16).argsort(dim=1)
    return Mask(order[:, hidden:], order[:, :hidden])


def beit() -> MAE:
    """What configs/pretrain/beit_vit_base.py builds, small."""
    encoder = ViTConfig(
        size=None, dim=DIM, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=SIZE, positions="none",
        relative_positions="shared", qkv_bias="qv",
        layer_scale=0.1, norm_eps=1e-12,
    )  # fmt: skip
    return MAE(MAEConfig(encoder=encoder, decoder=DecoderConfig(depth=0), corrupt="mask_token"), CODES)


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' weights under our names, mapped by hand."""
    names = {
        "encoder.cls_token": "beit.embeddings.cls_token", "mask_token": "beit.embeddings.mask_token",
        "encoder.rel_pos_bias.0.table": "beit.shared_position_bias.relative_position_bias_table",
    }  # fmt: skip
    leaves = {
        "encoder.patch_embed.proj": "beit.embeddings.patch_embeddings.projection",
        "encoder.norm": "layernorm",
        "decoder.pred": "lm_head",
    }
    for i in range(DEPTH):
        leaves |= {f"encoder.blocks.{i}.{ours}": f"beit.layers.{i}.{theirs}" for ours, theirs in BLOCK.items()}
        names |= {f"encoder.blocks.{i}.ls{k}.gamma": f"beit.layers.{i}.lambda_{k}" for k in (1, 2)}
        names |= {f"encoder.blocks.{i}.attn.{p}_bias": f"beit.layers.{i}.attention.{p}_proj.bias" for p in "qv"}
    names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in leaves.items() for leaf in ("weight", "bias")}
    found = {ours: weights[theirs] for ours, theirs in names.items()}
    for i in range(DEPTH):
        found[f"encoder.blocks.{i}.attn.qkv.weight"] = torch.cat(
            [weights[f"beit.layers.{i}.attention.{p}_proj.weight"] for p in "qkv"]
        )
    return found


def test_beit_predicts_the_logits_of_transformers() -> None:
    torch.manual_seed(0)
    config = BeitConfig(
        vocab_size=CODES, hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=4 * DIM, image_size=SIZE,
        patch_size=PATCH, use_mask_token=True, use_shared_relative_position_bias=True, layer_scale_init_value=0.1,
        drop_path_rate=0.0,
    )  # fmt: skip
    theirs = BeitForMaskedImageModeling(config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3)
    ours = beit().eval()
    own = {name for name, tensor in ours.state_dict().items() if "index" not in name}
    weights = copied(theirs.state_dict())
    assert set(weights) == own
    ours.load_state_dict(weights, strict=False)
    images, mask = torch.randn(3, 3, SIZE, SIZE), masks(6)
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter(1, mask.ids_masked, True)  # True = hidden
    expected = theirs(images, bool_masked_pos=hidden).logits.gather(
        1, mask.ids_masked[:, :, None].expand(-1, -1, CODES)
    )
    torch.testing.assert_close(ours(images, mask), expected, rtol=1e-5, atol=1e-5)


def test_simmims_loss_is_the_mean_absolute_error_of_the_hidden_pixels() -> None:
    """SimMIM (arXiv 2111.09886, section 3): l1 between raw and predicted pixels, averaged over the hidden pixels."""
    torch.manual_seed(0)
    encoder = ViTConfig(size=None, dim=DIM, depth=DEPTH, heads=HEADS, patch=PATCH, image_size=SIZE)
    model = MAE(MAEConfig(encoder=encoder, decoder=DecoderConfig(depth=0), corrupt="mask_token"), 3 * PATCH**2).eval()
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    mask = masks(9)
    target = PixelConfig(loss="l1").build(Frame(PATCH, (4, 4), IMAGENET))
    prediction = model(normalize(images), mask)
    loss = target.loss(prediction, target(Batch(images, (), mask, None, torch.arange(3)), mask.ids_masked)).mean()
    full = torch.zeros(3, 16, 3 * PATCH**2).scatter(
        1, mask.ids_masked[:, :, None].expand(-1, -1, 3 * PATCH**2), prediction.detach()
    )
    drawn = unpatchify(full, (4, 4))
    hidden = unpatchify(
        torch.zeros(3, 16, 1).scatter(1, mask.ids_masked[:, :, None], 1.0).expand(-1, -1, 3 * PATCH**2), (4, 4)
    )
    expected = ((drawn - normalize(images)).abs() * hidden).sum() / hidden.sum()
    torch.testing.assert_close(loss.detach(), expected)


def test_simmims_masks_are_squares_of_32_pixels_and_three_fifths_of_the_image() -> None:
    sampler = Random(ratio=0.6, unit=2)
    order = sampler((14, 14), np.random.default_rng(0))
    hidden = (
        np.isin(np.arange(196), order[sampler.visible((14, 14)) :])
        .reshape(7, 2, 7, 2)
        .transpose(0, 2, 1, 3)
        .reshape(49, 4)
    )
    assert ((hidden.sum(axis=1) == 0) | (hidden.sum(axis=1) == 4)).all()
    assert hidden[:, 0].sum() == 30  # ceil(49 * 0.6), as its mask generator counts
