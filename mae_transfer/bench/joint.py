"""The benchmark `joint`: our training step and lightly's, on the same views, with the same sizes, heads and masks.

A step includes the teacher's update, as an average of the weights after the last step.

Legend: G = 2 wide and L narrow views, B batch, S pixels per side.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mae_transfer.bench.harness import Comparison, Contestant
from mae_transfer.bench.options import Workload
from mae_transfer.core.masks import ViewMask
from mae_transfer.data.crops import pack_masks
from mae_transfer.interfaces import Hidden, World
from mae_transfer.models.joint import Joint
from mae_transfer.models.vit import NORM_EPS, SIZES, ViT, ViTConfig
from mae_transfer.objectives import AnyObjective, ContrastConfig, DistillConfig

OBJECTIVES: dict[str, AnyObjective] = {
    "dino": DistillConfig(), "ibot": DistillConfig(out=8192, patches="masked"), "moco-v3": ContrastConfig(),
}  # fmt: skip
MOMENTUM, NARROW = 0.996, 8


class NormalisedViews(NamedTuple):
    """The views of a batch, normalised."""

    wide: Tensor  # (G, B, 3, S, S)
    narrow: Tensor | None  # (L, B, 3, s, s)
    hidden: Hidden | None  # of the wide views


def draw_views(work: Workload, system: str) -> NormalisedViews:
    """Return the views of a system. Narrow ones have 3/7 of the wide ones' size (96 of 224 px)."""
    side = work.image // work.patch
    small = work.patch * max(1, round(side * 3 / 7))
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (
        torch.randn(views, work.batch, 3, size, size, generator=generator).to(work.device)
        for views, size in ((2, work.image), (NARROW, small))
    )
    if system == "moco-v3":
        return NormalisedViews(wide, None, None)
    return NormalisedViews(wide, narrow, _draw_hidden(work, (side, side)) if system == "ibot" else None)


def _draw_hidden(work: Workload, grid: tuple[int, int]) -> Hidden:
    rng, mask = np.random.default_rng(0), ViewMask()
    drawn = [[mask(grid, rng) for _ in range(2)] for _ in range(work.batch)]
    return pack_masks(drawn).to(torch.device(work.device))


def build_ours(work: Workload, system: str) -> Contestant:
    """Build the step of the task `joint`."""
    cfg, views = OBJECTIVES[system], draw_views(work, system)
    encoder = ViTConfig.model_validate({
        "size": work.size, "patch": work.patch, "image_size": work.image, "positions": "learned", "antialias": False,
        "init": "dino",
    })  # fmt: skip
    vit = ViT(encoder)
    student = Joint(vit, cfg.heads(vit.dim), patches=cfg.compares, freeze_stem=system == "moco-v3").to(work.device)
    teacher, objective = ModelEmaV3(student, decay=MOMENTUM), cfg.build(World()).to(work.device)

    def loss() -> Tensor:
        teacher.update(student)
        truth = teacher.module.teach(views.wide, views.hidden)
        value = objective(student(*views), truth, views.hidden, epoch=1.0)
        objective.settle()
        return value

    return Contestant(student, loss)


