"""Attention maps beside their images. Legend: B images of (3, H, W), R heads, h x w patches."""

from __future__ import annotations

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor


def attention_rows(images: Tensor, maps: Tensor) -> Tensor:
    """Return the panels (B, 2 + R, 3, H, W) in [0, 1]: image | mean over heads on top of the image | map of each head.

    Args:
        images: (B, 3, H, W) uint8.
        maps: (B, R, h, w). Each map is scaled to its own maximum.
    """
    shown = images.float() / 255
    enlarged = F.interpolate(
        torch.cat([maps.mean(dim=1, keepdim=True), maps], dim=1), size=shown.shape[2:], mode="nearest"
    )
    heat = _colours(enlarged / enlarged.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12))
    grey = shown.mean(dim=1, keepdim=True).expand_as(shown)
    return torch.cat([shown[:, None], (0.4 * grey + 0.6 * heat[:, 0])[:, None], heat[:, 1:]], dim=1)


def _colours(values: Tensor) -> Tensor:
    """Return colours (B, K, 3, H, W) for values (B, K, H, W) in [0, 1], from matplotlib's "inferno"."""
    table = torch.from_numpy(matplotlib.colormaps["inferno"](range(256))[:, :3]).float()
    return table[(values * 255).round().long()].permute(0, 1, 4, 2, 3)
