"""DALL-E's discrete variational autoencoder (2102.12092, section 2.1 and appendix A): images to grids of codes.

Parameters have the names of its release.

Legend: B batch, S image side, s stride, h = w = S / s cells, P codes, G groups, F feature maps of the first group.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mae_transfer.arithmetic import exact
from mae_transfer.bounds import Few, Width
from mae_transfer.config import Schema
from mae_transfer.interfaces import ImageTokenizer

Codes = Annotated[int, Field(ge=1, le=2**20)]
Groups = Annotated[int, Field(ge=1, le=8)]  # a stride of 128
EPS = 0.1  # distance of mapped pixels from 0 and 1, the limits of the logit-Laplace density (DALL-E)


class DVAEConfig(Schema):
    """The architecture; the defaults are DALL-E's."""

    codes: Codes = 8192
    """Size P of the codebook."""
    groups: Groups = 4
    """Groups G of blocks. Each group of the encoder except the last halves the side: the stride is 2 ** (G - 1)."""
    blocks: Few = 2
    """Residual blocks per group."""
    width: Width = 256
    """Feature maps F of the encoder's first group; each group has twice as many as the previous one."""
    decoder_input: Width = 128
    """Feature maps of the decoder's input layer, which embeds the codes."""
    loss: Literal["logit_laplace", "mse"] = "logit_laplace"
    """Reconstruction loss: negative log-likelihood under DALL-E's logit-Laplace distribution, or squared error."""

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return 1 << (self.groups - 1)


def map_pixels(images: Tensor) -> Tensor:
    """Map images (B, 3, S, S), uint8 or float in [0, 1], to the autoencoder's range [0.1, 0.9]."""
    unit = images / 255 if images.dtype == torch.uint8 else images
    return (1 - 2 * EPS) * unit + EPS


def unmap_pixels(values: Tensor) -> Tensor:
    """Undo map_pixels; the result is clamped to [0, 1]."""
    return ((values - EPS) / (1 - 2 * EPS)).clamp(0, 1)


