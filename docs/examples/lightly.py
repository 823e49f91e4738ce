"""MAEs trained with lightly: a timm ViT under backbone.vit in a Lightning module, next to a decoder."""

from pathlib import Path

from mae_transfer.checkpoints.layouts import EncoderWeights, as_encoder, read_tensors


def lightly(path: Path) -> EncoderWeights:
    """The encoder. timm's classifier was never trained, so it is dropped with the decoder."""
    drop = ("decoder.", "mask_token", "backbone.mask_token", "head.")
    tensors = read_tensors(path, "state_dict")
    return as_encoder(tensors, drop=drop, positions="fixed", heads={192: 3, 384: 6}, where=path)
