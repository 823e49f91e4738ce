"""The benchmark `targets`: the pretraining step with each target, relative to pixels, in one process on one model.

Contestants differ only in the target and the last layer. They alternate, so a slow phase of the machine affects all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.bench.harness import Contestant, Trainer, random_images
from mae_transfer.bench.options import Mode, Workload
from mae_transfer.bench.pretrain import draw_masks
from mae_transfer.core.normalize import IMAGENET, normalize
from mae_transfer.core.patches import sides
from mae_transfer.core.pca import Basis
from mae_transfer.interfaces import Batch, Target
from mae_transfer.models.dvae import DVAEConfig, DVAETokenizer, encoder
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import PCA, Frame, HOGConfig, NormPixelConfig, PCAConfig, PixelConfig, Token, TokenConfig

BASELINE = "pixel"
COMPONENTS = 96  # MAE, section 4.1
SMALL = DVAEConfig(codes=8192, groups=4, blocks=1, width=64)  # a smaller dVAE than DALL-E's


def _token(cfg: DVAEConfig, *, cache: str | None = None) -> Callable[[Frame], Target]:
    return lambda frame: Token(
        frame,
        DVAETokenizer(cfg, encoder(cfg), None).requires_grad_(False),
        TokenConfig(tokenizer="given", cache=cache),
    )


def _pca(frame: Frame) -> Target:
    values = frame.patch**2 * 3
    rows, ones = torch.linalg.qr(torch.randn(values, COMPONENTS)).Q.T.contiguous(), torch.ones(COMPONENTS)
    basis = Basis(torch.zeros(values), rows, ones, ones / values, frame.patch, frame.statistics)
    return PCA(frame, basis, PCAConfig(basis="given"))


TARGETS: dict[str, Callable[[Frame], Target]] = {
    BASELINE: PixelConfig().build,
    "norm_pixel": NormPixelConfig().build,
    "pca": _pca,
    "hog": HOGConfig().build,
    "token, DALL-E's encoder": _token(DVAEConfig()),
    "token, a small dVAE": _token(SMALL),
    "token, kept ids": _token(SMALL, cache="kept"),
}


def run(work: Workload, *, modes: Sequence[Mode], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time `rounds` turns of `steps` steps of each target; return one record per target.

    `time_over_pixel` is the median over rounds of its time relative to the baseline's in the same round.
    """
    if list(modes) != ["eager"]:
        raise ValueError(
            "the benchmark of targets swaps the last layer between turns, which does not work with compiled code: "
            "remove --modes"
        )
    encoder_cfg = ViTConfig.model_validate({"size": work.size, "patch": work.patch, "image_size": work.image})
    grid = encoder_cfg.grid()
    mae = MAE(MAEConfig(encoder=encoder_cfg), 1)
    targets = {name: build(Frame(work.patch, grid, IMAGENET)) for name, build in TARGETS.items()}
    heads = {name: nn.Linear(mae.cfg.decoder.dim, target.dim) for name, target in targets.items()}
    macs = {name: _count_macs(target, work.device) for name, target in targets.items()}
    codes = torch.randint(SMALL.codes, (work.batch, grid[0] * grid[1]), device=work.device)
    mask = draw_masks(work, grid)
    batch = Batch(random_images(work), (), mask, codes, torch.arange(work.batch))
    views = {name: (_draw_view(target, work),) if target.views else () for name, target in targets.items()}

    def loss(name: str) -> Tensor:
        mae.decoder.pred = heads[name]
        truth = targets[name](replace(batch, views=views[name]), mask.ids_masked)
        return targets[name].loss(mae(normalize(batch.image), mask), truth).mean()

    model = nn.ModuleList([mae, *heads.values()])
    trainer = Trainer(Contestant(model, partial(loss, BASELINE)), work, compiled=False)
    seconds: dict[str, list[float]] = {name: [] for name in targets}
    for number in range(rounds + 1):
        for name in targets if number % 2 else reversed(targets):
            taken = trainer.train(steps, partial(loss, name)).wall
            seconds[name] += [taken] if number else []  # the first round is a warm-up
    return [_describe(name, macs[name], seconds, steps * work.batch) for name in targets]


def _describe(name: str, macs: int, seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Return the figures of one target; macs: multiply-adds of its tokenizer per image."""
    speeds = [images / taken for taken in seconds[name]]
    ratios = [taken / base for taken, base in zip(seconds[name], seconds[BASELINE], strict=True)]
    return {
        "target": name,
        "images_per_s": statistics.median(speeds),
        "images_per_s_range": [min(speeds), max(speeds)],
        "time_over_pixel": statistics.median(ratios),
        "tokenizer_gmacs_per_image": macs / 1e9 or None,
    }


def _draw_view(target: Target, work: Workload) -> Tensor:
    size = sides(target.views[0].size)
    return torch.randint(256, (work.batch, 3, *size), dtype=torch.uint8, device=work.device)


def _count_macs(target: Target, device: str) -> int:
    """Move the target to the device; return the multiply-adds per image of its tokenizer, 0 if it calls none."""
    target.to(device)
    tokenizer = getattr(target, "tokenizer", None)
    if tokenizer is None or not target.views:
        return 0
    size = sides(target.views[0].size)
    with FlopCounterMode(display=False) as counter:
        tokenizer(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    return int(counter.get_total_flops()) // 2
