"""The benchmark `targets`: the pretraining step with each target, relative to pixels, in one process on one model.

Contestants differ only in the target and the last layer. They alternate, so a slow phase of the machine affects all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.bench.harness import Entry, Runner
from mae_transfer.bench.work import Mode, Work
from mae_transfer.core.masks import Random
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.patches import sides
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Batch, Mask, Target
from mae_transfer.models.dvae import DVAEConfig, DVAETokenizer, encoder
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.seeding import fold
from mae_transfer.targets import HOG, PCA, Frame, NormPixel, Pixel, Token

BASELINE = "pixel"
COMPONENTS = 96  # MAE, section 4.1
SMALL = DVAEConfig(codes=8192, groups=4, blocks=1, width=64)  # a smaller dVAE than DALL-E's


class Contestant(NamedTuple):
    """A target, its last layer, and the multiply-adds of its tokenizer per image (0 without a tokenizer)."""

    target: Target
    head: nn.Linear
    tokenizer_macs: int


class _Step(nn.Module):
    """One MAE with a last layer for each target; `chosen` is the target in use."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        encoder_cfg = ViTConfig.model_validate({"size": work.size, "patch": work.patch, "image_size": work.image})
        frame = Frame(work.patch, encoder_cfg.grid(), IMAGENET)
        self.mae = MAE(MAEConfig(encoder=encoder_cfg), 1)
        targets = {name: build(frame) for name, build in TARGETS.items()}
        width = self.mae.cfg.decoder.dim
        self.contestants = {
            name: Contestant(target, nn.Linear(width, target.dim).to(work.device), _macs(target, work.device))
            for name, target in targets.items()
        }
        self.heads = nn.ModuleList(contestant.head for contestant in self.contestants.values())
        self.chosen = BASELINE

    def forward(self, batch: Batch, mask: Mask, views: dict[str, Tensor]) -> Tensor:
        target = self.contestants[self.chosen].target
        seen = batch._replace(views=(views[self.chosen],)) if target.views else batch
        truth = target(seen, mask.ids_masked)
        self.mae.decoder.pred = self.contestants[self.chosen].head
        return target.loss(self.mae(normalize(batch.image), mask), truth).mean()


def _token(cfg: DVAEConfig, *, cache: str | None = None) -> Callable[[Frame], Target]:
    return lambda frame: Token(
        frame, tokenizer=DVAETokenizer(cfg, encoder(cfg), None).requires_grad_(False), cache=cache
    )


def _pca(frame: Frame) -> Target:
    values = frame.patch**2 * 3
    rows, ones = torch.linalg.qr(torch.randn(values, COMPONENTS)).Q.T.contiguous(), torch.ones(COMPONENTS)
    return PCA(frame, basis=Basis(torch.zeros(values), rows, ones, ones / values, frame.patch, frame.statistics))


TARGETS: dict[str, Callable[[Frame], Target]] = {
    BASELINE: lambda frame: Pixel(frame),
    "norm_pixel": lambda frame: NormPixel(frame),
    "pca": _pca,
    "hog": lambda frame: HOG(frame),
    "token, DALL-E's encoder": _token(DVAEConfig()),
    "token, a small dVAE": _token(SMALL),
    "token, kept ids": _token(SMALL, cache="kept"),
}


def run(work: Work, *, modes: Sequence[Mode], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time `rounds` turns of `steps` steps of each target; return one record per target.

    `time_over_pixel` is the median over rounds of its time relative to the baseline's in the same round.
    """
    if list(modes) != ["eager"]:
        raise ValueError(
            "the benchmark of targets swaps the last layer between turns, which does not work with compiled code: "
            "remove --modes"
        )
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
    codes = torch.randint(SMALL.codes, (work.batch, grid[0] * grid[1]), device=work.device)
    views = {name: _view(entry.target, work) for name, entry in step.contestants.items() if entry.target.views}
    turn = Runner(
        Entry(step, (Batch(images, (), mask, codes, torch.arange(work.batch)), mask, views)), work, compiled=False
    )
    seconds: dict[str, list[float]] = {name: [] for name in step.contestants}
    for number in range(rounds + 1):
        for name in step.contestants if number % 2 else reversed(step.contestants):
            step.chosen = name
            taken = turn.seconds(steps)
            seconds[name] += [taken] if number else []  # the first round is a warm-up
    return [record(name, entry, seconds, steps * work.batch) for name, entry in step.contestants.items()]


def record(name: str, entry: Contestant, seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Return the figures of one target."""
    speeds = [images / taken for taken in seconds[name]]
    return {
        "target": name,
        "images_per_s": statistics.median(speeds),
        "images_per_s_range": [min(speeds), max(speeds)],
        "time_over_pixel": statistics.median(
            taken / base for taken, base in zip(seconds[name], seconds[BASELINE], strict=True)
        ),
        "tokenizer_gmacs_per_image": entry.tokenizer_macs / 1e9 or None,
    }


def _view(target: Target, work: Work) -> Tensor:
    size = sides(target.views[0].size)
    return torch.randint(256, (work.batch, 3, *size), dtype=torch.uint8, device=work.device)


def _macs(target: Target, device: str) -> int:
    """Move the target to the device; return the multiply-adds per image of its tokenizer, 0 if it calls none."""
    target.to(device)
    tokenizer = getattr(target, "tokenizer", None)
    if tokenizer is None or not target.views:
        return 0
    size = sides(target.views[0].size)
    with FlopCounterMode(display=False) as counter:
        tokenizer(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    return int(counter.get_total_flops()) // 2
