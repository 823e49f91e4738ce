"""Pictures of reconstructions: original | masked | reconstruction | reconstruction with the visible patches pasted in.

Legend: B images of (3, H, W), values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from mae_transfer.core.patches import GREY, grid_of, patchify, put, take, unpatchify
from mae_transfer.disk import atomic_write
from mae_transfer.interfaces import Mask

GAP = 4  # pixels between the panels of a sheet
HEADER = 20  # pixels above the panels for their titles
PANELS = ("original", "masked", "prediction", "visible pasted in")


def draw_panels(images: Tensor, reconstruction: Tensor, mask: Mask) -> Tensor:
    """Return the four panels of each image, (B, 4, 3, H, W) in [0, 1]; their titles are PANELS.

    Args:
        images: (B, 3, H, W) uint8.
        reconstruction: (B, 3, H, W) in [0, 1], with predictions in the hidden patches (Target.decode). The third panel
            shows it as it is.
        mask: the visible and hidden patches.
    """
    original = images.to(reconstruction) / 255
    patch = round((images.shape[2] * images.shape[3] / (mask.ids_keep.shape[1] + mask.ids_masked.shape[1])) ** 0.5)
    grid = grid_of((images.shape[2], images.shape[3]), patch)
    patches = patchify(original, patch)
    hidden = mask.ids_masked
    masked = put(torch.full_like(take(patches, hidden), GREY), hidden, into=patches)
    pasted = put(take(patchify(reconstruction, patch), hidden), hidden, into=patches)
    shown = [original, *(unpatchify(values, grid, channels=images.shape[1]) for values in (masked, pasted))]
    return torch.stack([shown[0], shown[1], reconstruction, shown[2]], dim=1)


def save_sheet(path: Path, rows: Tensor, titles: Sequence[str], *, enlarge_to: int = 128) -> None:
    """Write a PNG with one row of panels per image below their titles; nothing without images.

    Small images are enlarged by a whole factor, without interpolation.

    Args:
        rows: (B, K, C, H, W) in [0, 1]. The first three channels are shown; with one or two channels, the first in
            grey.
        titles: one per panel.
        enlarge_to: minimum height of a panel in pixels.
    """
    if not len(rows):
        return
    rows = rows[:, :, : 3 if rows.shape[2] >= 3 else 1]
    b, k, c, height, _ = rows.shape
    factor = max(1, -(-enlarge_to // height))
    panels = rows.reshape(b * k, c, *rows.shape[3:]).repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    sheet = make_grid(panels.cpu().float(), nrow=k, padding=GAP, pad_value=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (sheet * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    picture = _headed(Image.fromarray(values.numpy()), titles)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _headed(sheet: Image.Image, titles: Sequence[str]) -> Image.Image:
    """Return a sheet of equally wide panels below one title each."""
    picture = Image.new("RGB", (sheet.width, sheet.height + HEADER), "white")
    picture.paste(sheet, (0, HEADER))
    write = ImageDraw.Draw(picture)
    wide = (sheet.width - GAP) / len(titles)
    for at, title in enumerate(titles):
        write.text((GAP + at * wide, GAP), title, fill="black", font=ImageFont.load_default(12))
    return picture
