"""MAE against transformers' ViTMAEForPreTraining with copied weights and masks: loss, predictions, all gradients."""

from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.positions import sincos_2d
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import Frame, NormPixelConfig, PixelConfig

DIM, DEPTH, HEADS, DECODER_DIM, DECODER_DEPTH, DECODER_HEADS = 48, 3, 4, 32, 2, 4


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def theirs(size: tuple[int, int], patch: int, norm: bool) -> ViTMAEForPreTraining:
    cfg = ViTMAEConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * DIM, image_size=size,
        patch_size=patch,
        decoder_hidden_size=DECODER_DIM, decoder_num_hidden_layers=DECODER_DEPTH,
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=4 * DECODER_DIM, layer_norm_eps=1e-6, norm_pix_loss=norm, mask_ratio=0.75,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    with mock.patch("transformers.initialization.copy_"):  # theirs initialises the tables of square grids only
        model = ViTMAEForPreTraining(cfg)
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        rows_first = build_2d_sinusoidal_position_embedding(
            size[0] // patch, size[1] // patch, table.shape[2], cls_token=True, dtype=table.dtype
        )
        table.data.copy_(rows_first.roll(table.shape[2] // 2, dims=1))  # MAE's released weights have the columns first
    patchify = model.patchify
    model.patchify = lambda pixels, **_: patchify(
        pixels, interpolate_pos_encoding=True
    )  # lets non-square images pass; it interpolates nothing
    return model


def pairs(ours: MAE, other: ViTMAEForPreTraining, grad: bool = False) -> list[tuple[str, Tensor, Tensor]]:
    """Return (name, ours, theirs) for all parameters or gradients, by hand. Their q, k, v are joined into our qkv."""

    def value(module: nn.Module, name: str) -> Tensor:
        parameter = module.get_parameter(name)
        return parameter.grad if grad else parameter.data

    def block(mine: str, his: str) -> list[tuple[str, Tensor, Tensor]]:
        names = [("norm1", "layernorm_before"), ("attn.proj", "attention.o_proj"), ("norm2", "layernorm_after")]
        names += [("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]
        rows = [(f"{mine}.{a}.{k}", f"{his}.{b}.{k}") for a, b in names for k in ("weight", "bias")]
        joined = []
        for k in ("weight", "bias"):
            qkv = [value(other, f"{his}.attention.{x}_proj.{k}") for x in "qkv"]
            joined.append((f"{mine}.attn.qkv.{k}", value(ours, f"{mine}.attn.qkv.{k}"), torch.cat(qkv)))
        return [(a, value(ours, a), value(other, b)) for a, b in rows] + joined

    single = {
        "encoder.cls_token": "vit.embeddings.cls_token",
        "decoder.mask_token": "decoder.mask_token",
        "encoder.patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "encoder.patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        **{f"{a}.{k}": f"{b}.{k}" for k in ("weight", "bias") for a, b in [
            ("encoder.norm", "vit.layernorm"), ("decoder.embed", "decoder.decoder_embed"),
            ("decoder.norm", "decoder.decoder_norm"), ("decoder.pred", "decoder.decoder_pred")]},
    }  # fmt: skip
    rows = [(a, value(ours, a), value(other, b)) for a, b in single.items()]
    for i in range(DEPTH):
        rows += block(f"encoder.blocks.{i}", f"vit.layers.{i}")
    for i in range(DECODER_DEPTH):
        rows += block(f"decoder.blocks.{i}", f"decoder.decoder_layers.{i}")
    return rows


@pytest.mark.parametrize(("size", "patch"), [((64, 64), 16), ((42, 70), 14), ((64, 96), 16)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_loss_predictions_and_gradients_are_equal(
    size: tuple[int, int],
    patch: int,
    norm: bool,
    dtype: torch.dtype,
    tolerance: float,
    default_dtype: Callable[[torch.dtype], None],
) -> None:
    default_dtype(dtype)
    torch.manual_seed(0)
    other = theirs(size, patch, norm).to(dtype).train()
    frame = Frame(patch, (size[0] // patch, size[1] // patch), IMAGENET)
    target = (NormPixelConfig if norm else PixelConfig)().build(frame)
    encoder = ViTConfig(size=None, dim=DIM, depth=DEPTH, heads=HEADS, patch=patch, image_size=size)
    ours = MAE(
        MAEConfig(encoder=encoder, decoder=DecoderConfig(depth=DECODER_DEPTH, dim=DECODER_DIM, heads=DECODER_HEADS)),
        target.dim,
    )
    rows = pairs(ours, other)
    assert {name for name, *_ in rows} == {name for name, p in ours.named_parameters() if p.requires_grad}
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    for name, mine, his in pairs(ours, other):
        assert mine.shape == his.shape, name
        mine.copy_(his)

    image = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    grid = (size[0] // patch, size[1] // patch)
    noise = torch.rand(3, grid[0] * grid[1])
    visible = int(noise.shape[1] * 0.25)
    order = noise.argsort(dim=1)
    batch = Batch(image, (), Mask(order[:, :visible], order[:, visible:]), None, torch.arange(3))
    pixels = normalize(image)

    expected = other(pixels, noise=noise)
    expected.loss.backward()
    prediction = ours(pixels, batch.mask)
    loss = target.loss(prediction, target(batch, batch.mask.ids_masked)).mean()
    loss.backward()

    close = {"rtol": tolerance * 100, "atol": tolerance}
    index = batch.mask.ids_masked[:, :, None].expand(-1, -1, target.dim)
    torch.testing.assert_close(prediction, expected.logits.gather(1, index), **close)
    torch.testing.assert_close(loss, expected.loss, **close)
    for name, mine, his in pairs(ours, other, grad=True):
        torch.testing.assert_close(mine, his, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_fixed_positions_are_theirs() -> None:
    other = theirs((42, 70), 14, False)
    torch.testing.assert_close(sincos_2d(DIM, (3, 5)), other.vit.embeddings.position_embeddings.data, rtol=0, atol=1e-7)
    torch.testing.assert_close(sincos_2d(DECODER_DIM, (3, 5)), other.decoder.decoder_pos_embed.data, rtol=0, atol=1e-7)
