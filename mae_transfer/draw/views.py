"""Pictures of the views of joint embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.patches import GREY, patchify, unpatchify
from mae_transfer.interfaces import Views


def draw_views(views: Views, patch: int) -> Tensor:
    """Return the views of each image as panels (B, G + L, 3, H, W) in [0, 1].

    Hidden patches are grey. Narrow views are enlarged.
    """
    wide = views.wide / 255
    count, _, channels, *size = wide.shape
    if views.hidden is not None:
        patches = patchify(wide.flatten(0, 1), patch)
        shown = patches.flatten(0, 1).index_fill(0, views.hidden.ids, GREY).view_as(patches)
        wide = unpatchify(shown, (size[0] // patch, size[1] // patch), channels=channels).unflatten(0, (count, -1))
    panels = list(wide)
    if views.narrow is not None:
        panels += [F.interpolate(view / 255, size=size) for view in views.narrow]
    return torch.stack(panels, dim=1)
