"""Attention maps of any encoder that calls torch's fused attention, as those of this package and of timm do.

Legend: B images, R heads, L tokens, T leading tokens, N = h * w patches in raster order.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mae_transfer import checkpoints
from mae_transfer.core.normalize import normalize
from mae_transfer.core.patches import grid_of, sides
from mae_transfer.data import DataConfig, FolderConfig, Unreadable, evaluation_views, open_source, pick_evenly
from mae_transfer.draw.attention import attention_rows
from mae_transfer.draw.reconstructions import save_sheet
from mae_transfer.engine.dist import Dist
from mae_transfer.metrics.attention import MOST_LEADING, Recorder
from mae_transfer.models.vit import ViT
from mae_transfer.tasks.sweep import pass_over
from mae_transfer.tasks.workdir import WorkDir


@torch.no_grad()
def attention(backbone: torch.nn.Module, images: Tensor, grid: tuple[int, int], *, block: int = -1) -> Tensor:
    """Return the attention to each patch in block `block`, (B, R, h, w), with a sum of at most 1 over a map.

    It is that of the class token, or the mean over all patches if there is no class token.

    Raises:
        ValueError: the block does not call torch's fused attention, or attends within windows.
    """
    with Recorder() as recorder:
        backbone(images)
    patches = grid[0] * grid[1]
    try:
        weights = recorder.weights[block]
    except IndexError:
        count = f"{type(backbone).__name__} made {len(recorder.weights)} calls of torch's fused attention"
        raise ValueError(f"{count}, so block {block} has no attention map: give another block, or a ViT") from None
    leading = weights.shape[-1] - patches
    if weights.shape[0] != len(images) or not 0 <= leading <= MOST_LEADING:
        raise ValueError(
            f"the attention of block {block} has shape {tuple(weights.shape)}, which does not cover {patches} patches: "
            "the backbone attends within windows or pools; give a block with global attention"
        )
    over_patches = weights[:, :, 0, leading:] if leading else weights.mean(dim=2)
    maps: Tensor = over_patches.unflatten(2, grid)
    return maps


def draw_attention(
    reference: str,
    images: Path,
    *,
    out: Path,
    most: int = 16,
    size: int | tuple[int, int] | None = None,
    block: int = -1,
) -> Path:
    """Draw image | mean over heads | each head, for up to `most` images of a folder; return the path of the picture.

    Args:
        reference: any backbone (checkpoints.load), or the work dir of a pretraining run.
        size: pixels per side, or height and width, of the backbone's input. None: its own size.
        block: index of the block, 0-based; negative numbers count from the end.
    """
    folder = WorkDir(Path(reference))
    loaded = checkpoints.load(
        str(folder.backbone) if folder.backbone.is_file() else reference, changes={"image_size": size} if size else {}
    )
    backbone = loaded.backbone
    shown = size or (backbone.cfg.image_size if isinstance(backbone, ViT) else 224)
    grid = grid_of(sides(shown), backbone.patch)
    source = open_source(FolderConfig(root=str(images), labelled=False), None)
    view = evaluation_views(DataConfig(size=shown))
    rows = []
    for batch in pass_over(
        pick_evenly(source, most), view, Dist(torch.device("cpu")), batch=16, workers=0, unreadable=Unreadable(limit=0)
    ):
        maps = attention(backbone, normalize(batch.image, loaded.statistics), grid, block=block)
        rows.append(attention_rows(batch.image, maps))
    path = out / "attention.png"
    panels = torch.cat(rows)
    save_sheet(path, panels, ["image", "mean of heads", *(f"head {head}" for head in range(panels.shape[1] - 2))])
    return path
