"""The benchmark `joint`: our training step of DINO and lightly's, on the same views, with the same sizes and head.

A step includes the teacher's update, as an average of the weights after the last step.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from mae_transfer.bench.harness import Comparison, Contestant
from mae_transfer.bench.options import Workload
from mae_transfer.interfaces import World
from mae_transfer.models.joint import Joint
from mae_transfer.models.vit import NORM_EPS, SIZES, ViT, ViTConfig
from mae_transfer.objectives import DistillConfig

OBJECTIVE = DistillConfig()
MOMENTUM, NARROW = 0.996, 8


def draw_views(work: Workload) -> tuple[Tensor, Tensor]:
    """Return two wide views and NARROW views of 3/7 of their size (96 of 224 px), normalised: (V, B, 3, S, S)."""
    small = work.patch * max(1, round(work.image / work.patch * 3 / 7))
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (
        torch.randn(views, work.batch, 3, side, side, generator=generator).to(work.device)
        for views, side in ((2, work.image), (NARROW, small))
    )
    return wide, narrow


def build_ours(work: Workload) -> Contestant:
    """Build the step of the task `joint`."""
    encoder = ViTConfig.model_validate({
        "size": work.size, "patch": work.patch, "image_size": work.image, "positions": "learned", "antialias": False,
        "init": "dino",
    })  # fmt: skip
    vit = ViT(encoder)
    student = Joint(vit, OBJECTIVE.heads(vit.dim), patches=None, freeze_stem=False).to(work.device)
    teacher, objective = ModelEmaV3(student, decay=MOMENTUM), OBJECTIVE.build(World()).to(work.device)
    wide, narrow = draw_views(work)

    def loss() -> Tensor:
        teacher.update(student)
        value = objective(student(wide, narrow), teacher.module.teach(wide), None, OBJECTIVE.freeze_epochs)
        objective.settle()
        return value

    return Contestant(student, loss)


def build_lightly(work: Workload) -> Contestant:
    """Build lightly's DINO on a timm encoder, as in its documentation (docs.lightly.ai, examples/dino)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of lightly's dependencies
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import update_momentum

        dim, _, _ = SIZES[work.size]
        heads = [
            DINOProjectionHead(dim, OBJECTIVE.hidden, OBJECTIVE.bottleneck, OBJECTIVE.out).to(work.device)
            for _ in range(2)
        ]
    encoder = _timm_encoder(work)
    student, teacher = nn.Sequential(encoder, heads[0]), nn.Sequential(copy.deepcopy(encoder), heads[1])
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    criterion: Any = DINOLoss(output_dim=OBJECTIVE.out, teacher_temp=OBJECTIVE.teacher_temperature).to(work.device)
    wide, narrow = draw_views(work)

    def loss() -> Tensor:
        update_momentum(student, teacher, m=MOMENTUM)
        with torch.no_grad():
            truth = [teacher(view) for view in wide]
        found = [student(view) for view in (*wide, *narrow)]
        value: Tensor = criterion(truth, found, teacher_temp=OBJECTIVE.teacher_temperature)
        return value

    return Contestant(student, loss)


def _timm_encoder(work: Workload) -> nn.Module:
    """Return a ViT of timm whose output is the class token, for images of any size."""
    from timm.models.vision_transformer import VisionTransformer

    dim, depth, heads = SIZES[work.size]
    return VisionTransformer(
        work.image, work.patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0, global_pool="token",
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS), dynamic_img_size=True,
    ).to(work.device)  # fmt: skip


COMPARISON = Comparison({"mae_transfer": build_ours, "lightly + timm": build_lightly}, "ratio_to_faster_peer")
