"""The features of a frozen network (MaskFeat, arXiv 2112.09133, table 1; data2vec's normalisation).

Legend: B batch, N = h * w patches, M requested patches, P = D width of the teacher.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.bounds import Sides
from mae_transfer.core.normalize import normalize
from mae_transfer.core.patches import paint, sides, size_of, take
from mae_transfer.interfaces import Batch, Target, ViewSpec
from mae_transfer.targets.frame import Files, Frame, TargetConfig, Teacher


class FeatureConfig(TargetConfig):
    """The last feature map of a frozen teacher after its final norm, one feature per patch.

    If the map's grid differs from the encoder's (a patch of 14 px, a stride of 32), it is resized to the encoder's
    grid, bilinear and antialiased.
    """

    name: Literal["feature"] = "feature"
    teacher: str
    """The teacher: a backbone, as in --backbone."""
    loss: Literal["smooth_l1", "cosine"] = "smooth_l1"
    """Distance: "smooth_l1" between the values, or "cosine": 1 - cosine similarity."""
    scale: Literal["layer", "unit", "none"] = "layer"
    """Scale of each feature: "layer" normalises it to mean 0 and variance 1 (data2vec), "unit" to length 1, "none"
    keeps it."""
    size: Sides | None = None
    """Image size of the teacher's own view: pixels per side, or (height, width), with the aspect ratio of the encoder's
    image. None: the teacher uses the encoder's image."""

    def build(self, frame: Frame, files: Files) -> Feature:
        return Feature(frame, files.teacher(self.teacher), self)


class Feature(Target):
    """The target of FeatureConfig."""

    def __init__(self, frame: Frame, teacher: Teacher, cfg: FeatureConfig) -> None:
        super().__init__()
        size = cfg.size
        height, width = (side * frame.patch for side in frame.grid)
        if len(teacher.statistics.mean) != len(frame.statistics.mean):
            raise ValueError(
                f"target.teacher has {len(teacher.statistics.mean)} channels and the encoder "
                f"{len(frame.statistics.mean)}: use a teacher with as many channels"
            )
        if size is None and (height % teacher.backbone.patch or width % teacher.backbone.patch):
            raise ValueError(
                f"the teacher's patches of {teacher.backbone.patch} px do not divide the encoder's {height} x {width} "
                f"px: set target.size = {size_of(*(side * teacher.backbone.patch for side in frame.grid))}"
            )
        if size is not None and sides(size)[0] * width != sides(size)[1] * height:
            raise ValueError(
                f"target.size = {size} must have the aspect ratio of the encoder's {height} x {width} px, so that the "
                "teacher sees the same part of the image"
            )
        self.patch, self.grid, self.statistics = frame.patch, frame.grid, teacher.statistics
        self.scale, self.distance = cfg.scale, cfg.loss
        self.views = () if size is None else (ViewSpec(size, "bicubic"),)
        self.teacher = teacher.backbone.requires_grad_(False).eval()
        self.dim = teacher.backbone.dim

    def train(self, mode: bool = True) -> Feature:
        """Set the mode, but keep the teacher in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, ids: Tensor) -> Tensor:
        """Return the features (B, M, D) float32 of patches `ids` (B, M)."""
        return take(self.features(batch), ids)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Return the features (B, N, D) float32 of all patches."""
        images = batch.views[0] if self.views else batch.image
        found = self.teacher(normalize(images, self.statistics), norm=True).maps[-1].float()
        if tuple(found.shape[2:]) != self.grid:
            found = F.interpolate(found, size=self.grid, mode="bilinear", antialias=True)
        values = found.flatten(2).transpose(1, 2)
        if self.scale == "layer":
            return F.layer_norm(values, values.shape[2:])
        return F.normalize(values, dim=2) if self.scale == "unit" else values

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each patch's features, (B, M)."""
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(pred.float(), target, dim=2)
        return F.smooth_l1_loss(pred.float(), target, reduction="none").mean(dim=2)

    def metrics(self, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the mean cosine between prediction and target."""
        return {"cosine": F.cosine_similarity(pred.float(), target, dim=2).mean()}

    def decode(self, pred: Tensor, batch: Batch, ids: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1]. The colours show the first three principal components of the features.

        The components are fitted to the true features of the batch.
        """
        truth = self.features(batch).flatten(0, 1)
        mean = truth.mean(dim=0)
        axes = torch.linalg.svd(truth - mean, full_matrices=False).Vh[:3]
        axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
        low, high = ((truth - mean) @ axes.T).aminmax(dim=0)
        colours = (((pred.float() - mean) @ axes.T - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        return paint(colours.repeat(1, 1, self.patch**2), ids, self.grid)
