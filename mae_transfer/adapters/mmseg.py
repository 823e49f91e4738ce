"""The bridge to mmsegmentation: an AdaptedBackbone inside its EncoderDecoder, with its heads. mmseg is imported here, when it is asked for.

Legend: B batch, C classes, H x W pixels, h x w a head's own resolution.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.adapters.adapted import AdaptedBackbone
from mae_transfer.arithmetic import in_full
from mae_transfer.interfaces import IGNORED

FCN_CHANNELS = 256  # of the auxiliary head (BEiT, mae_segmentation)
HeadConfig = dict[str, Any]  # an entry of mmseg's MODELS
ABSENT = (
    "Segmentation runs on mmsegmentation: pip install -e '.[segment]' (a slim container lacks what its OpenCV needs: apt-get install libgl1 "
    "libglib2.0-0 libxcb1)"
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what mmseg prints and warns of on import and on building (absent optional packages, defaults) from the terminal.

    Raises ValueError where mmseg cannot be imported, saying how to get it.
    """
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise ValueError(f"{error}. {ABSENT}") from error


def uper_head(widths: Sequence[int], classes: int, *, channels: int, dropout: float = 0.1) -> HeadConfig:
    """Return UPerHead over the whole pyramid, as BEiT and mae_segmentation have it (their channels are the encoder's width)."""
    return {
        "type": "UPerHead", "in_channels": list(widths), "in_index": list(range(len(widths))), "pool_scales": (1, 2, 3, 6), "channels": channels,
        **_shared(classes, dropout=dropout, weight=1.0),
    }  # fmt: skip


def fcn_head(
    widths: Sequence[int], classes: int, *, weight: float = 0.4, level: int = 2, dropout: float = 0.1
) -> HeadConfig:
    """Return the auxiliary head, one 3x3 convolution on a level (0-based) of the pyramid, its loss times `weight`."""
    return {
        "type": "FCNHead", "in_channels": widths[level], "in_index": level, "channels": FCN_CHANNELS, "num_convs": 1, "concat_input": False,
        **_shared(classes, dropout=dropout, weight=weight),
    }  # fmt: skip


def linear_head(widths: Sequence[int], classes: int) -> HeadConfig:
    """Return one linear layer per pixel on all levels, side by side at the first one's size."""
    return {
        "type": "FCNHead", "in_channels": list(widths), "in_index": list(range(len(widths))), "input_transform": "resize_concat",
        "channels": sum(widths), "num_convs": 0, "concat_input": False, **_shared(classes, dropout=0.0, weight=1.0),
    }  # fmt: skip


def _shared(classes: int, *, dropout: float, weight: float) -> HeadConfig:
    # BN becomes SyncBN where the model's assembly synchronises it; ignored pixels count in the mean's denominator, as in every published recipe
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight, "avg_non_ignore": False}
    return {
        "num_classes": classes, "out_channels": classes, "norm_cfg": {"type": "BN"}, "dropout_ratio": dropout, "align_corners": False,
        "ignore_index": IGNORED, "loss_decode": loss,
    }  # fmt: skip


class Bridge(nn.Module):
    """An AdaptedBackbone as mmseg takes it: a tuple of maps. It has no `init_weights`, which mmseg would call over loaded weights."""

    def __init__(self, pyramid: AdaptedBackbone) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the levels, finest first, of normalised RGB images (B, 3, H, W)."""
        return tuple(self.pyramid(images).values())


def encoder_decoder(pyramid: AdaptedBackbone, decode: HeadConfig, auxiliary: HeadConfig | None = None) -> Any:
    """Return mmseg's EncoderDecoder around a pyramid, its heads initialised as mmseg does; the pyramid's weights stay what they are.

    It has no data preprocessor's normalisation: it takes normalised RGB, in this suite's order, and no BGR.
    The heads' last layers compute in float32.
    """
    with quiet():
        import mmseg.models  # noqa: F401  # fills the registry
        from mmseg.models.segmentors import EncoderDecoder

        net = EncoderDecoder(
            backbone={"type": lambda: Bridge(pyramid)},
            decode_head=decode,
            auxiliary_head=auxiliary,
            train_cfg={},
            test_cfg={"mode": "whole"},
        )
        for head in filter(None, (net.decode_head, getattr(net, "auxiliary_head", None))):
            head.init_weights()
            in_full(head.conv_seg)
    return net


class Segmenter(nn.Module):
    """mmseg's EncoderDecoder as the suite's loop takes it: images in, logits out, losses apart.

    mmseg's own `loss` computes an accuracy by boolean masks at every step, for which the device is waited for; `accuracy` is asked at log steps.
    """

    def __init__(self, net: Any, *, frozen: bool = False) -> None:
        """Take an EncoderDecoder of `encoder_decoder`; frozen: its backbone (not the adapter) computes as in evaluation, never trains."""
        super().__init__()
        self.net, self.frozen = net, frozen
        if frozen:
            self.encoder.requires_grad_(False).eval()

    @property
    def pyramid(self) -> AdaptedBackbone:
        """The backbone with its adapter."""
        return self.net.backbone.pyramid  # type: ignore[no-any-return]

    @property
    def encoder(self) -> nn.Module:
        """The backbone alone."""
        assert isinstance(self.pyramid.backbone, nn.Module)
        return self.pyramid.backbone

    def heads(self) -> list[Any]:
        """Return the decode head, and behind it the auxiliary one where there is one."""
        return [self.net.decode_head, *([self.net.auxiliary_head] if self.net.with_auxiliary_head else [])]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return each head's logits, (B, C, h, w) float32, for normalised RGB images (B, 3, H, W); in evaluation the decode head's alone."""
        features = self.net.extract_feat(images)
        return tuple(head(features) for head in (self.heads() if self.training else [self.net.decode_head]))

    def losses(self, logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return each head's weighted loss by name, "decode" and "aux", for labels (B, H, W); as mmseg computes them, without a wait."""
        truth = labels.long()
        named = zip(("decode", "aux"), self.heads(), logits, strict=False)
        return {name: head.loss_decode(upscale(each, truth), truth, ignore_index=IGNORED) for name, head, each in named}

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, as the backbone counts them; adapter and heads come after. ValueError for an unknown name."""
        part = name.removeprefix("net.")
        if part.startswith("backbone.pyramid."):
            return self.pyramid.layer_of(part.removeprefix("backbone.pyramid."))
        if part.startswith(("decode_head.", "auxiliary_head.")):
            return self.pyramid.backbone.depth + 1
        raise ValueError(f"{name!r} is no parameter of this segmenter")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's blocks in the backward pass; ValueError where the encoder cannot."""
        self.pyramid.set_grad_checkpointing(enable)


def upscale(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (B, C, h, w) at the size of labels (B, H, W)."""
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of the pixels with a label that logits (B, C, h, w) get right, 0-d, without a wait for the device."""
    right, counted = upscale(logits, labels).argmax(dim=1) == labels, labels != IGNORED
    return (right & counted).sum() / counted.sum().clamp(min=1)