class ResidualBlock(nn.Module):
    """A residual block of four convolutions; the residual is scaled by 1 / layers ** 2."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, int, int, int], *, layers: int) -> None:
        super().__init__()
        hidden = outputs // 4
        widths = (inputs, hidden, hidden, hidden, outputs)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            parts |= {f"relu_{i + 1}": nn.ReLU(), f"conv_{i + 1}": conv(widths[i], widths[i + 1], kernel)}
        self.gain = 1 / layers**2
        self.id_path = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.res_path = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h, w) for x (B, inputs, h, w)."""
        out: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return out


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """Return a convolution that keeps the image size, initialised as in DALL-E: weights N(0, 1 / fan-in), bias 0."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(inputs * kernel**2) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _groups(
    widths: list[int], kernels: tuple[int, int, int, int], blocks: int, between: tuple[str, nn.Module]
) -> OrderedDict[str, nn.Module]:
    """Return group_1 .. group_G of `blocks` blocks each, from widths[g] to widths[g + 1].

    The layer `between` follows each group except the last.
    """
    groups: OrderedDict[str, nn.Module] = OrderedDict()
    count = len(widths) - 1
    for g in range(count):
        inputs = [widths[g], *[widths[g + 1]] * (blocks - 1)]
        made = (ResidualBlock(width, widths[g + 1], kernels, layers=count * blocks) for width in inputs)
        parts = OrderedDict((f"block_{i}", block) for i, block in enumerate(made, start=1))
        groups[f"group_{g + 1}"] = nn.Sequential(parts | (OrderedDict([between]) if g < count - 1 else OrderedDict()))
    return groups


class Half(nn.Module):
    """The encoder or the decoder: a stack of layers under DALL-E's names."""

    def __init__(self, first: nn.Module, groups: OrderedDict[str, nn.Module], last: nn.Module) -> None:
        super().__init__()
        output = nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", last)]))
        self.blocks = nn.Sequential(OrderedDict([("input", first), *groups.items(), ("output", output)]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer."""
        out: Tensor = self.blocks(x)
        return out


def encoder(cfg: DVAEConfig) -> Half:
    """Return the network from mapped pixels (B, 3, S, S) to the logits of codes (B, P, h, w)."""
    widths = [cfg.width, *(cfg.width * 2**g for g in range(cfg.groups))]
    groups = _groups(widths, (3, 3, 3, 1), cfg.blocks, ("pool", nn.MaxPool2d(2)))
    return Half(conv(3, cfg.width, 7), groups, conv(widths[-1], cfg.codes, 1))


def decoder(cfg: DVAEConfig) -> Half:
    """Return the network from code weights (B, P, h, w) to parameters (B, 3 or 6, S, S) of the pixel distribution."""
    widths = [cfg.decoder_input, *(cfg.width * 2**g for g in reversed(range(cfg.groups)))]
    groups = _groups(widths, (1, 3, 3, 3), cfg.blocks, ("upsample", nn.Upsample(scale_factor=2, mode="nearest")))
    return Half(
        conv(cfg.codes, cfg.decoder_input, 1), groups, conv(cfg.width, 6 if cfg.loss == "logit_laplace" else 3, 1)
    )


class Output(NamedTuple):
    """Outputs that the loss needs."""

    logits: Tensor  # (B, P, h, w)
    pixels: Tensor  # (B, 3 or 6, S, S)


class DVAE(nn.Module):
    """Encoder and decoder with a relaxed choice of codes between them."""

    def __init__(self, cfg: DVAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder, self.decoder = encoder(cfg), decoder(cfg)

    def forward(self, pixels: Tensor, tau: Tensor) -> Output:
        """Return logits and reconstruction of mapped pixels (B, 3, S, S).

        Codes are drawn from the Gumbel-softmax at temperature tau (0-d).
        """
        logits = self.encoder(pixels)
        noise = -torch.empty_like(logits, dtype=torch.float32).exponential_().log()
        soft = ((logits.float() + noise) / tau).softmax(dim=1)
        return Output(logits, self.decoder(soft.to(logits.dtype)))


def reconstruction_loss(output: Tensor, pixels: Tensor, kind: Literal["logit_laplace", "mse"]) -> Tensor:
    """Return the mean reconstruction loss of mapped pixels (B, 3, S, S), float32.

    "logit_laplace": negative log-likelihood (appendix A.3); "mse": squared error.
    """
    out = output.float()
    if kind == "mse":
        return F.mse_loss(out.sigmoid(), pixels)
    mean, log_scale = out.chunk(2, dim=1)
    nll = (pixels.logit() - mean).abs() * (-log_scale).exp() + log_scale + (2 * pixels * (1 - pixels)).log()
    return nll.mean()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Return the mean over cells of KL(q || uniform) in nats, float32, for logits (B, P, h, w).

    It is 0 if all codes are equally likely.
    """
    log_q = logits.float().log_softmax(dim=1)
    return (log_q.exp() * log_q).sum(dim=1).mean() + math.log(logits.shape[1])


class DVAETokenizer(ImageTokenizer):
    """An autoencoder as a tokenizer: the most likely code of each cell, and images from codes.

    The results do not depend on autocast. Without a decoder (DALL-E also released the encoder separately) each code is
    drawn in an arbitrary colour.
    """

    palette: Tensor  # (P, 3)

    def __init__(self, cfg: DVAEConfig, encoder: Half, decoder: Half | None) -> None:
        super().__init__()
        self.codes, self.stride = cfg.codes, cfg.stride
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer(
            "palette", torch.rand(cfg.codes, 3, generator=torch.Generator().manual_seed(0)), persistent=False
        )

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        """Return the codes (B, h, w) int64 of a view (B, 3, S, S) uint8."""
        with exact(view.device):
            codes: Tensor = self.encoder(map_pixels(view)).argmax(dim=1)
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the images (B, 3, S, S) in [0, 1] of codes (B, h, w)."""
        if self.decoder is None:
            return F.interpolate(self.palette[codes].permute(0, 3, 1, 2), scale_factor=self.stride)
        chosen = F.one_hot(codes, self.codes).permute(0, 3, 1, 2)
        with exact(codes.device):
            return unmap_pixels(self.decoder(chosen.to(self.palette.dtype)).float()[:, :3].sigmoid())
