"""The bridge to mmsegmentation: an AdaptedBackbone and mmseg's heads in its EncoderDecoder. mmseg is imported on use.

Legend: B batch, C classes, H x W pixels, h x w the resolution of a head.
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
from mae_transfer.interfaces import IGNORED, Backbone, Model

FCN_CHANNELS = 256  # channels of the auxiliary head (BEiT, mae_segmentation)
HeadConfig = dict[str, Any]  # config of an entry of mmseg's MODELS
ABSENT = (
    "Segmentation needs mmsegmentation: pip install -e '.[segment]' (in a slim container, OpenCV also needs: "
    "apt-get install libgl1 libglib2.0-0 libxcb1)"
)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output and warnings of mmseg during import and building (absent optional packages, defaults).

    Raises:
        ValueError: mmseg cannot be imported; the message explains the installation.
    """
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise ValueError(f"{error}. {ABSENT}") from error


def uper_head(widths: Sequence[int], classes: int, *, channels: int, dropout: float = 0.1) -> HeadConfig:
    """Return UPerHead on all levels, as in BEiT and mae_segmentation (where `channels` is the encoder's width)."""
    return {
        "type": "UPerHead", "in_channels": list(widths), "in_index": list(range(len(widths))),
        "pool_scales": (1, 2, 3, 6), "channels": channels, **_shared(classes, dropout=dropout, weight=1.0),
    }  # fmt: skip


def fcn_head(
    widths: Sequence[int], classes: int, *, weight: float = 0.4, level: int = 2, dropout: float = 0.1
) -> HeadConfig:
    """Return the auxiliary head: one 3x3 convolution on a level (0-based) of the pyramid; `weight` scales its loss."""
    return {
        "type": "FCNHead", "in_channels": widths[level], "in_index": level, "channels": FCN_CHANNELS, "num_convs": 1,
        "concat_input": False, **_shared(classes, dropout=dropout, weight=weight),
    }  # fmt: skip


def linear_head(widths: Sequence[int], classes: int) -> HeadConfig:
    """Return one linear layer per pixel on all levels, concatenated at the size of the first one."""
    return {
        "type": "FCNHead", "in_channels": list(widths), "in_index": list(range(len(widths))),
        "input_transform": "resize_concat", "channels": sum(widths), "num_convs": 0, "concat_input": False,
        **_shared(classes, dropout=0.0, weight=1.0),
    }  # fmt: skip


def _shared(classes: int, *, dropout: float, weight: float) -> HeadConfig:
    # BN becomes SyncBN when the model is assembled. Ignored pixels count in the denominator of the mean, as in every
    # published recipe.
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight, "avg_non_ignore": False}
    return {
        "num_classes": classes, "out_channels": classes, "norm_cfg": {"type": "BN"}, "dropout_ratio": dropout,
        "align_corners": False, "ignore_index": IGNORED, "loss_decode": loss,
    }  # fmt: skip


class MmsegBackbone(nn.Module):
    """An AdaptedBackbone with mmseg's interface: it returns a tuple of maps.

    It has no `init_weights`, because mmseg would call it and overwrite the loaded weights.
    """

    def __init__(self, pyramid: AdaptedBackbone) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the levels, finest first, of normalised RGB images (B, 3, H, W)."""
        return tuple(self.pyramid(images).values())


def encoder_decoder(pyramid: AdaptedBackbone, decode: HeadConfig, auxiliary: HeadConfig | None = None) -> Any:
    """Return mmseg's EncoderDecoder around a pyramid.

    Its heads have mmseg's initialisation; the weights of the pyramid do not change. It takes normalised RGB, not BGR,
    and does not normalise. The last layers of the heads compute in float32.
    """
    with quiet():
        import mmseg.models  # noqa: F401  # fills the registry
        from mmseg.models.segmentors import EncoderDecoder

        net = EncoderDecoder(
            backbone={"type": lambda: MmsegBackbone(pyramid)},
            decode_head=decode,
            auxiliary_head=auxiliary,
            train_cfg={},
            test_cfg={"mode": "whole"},
        )
        for head in filter(None, (net.decode_head, getattr(net, "auxiliary_head", None))):
            head.init_weights()
            in_full(head, "conv_seg")
    return net


class Segmenter(Model):
    """mmseg's EncoderDecoder for this package's loop: `forward` returns logits, `losses` computes the losses.

    mmseg's own `loss` computes an accuracy with boolean masks at every step, which waits for the device. Here
    `accuracy` is computed at log steps only.
    """

    def __init__(self, net: Any, *, frozen: bool = False) -> None:
        """Wrap an EncoderDecoder of `encoder_decoder`.

        frozen: the backbone, but not the adapter, is frozen and stays in eval mode.
        """
        super().__init__()
        self.net, self.frozen = net, frozen
        if frozen:
            self.encoder.requires_grad_(False).eval()

    @property
    def pyramid(self) -> AdaptedBackbone:
        """The backbone with its adapter."""
        pyramid: AdaptedBackbone = self.net.backbone.pyramid
        return pyramid

    @property
    def encoder(self) -> Backbone:
        return self.pyramid.backbone

    def heads(self) -> list[Any]:
        """Return the decode head, then the auxiliary head if there is one."""
        return [self.net.decode_head, *([self.net.auxiliary_head] if self.net.with_auxiliary_head else [])]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (B, C, h, w) float32 of each head for normalised RGB images (B, 3, H, W).

        In eval mode only the decode head runs.
        """
        features = self.net.extract_feat(images)
        return tuple(head(features) for head in (self.heads() if self.training else [self.net.decode_head]))

    def losses(self, logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses "decode" and "aux" for labels (B, H, W), as in mmseg, without device sync."""
        truth = labels.long()
        named = zip(("decode", "aux"), self.heads(), logits, strict=False)
        return {name: head.loss_decode(upscale(each, truth), truth, ignore_index=IGNORED) for name, head, each in named}

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


def upscale(logits: Tensor, labels: Tensor) -> Tensor:
    """Resize logits (B, C, h, w) to the size of labels (B, H, W)."""
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy of logits (B, C, h, w) on the labelled pixels, 0-d, without waiting for the device."""
    correct, counted = upscale(logits, labels).argmax(dim=1) == labels, labels != IGNORED
    return (correct & counted).sum() / counted.sum().clamp(min=1)
