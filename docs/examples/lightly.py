"""MAEs trained with lightly: a timm ViT under backbone.vit in a Lightning module, next to a decoder."""

from pathlib import Path

from mae_transfer.checkpoints.files import read
from mae_transfer.checkpoints.layouts import Found, found
from mae_transfer.checkpoints.names import core, unwrap


def lightly(path: Path) -> Found:
    """The encoder. timm's classifier was never trained, so it is dropped with the decoder."""
    tensors = core(unwrap(read(path), "state_dict", where=path), where=path)
    drop = ("decoder.", "mask_token", "backbone.mask_token", "head.")
    return found(tensors, drop=drop, positions="fixed", heads={192: 3, 384: 6}, where=path)
