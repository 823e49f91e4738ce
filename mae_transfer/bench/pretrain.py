"""The benchmark `pretrain`: our training step and those of the masked autoencoders in other libraries."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mae_transfer.bench.harness import Build, Entry, Row, race
from mae_transfer.bench.peers import lightly_mae, transformers_mae
from mae_transfer.bench.work import Mode, Work
from mae_transfer.core.masks import Random
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.seeding import fold
from mae_transfer.targets import Frame, NormPixel

OURS = "mae_transfer"


class _Step(nn.Module):
    """The loss of a loader's batch: uint8 images with masks."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        encoder = ViTConfig.model_validate({"size": work.size, "patch": work.patch, "image_size": work.image})
        self.target = NormPixel(Frame(work.patch, encoder.grid(), IMAGENET))
        self.mae = MAE(MAEConfig(encoder=encoder), self.target.dim)

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile the model but not the target, as the task does."""
        self.mae.compile()

    def forward(self, batch: Batch, mask: Mask) -> Tensor:
        truth = self.target(batch, mask.ids_masked)
        return self.target.loss(self.mae(normalize(batch.image), mask), truth).mean()


def ours(work: Work) -> Entry:
    """Build this project's step."""
    step = _Step(work)
    sampler, grid = Random(ratio=work.mask_ratio), step.mae.encoder.grid
    orders = np.stack([sampler(grid, np.random.default_rng(fold(0, "sample", index))) for index in range(work.batch)])
    mask = Mask(
        *(
            ids.contiguous().to(work.device)
            for ids in torch.from_numpy(orders).tensor_split([sampler.visible(grid)], dim=1)
        )
    )
    images = torch.randint(256, (work.batch, 3, work.image, work.image), dtype=torch.uint8, device=work.device)
    return Entry(step, (Batch(images, (), mask, None, torch.arange(work.batch)), mask))


CONTESTANTS: dict[str, Build] = {OURS: ours, "transformers": transformers_mae, "lightly + timm": lightly_mae}


def run(
    work: Work, *, modes: Sequence[Mode], rounds: int, steps: int, contestants: Mapping[str, Build] = CONTESTANTS
) -> list[dict[str, Any]]:
    """Time the contestants and return one record per contestant and mode, for a table or JSON."""
    rows = race(contestants, modes, work, rounds=rounds, steps=steps)
    peak = max((row.measures.matmul_flops_per_s for row in rows if row.measures), default=0.0)
    return [record(row, rows, work, peak) for row in rows]


def record(row: Row, rows: Sequence[Row], work: Work, peak: float) -> dict[str, Any]:
    """Return the figures of one row.

    The ratios are medians over rounds of this row's images/s to those of the faster peer in the same round.
    """
    if row.measures is None:
        return {"name": row.name, "mode": row.mode, "failure": row.failure}
    speed = statistics.median(row.images_per_s)
    flops_per_image = row.measures.flops / work.batch
    return {
        "name": row.name,
        "mode": row.mode,
        "images_per_s": speed,
        "images_per_s_range": [min(row.images_per_s), max(row.images_per_s)],
        "images_per_s_rounds": list(row.images_per_s),
        "ratio_to_faster_peer": {
            mode: ratio(row, peer) for mode in ("eager", "compiled") if (peer := faster_peer(rows, mode))
        },
        "peak_memory_gib": row.measures.peak_gib,
        "gflops_per_image": flops_per_image / 1e9,
        "share_of_matmul_peak": speed * flops_per_image / peak,
        "matmul_peak_gflops_per_s": peak / 1e9,
        "loss": row.measures.loss,
    }


def faster_peer(rows: Sequence[Row], mode: str) -> Row | None:
    """Return the fastest row of a mode that is not ours; None if no peer ran."""
    peers = [row for row in rows if row.mode == mode and row.name != OURS and row.measures]
    return max(peers, key=lambda row: statistics.median(row.images_per_s), default=None)


def ratio(row: Row, peer: Row) -> float:
    """Return the median over rounds of the ratio of images/s."""
    return statistics.median(own / other for own, other in zip(row.images_per_s, peer.images_per_s, strict=True))
