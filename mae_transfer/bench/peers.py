"""Masked autoencoders of other libraries, built as in their documentation, with our sizes and normalised pixels."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mae_transfer.bench.harness import Entry
from mae_transfer.bench.work import Work
from mae_transfer.models.mae import DecoderConfig
from mae_transfer.models.vit import NORM_EPS, SIZES

DECODER = DecoderConfig()


def transformers_mae(work: Work) -> Entry:
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
    return Entry(_Loss(ViTMAEForPreTraining(config)), (images(work),))


def lightly_mae(work: Work) -> Entry:
    """Build lightly's MAE on a timm encoder, as in its documentation."""
    return Entry(_LightlyMAE(work), (images(work),))


def images(work: Work) -> Tensor:
    """Return a batch of normalised images, (B, 3, H, W) float32."""
    return torch.randn(work.batch, 3, work.image, work.image, device=work.device)


class _Loss(nn.Module):
    """Returns the loss of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        return self.model(image).loss


class _LightlyMAE(nn.Module):
    """The model of lightly's MAE example (docs.lightly.ai, examples/mae), built from its modules and utilities."""

    def __init__(self, work: Work) -> None:
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