def build_lightly(work: Workload, system: str) -> Contestant:
    """Build the step of lightly's documentation on a timm encoder (docs.lightly.ai, examples dino and ibot).

    It has no example of MoCo v3: the heads are those that MoCoProjectionHead documents, the loss is NTXentLoss.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of lightly's dependencies
        from lightly.models.utils import update_momentum

        student, teacher = (LIGHTLY[system](work).to(work.device) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    views = draw_views(work, system)

    def loss() -> Tensor:
        update_momentum(student, teacher, m=MOMENTUM)
        value: Tensor = student.compare(teacher, views)
        return value

    return Contestant(student, loss)


class _LightlyDINO(nn.Module):
    """An encoder, a head and the loss."""

    def __init__(self, work: Workload) -> None:
        from lightly.loss import DINOLoss

        super().__init__()
        self.encoder, self.head = _timm_encoder(work), _lightly_head(work, OBJECTIVES["dino"])
        self.criterion: Any = DINOLoss(OBJECTIVES["dino"].out)

    def forward(self, view: Tensor) -> Any:
        return self.head(self.encoder(view))

    def compare(self, teacher: _LightlyDINO, views: NormalisedViews) -> Any:
        assert views.narrow is not None
        with torch.no_grad():
            truth = [teacher(view) for view in views.wide]
        return self.criterion(truth, [self(view) for view in (*views.wide, *views.narrow)])


class _LightlyIBOT(nn.Module):
    """An encoder with a mask token, a head for images and patches, and both losses."""

    def __init__(self, work: Workload) -> None:
        from lightly.loss import DINOLoss, IBOTPatchLoss
        from lightly.models.modules import MaskedVisionTransformerTIMM

        super().__init__()
        self.head = _lightly_head(work, OBJECTIVES["ibot"])
        self.encoder: Any = MaskedVisionTransformerTIMM(
            _timm_encoder(work), antialias=False, pos_embed_initialization="skip"
        )
        self.on_images: Any = DINOLoss(OBJECTIVES["ibot"].out)
        self.on_patches: Any = IBOTPatchLoss(OBJECTIVES["ibot"].out, teacher_temp=0.04)

    def compare(self, teacher: _LightlyIBOT, views: NormalisedViews) -> Any:
        assert views.narrow is not None
        assert views.hidden is not None
        wide, narrow = views.wide.flatten(0, 1), views.narrow.flatten(0, 1)
        side = wide.shape[2] // self.encoder.vit.patch_embed.patch_size[0]
        blocks = torch.zeros(len(wide) * side * side, dtype=torch.bool, device=wide.device)
        blocks = blocks.index_fill(0, views.hidden.ids, True).view(len(wide), side, side)
        mask = F.pad(blocks.flatten(1), (1, 0))
        with torch.no_grad():
            found = teacher.encoder.encode(wide)
            truth, hidden_truth = teacher.head(found[:, 0]), teacher.head(found[mask])
        found = self.encoder.encode(wide, mask=mask)
        image, hidden = self.head(found[:, 0]), self.head(found[mask])
        images = [*image.chunk(2), *self.head(self.encoder.encode(narrow)[:, 0]).chunk(NARROW)]
        return self.on_images(truth.chunk(2), images) + self.on_patches(hidden_truth, hidden, blocks)


class _LightlyMoCo(nn.Module):
    """An encoder with a frozen stem, a projector and a predictor, and the loss."""

    def __init__(self, work: Workload) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        super().__init__()
        self.encoder = _timm_encoder(work)
        self.encoder.patch_embed.requires_grad_(False)
        self.projector: Any = MoCoProjectionHead(SIZES[work.size][0], 4096, 256, num_layers=3, batch_norm=True)
        self.predictor: Any = MoCoProjectionHead(256, 4096, 256, num_layers=2, batch_norm=True)
        self.criterion: Any = NTXentLoss(temperature=0.2)

    def compare(self, teacher: _LightlyMoCo, views: NormalisedViews) -> Any:
        with torch.no_grad():
            first, second = (teacher.projector(teacher.encoder(view)) for view in views.wide)
        mine, other = (self.predictor(self.projector(self.encoder(view))) for view in views.wide)
        return self.criterion(mine, second) + self.criterion(other, first)


LIGHTLY: dict[str, Callable[[Workload], Any]] = {
    "dino": _LightlyDINO, "ibot": _LightlyIBOT, "moco-v3": _LightlyMoCo,
}  # fmt: skip


def _lightly_head(work: Workload, cfg: Any) -> Any:
    from lightly.models.modules import DINOProjectionHead

    return DINOProjectionHead(SIZES[work.size][0], cfg.hidden, cfg.bottleneck, cfg.out)


def _timm_encoder(work: Workload) -> Any:
    """Return a ViT of timm whose output is the class token, for images of any size."""
    from timm.models.vision_transformer import VisionTransformer

    dim, depth, heads = SIZES[work.size]
    return VisionTransformer(
        work.image, work.patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0, global_pool="token",
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS), dynamic_img_size=True,
    )  # fmt: skip


COMPARISONS = {
    system: Comparison(
        {
            "mae_transfer": partial(build_ours, system=system),
            "lightly + timm": partial(build_lightly, system=system),
        },
        "ratio_to_faster_peer",
    )
    for system in OBJECTIVES
}
