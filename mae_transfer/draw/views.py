"""Pictures of the views of joint embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.core.patches import GREY, patchify, put, take, unpatchify
from mae_transfer.interfaces import Views


def draw_views(views: Views, patch: int) -> Tensor:
    """Return the views of each image as panels (B, G + L, 3, H, W) in [0, 1].

    Hidden patches are grey. Narrow views are enlarged.
    """
    panels = list(views.wide / 255)
    if views.hidden is not None:
        grid = (panels[0].shape[2] // patch, panels[0].shape[3] // patch)
        for number, (view, ids, weight) in enumerate(zip(panels, views.hidden.ids, views.hidden.weight, strict=True)):
            patches = patchify(view, patch)
            shown = torch.where(weight[:, :, None] > 0, GREY, take(patches, ids))
            panels[number] = unpatchify(put(shown, ids, into=patches), grid, channels=view.shape[1])
    if views.narrow is not None:
        panels += [F.interpolate(view / 255, size=panels[0].shape[2:]) for view in views.narrow]
    return torch.stack(panels, dim=1)
