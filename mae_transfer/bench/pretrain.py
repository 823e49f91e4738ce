"""The benchmark `pretrain`: our training steps and those of the masked autoencoders in other libraries.

The peers are built as in their documentation, with our sizes and normalised pixels. "a third" predicts a third of the
hidden patches, and "CrossMAE" does so by cross-attention; both have as many decoder blocks as the others.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mae_transfer.bench.harness import Comparison, Contestant, random_images
from mae_transfer.bench.options import Workload
from mae_transfer.core.masks import Random
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import NORM_EPS, SIZES, ViTConfig
from mae_transfer.seeding import fold
from mae_transfer.targets import Frame, NormPixelConfig

DECODER = DecoderConfig()
OURS = {
    "mae_transfer": DECODER,
    "mae_transfer, a third": DecoderConfig(share=1 / 3),
    "mae_transfer, CrossMAE": DecoderConfig(share=1 / 3, kind="cross"),
}


def build_ours(work: Workload, decoder: DecoderConfig = DECODER) -> Contestant:
    """Build our step on a loader's batch: uint8 images with masks. The target is not compiled, as in the task."""
    encoder = ViTConfig.model_validate({"size": work.size, "patch": work.patch, "image_size": work.image})
    target = NormPixelConfig().build(Frame(work.patch, encoder.grid(), IMAGENET)).to(work.device)
    mae = MAE(MAEConfig(encoder=encoder, decoder=decoder), target.dim)
    mask = draw_masks(work, encoder.grid())
    if (predicted := decoder.predicted(mask.ids_masked.shape[1])) is not None:
        ids = mask.ids_masked[:, torch.randperm(mask.ids_masked.shape[1], device=work.device)[:predicted]]
        mask = replace(mask, ids_drawn=ids)
    batch = Batch(random_images(work), (), mask, None, torch.arange(work.batch))

    def loss() -> Tensor:
        truth = target(batch, mask.ids_predicted)
        return target.loss(mae(normalize(batch.image), mask), truth).mean()

    return Contestant(mae, loss, blocks=True)


def draw_masks(work: Workload, grid: tuple[int, int]) -> Mask:
    """Return random masks as the loader draws them."""
    sampler = Random(ratio=work.mask_ratio)
    orders = np.stack([sampler(grid, np.random.default_rng(fold(0, "sample", index))) for index in range(work.batch)])
    parts = torch.from_numpy(orders).tensor_split([sampler.visible(grid)], dim=1)
    return Mask(*(ids.contiguous().to(work.device) for ids in parts))


def build_transformers(work: Workload) -> Contestant:
    """Build ViTMAEForPreTraining from a config, with the library's default attention."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    dim, depth, heads = SIZES[work.size]
    config = ViTMAEConfig(
        hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * dim,
        layer_norm_eps=NORM_EPS,
        decoder_hidden_size=DECODER.dim, decoder_num_hidden_layers=DECODER.depth,
        decoder_num_attention_heads=DECODER.heads, decoder_intermediate_size=4 * DECODER.dim,
        image_size=work.image, patch_size=work.patch, mask_ratio=work.mask_ratio, norm_pix_loss=True,
    )  # fmt: skip
    model, images = ViTMAEForPreTraining(config), _normalised_images(work)
    return Contestant(model, lambda: model(images).loss)


def build_lightly(work: Workload) -> Contestant:
    """Build lightly's MAE on a timm encoder, as in its documentation."""
    model, images = _LightlyMAE(work), _normalised_images(work)
    return Contestant(model, lambda: model(images))


def _normalised_images(work: Workload) -> Tensor:
    return torch.randn(work.batch, 3, work.image, work.image, device=work.device)


class _LightlyMAE(nn.Module):
    """The model of lightly's MAE example (docs.lightly.ai, examples/mae), built from its modules and utilities."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation warnings of lightly's dependencies
            from lightly.models import utils
            from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        dim, depth, heads = SIZES[work.size]
        vit = VisionTransformer(
            work.image, work.patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0, global_pool="token"
        )
        self.utils, self.ratio, self.patch = utils, work.mask_ratio, work.patch
        self.encoder = MaskedVisionTransformerTIMM(vit)
        self.embed = nn.Linear(dim, DECODER.dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            vit.patch_embed.num_patches, DECODER.dim, DECODER.depth, DECODER.heads
        )
        self.predict = nn.Linear(DECODER.dim, 3 * work.patch**2)

    def forward(self, image: Tensor) -> Tensor:
        utils = self.utils
        size = len(image), self.encoder.sequence_length
        keep, hidden = utils.random_token_mask(size, mask_ratio=self.ratio, device=image.device)
        tokens = self.embed(self.encoder.encode(image, idx_keep=keep))
        full = utils.repeat_token(self.decoder.mask_token, size)
        full = utils.set_at_index(full, keep, tokens.type_as(full))
        decoded = self.decoder.decode(self.decoder.add_pos_embed(full))
        prediction = self.predict(utils.get_at_index(decoded, hidden))
        target = utils.get_at_index(utils.patchify(image, self.patch), hidden - 1)  # -1: without the class token
        return nn.functional.mse_loss(prediction, utils.normalize_mean_var(target))


COMPARISON = Comparison(
    {
        **{name: partial(build_ours, decoder=decoder) for name, decoder in OURS.items()},
        "transformers": build_transformers,
        "lightly + timm": build_lightly,
    },
    "ratio_to_faster_peer",
    own=len(OURS),
)
