"""Where a backbone looks: attention maps of any encoder that calls torch's fused attention (this suite's and timm's do).

Legend: B images, R heads, L tokens, T leading tokens, N = h * w patches in raster order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mae_transfer import checkpoints
from mae_transfer.config import Spec
from mae_transfer.core.normalize import normalize
from mae_transfer.core.patches import grid_of, sides
from mae_transfer.data import DataConfig, Spread, Unreadable, evaluation_views, open_source
from mae_transfer.draw.attention import attention_rows
from mae_transfer.draw.reconstructions import save_sheet
from mae_transfer.engine.dist import Dist
from mae_transfer.models.vit import ViT
from mae_transfer.tasks.sweep import pass_over
from mae_transfer.tasks.workdir import WorkDir


class Recorder(TorchFunctionMode):
    """While entered, keeps the attention weights (B, R, L, L) of every call of scaled_dot_product_attention, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scale = options.get("scale") or query.shape[-1] ** -0.5
            logits = query @ key.transpose(-2, -1) * scale
            bias = options.get("attn_mask")
            self.weights.append((logits if bias is None else logits + bias).softmax(dim=-1))
        return func(*args, **options)


@torch.no_grad()
def attention(backbone: torch.nn.Module, images: Tensor, grid: tuple[int, int], *, block: int = -1) -> Tensor:
    """Return what is looked at in block `block`, (B, R, h, w), summing to 1 at most: by the class token, or by all patches where there is none.

    Raises:
        ValueError: the backbone does not call torch's fused attention there, or attends within windows.
    """
    with Recorder() as recorder:
        backbone(images)
    patches = grid[0] * grid[1]
    try:
        weights = recorder.weights[block]
    except IndexError:
        made = f"{type(backbone).__name__} made {len(recorder.weights)} calls of torch's fused attention"
        raise ValueError(f"{made}; there is no map {block}") from None
    leading = weights.shape[-1] - patches
    if weights.shape[0] != len(images) or not 0 <= leading <= 8:
        raise ValueError(
            f"map {block} is {tuple(weights.shape)}, which is not over {patches} patches: the backbone attends within windows or pools"
        )
    looked = weights[:, :, 0, leading:] if leading else weights.mean(dim=2)
    maps: Tensor = looked.unflatten(2, grid)
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
    """Draw image | mean over heads | each head, for up to `most` images of a folder; return the sheet's path.

    Args:
        reference: any backbone (checkpoints.load), or the work dir of a pretraining run.
        size: pixels per side, or height and width, that the backbone sees; None: what it was made for.
        block: whose attention, 0-based; negative from the end.
    """
    folder = WorkDir(Path(reference))
    loaded = checkpoints.load(
        str(folder.backbone) if folder.backbone.is_file() else reference, changes={"image_size": size} if size else {}
    )
    backbone = loaded.backbone
    shown = size or (backbone.cfg.image_size if isinstance(backbone, ViT) else 224)
    grid = grid_of(sides(shown), backbone.patch)
    source = open_source(Spec.model_validate({"name": "folder", "root": str(images), "labelled": False}), None)
    view = evaluation_views(DataConfig(size=shown))
    rows = []
    for batch in pass_over(
        Spread(source, most), view, Dist(torch.device("cpu")), batch=16, workers=0, unreadable=Unreadable(limit=0)
    ):
        maps = attention(backbone, normalize(batch.image, loaded.statistics), grid, block=block)
        rows.append(attention_rows(batch.image, maps))
    path = out / "attention.png"
    save_sheet(path, torch.cat(rows))
    return path
