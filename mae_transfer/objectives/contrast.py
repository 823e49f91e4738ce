"""Contrast: a query of the student finds the key that the teacher makes of the other view, among other images' keys.

MoCo v3 (arXiv 2104.02057, algorithm 1), whose negatives are the batch, and MoBY (2105.04553; moby.py), whose negatives
are a queue. Two wide views, no narrow ones.

Legend: B images of this process, W processes, K width of query and key, Q keys of a queue.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.bounds import Factor, Few, Whole, Width
from mae_transfer.interfaces import Embedded, Heads, Hidden, Objective, World
from mae_transfer.objectives.heads import ProjectionHead
from mae_transfer.objectives.objective import ObjectiveConfig, widened


class ContrastConfig(ObjectiveConfig):
    """InfoNCE between two views."""

    name: Literal["contrast"] = "contrast"
    out: Width = 256
    """Width K of query and key."""
    hidden: Width = 4096
    """Width of the MLPs."""
    projector_layers: Few = 3
    """Layers of the projector, which student and teacher have (MoBY: 2)."""
    predictor_layers: Few = 2
    """Layers of the predictor, which only the student has."""
    bias: bool = False
    """Whether the layers of the MLPs have a bias (MoBY)."""
    last_norm: bool = True
    """Whether both MLPs end with a batch norm (MoBY: not)."""
    temperature: Factor = 0.2
    """Divides the similarities."""
    scaled: bool = True
    """Whether the loss is multiplied by 2 * temperature (MoBY: not)."""
    queue: Whole = 0
    """Keys of earlier batches that are the negatives, per view (MoBY: 4096). 0: the other images of the batch."""
    exported: Literal["average", "trained"] = "trained"
    """The encoder that is evaluated and exported: the teacher ("average") or the student ("trained")."""

    @property
    def system(self) -> str:
        return "MoBY" if self.queue else "MoCo v3"

    def heads(self, dim: int) -> Heads:
        def head(width: int, layers: int) -> ProjectionHead:
            return ProjectionHead(
                width, hidden=self.hidden, out=self.out, layers=layers, bias=self.bias, last_norm=self.last_norm
            )

        return Heads(head(dim, self.projector_layers), predictor=head(self.out, self.predictor_layers))

    def build(self, world: World) -> Contrast:
        return Contrast(self, world)

    def check(self, *, batch: int, wide: int, narrow: int, epochs: float) -> None:
        super().check(batch=batch, wide=wide, narrow=narrow, epochs=epochs)
        if wide > 2:
            raise ValueError(f"data.views.wide = {wide}: objective 'contrast' compares two wide views; set it to 2")
        if narrow:
            raise ValueError(f"data.views.narrow = {narrow}: objective 'contrast' compares two wide views; set it to 0")
        if self.queue and self.queue < batch:
            raise ValueError(
                f"objective.queue = {self.queue} is smaller than batch = {batch}: a step would replace all of it; set "
                f"a queue of at least {batch}"
            )

    def check_split(self, *, images: int, micro_steps: int, together: bool) -> None:
        if images < 2:
            raise ValueError(
                "objective 'contrast' has batch norms, and this run would have one image per forward pass: raise batch "
                "or run.device_batch, or use fewer processes"
            )
        if micro_steps > 1 and not self.queue:
            raise ValueError(
                f"objective 'contrast' compares the images of one forward pass, and this run would split its batch "
                f"into {micro_steps} micro-steps: use more devices or a larger run.device_batch, or take the negatives "
                "from a queue (objective.queue=4096)"
            )
        if not together and not self.queue:
            raise ValueError(
                "objective 'contrast' compares the images of all processes, but their batch norms are synchronised on "
                "cuda only, and statistics of each process would tell its own images apart: use one process, or take "
                "the negatives from a queue (objective.queue=4096)"
            )


class Contrast(Objective):
    """The objective of ContrastConfig. With a queue, it keeps the keys of earlier batches, newest first."""

    queue: Tensor  # (2, Q, K), of unit length; None without a queue

    def __init__(self, cfg: ContrastConfig, world: World) -> None:
        super().__init__(world)
        self.cfg = cfg
        first = F.normalize(torch.randn(2, cfg.queue, cfg.out), dim=2)
        self.register_buffer("queue", first if cfg.queue else None)

    def forward(self, student: Embedded, teacher: Embedded, hidden: Hidden | None, epoch: float) -> Tensor:
        cfg, queries, keys = self.cfg, unit(student.image), unit(teacher.image)
        if cfg.queue:
            positive = (queries * keys.flip(0)).sum(dim=2, keepdim=True)
            # flip copies, so that the queue can move before the backward pass
            negative = queries @ self.queue.flip(0).to(queries.dtype).transpose(1, 2)
            logits = torch.cat([positive, negative], dim=2)
            true = torch.zeros(queries.shape[1], dtype=torch.int64, device=queries.device)
            self.pending.append(keys)
        else:
            everyones = self.world.gather(keys.transpose(0, 1).contiguous()).transpose(0, 1)  # (2, W * B, K)
            logits = queries @ everyones.flip(0).transpose(1, 2)
            true = torch.arange(queries.shape[1], device=queries.device) + self.world.rank * queries.shape[1]
        loss = F.cross_entropy(logits.flatten(0, 1) / cfg.temperature, true.repeat(2)) * 2  # the sum of both ways
        return loss * 2 * cfg.temperature if cfg.scaled else loss

    def move(self, pending: list[Tensor]) -> None:
        keys = self.world.gather(torch.cat(pending, dim=1).transpose(0, 1).contiguous()).transpose(0, 1)
        self.queue.copy_(torch.cat([keys.to(self.queue.dtype), self.queue], dim=1)[:, : self.cfg.queue])

    def metrics(self, student: Embedded, teacher: Embedded, epoch: float) -> dict[str, Tensor]:
        """Return the share of queries whose key is the nearest of this process's keys."""
        found = (unit(student.image) @ unit(teacher.image).flip(0).transpose(1, 2)).argmax(dim=2)
        return {"accuracy": (found == torch.arange(found.shape[1], device=found.device)).float().mean()}


def unit(x: Tensor) -> Tensor:
    """Return vectors of unit length."""
    return F.normalize(widened(x), dim=-1)
