"""CrossMAE's decoder against the formulas of its paper (arXiv 2401.14391), patch by patch and head by head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.normalize import normalize
from mae_transfer.interfaces import Mask
from mae_transfer.models.mae import MAE, MAEConfig

DEPTH, DECODER, HEADS, WIDTH = 3, 2, 2, 24
CFG = MAEConfig.model_validate({
    "encoder": {"size": None, "dim": 32, "depth": DEPTH, "heads": 4, "patch": 4, "image_size": (16, 24)},
    "decoder": {"kind": "cross", "depth": DECODER, "dim": WIDTH, "heads": HEADS},
})  # fmt: skip


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    x = x - x.mean()
    return x / (x.square().mean() + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def predict(features: list[Tensor], ids: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The predictions (M, P) of one image's patches `ids`, for n feature maps (L, D), the embeddings first."""
    out = []
    for patch in ids.tolist():
        x = weights["mask_token"][0, 0] + weights["pos_embed"][0, 1 + patch]  # row 0 is the class token's
        for k in range(DECODER):
            block = f"blocks.{k}"
            keys, values = [], []
            for token in range(len(features[0])):
                # equation 1, with the inputs of the first block, then the layer norm of A.3
                t = sum(weights["mix"][k, j] * f[token] for j, f in enumerate(features))
                key, value = linear(norm(t, weights, f"{block}.norm_features"), weights, f"{block}.attn.kv").chunk(2)
                keys.append(key)
                values.append(value)
            query = linear(norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn.q")
            heads = []
            for h in range(HEADS):
                part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
                logits = [query[part] @ key[part] / math.sqrt(WIDTH / HEADS) for key in keys]
                total = sum(logit.exp() for logit in logits)
                heads.append(
                    sum(logit.exp() / total * value[part] for logit, value in zip(logits, values, strict=True))
                )
            x = x + linear(torch.cat(heads), weights, f"{block}.attn.proj")
            inner = F.gelu(linear(norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
            x = x + linear(inner, weights, f"{block}.mlp.fc2")
        out.append(linear(norm(x, weights, "norm"), weights, "pred"))
    return torch.stack(out)


def test_predictions_and_gradients_are_those_of_the_plain_formula() -> None:
    torch.manual_seed(0)
    mae = MAE(CFG, 7).double()
    for parameter in mae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases and norms are 0 and 1 at first
    order = torch.stack([torch.randperm(24) for _ in range(2)])
    mask = Mask(order[:, :6], order[:, 6:], order[:, 6:13])
    images = normalize(torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)).double()
    seen: list[Tensor] = []
    # what the encoder's blocks read and write, from hooks, so that `encode` is tested too
    handles = [mae.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    handles += [
        block.register_forward_hook(lambda _, inputs, output: seen.append(output)) for block in mae.encoder.blocks
    ]
    prediction = mae(images, mask)
    for handle in handles:
        handle.remove()
    weights = dict(mae.decoder.named_parameters())
    plain = torch.stack([predict([f[b] for f in seen], mask.ids_predicted[b], weights) for b in range(2)])
    torch.testing.assert_close(prediction, plain, rtol=1e-9, atol=1e-9)
    trained = {name: p for name, p in mae.named_parameters() if p.requires_grad}
    ours, theirs = (
        torch.autograd.grad(one.square().mean(), list(trained.values()), retain_graph=True)
        for one in (prediction, plain)
    )
    for name, a, b in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_the_weights_of_inter_block_attention_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    wide = CFG.model_copy(update={"decoder": CFG.decoder.model_copy(update={"depth": 400})})
    mix = MAE(wide, 1).decoder.mix
    assert mix.shape == (400, DEPTH + 1)
    torch.testing.assert_close(mix.std().item(), (DEPTH + 1) ** -0.5, rtol=0.05, atol=0)  # N(0, 1/n)


def test_patches_are_predicted_independently() -> None:
    """So a share of them is predicted as all of them are (section 3.3)."""
    torch.manual_seed(0)
    mae, order = MAE(CFG, 7).double(), torch.randperm(24)[None]
    images = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    whole = mae(images, Mask(order[:, :6], order[:, 6:]))
    part = mae(images, Mask(order[:, :6], order[:, 6:], order[:, 9:12]))
    torch.testing.assert_close(part, whole[:, 3:6], rtol=1e-9, atol=1e-12)


def test_the_model_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    mae, order = MAE(CFG, 7).double(), torch.randperm(24)[None]
    images, mask = torch.randn(1, 3, 16, 24, dtype=torch.float64), Mask(order[:, :6], order[:, 6:], order[:, 6:13])
    compiled = torch.compile(mae, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, mask), mae(images, mask), rtol=1e-9, atol=1e-12)
