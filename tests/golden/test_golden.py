"""The committed first 20 losses of a fixed-seed float64 run. A refactor must not change them.

A change that should move them explains why and replaces the file.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_transfer.core.masks import Random
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import AdamW, param_groups
from mae_transfer.engine.schedule import Schedule, lr_at
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import Frame, NormPixelConfig
from mae_transfer.tasks.pretrain import mae_loss

DECODERS = {
    "mae": DecoderConfig(depth=2, dim=24, heads=4),
    "cross_mae": DecoderConfig(kind="cross", share=0.5, depth=2, dim=24, heads=4),
}
STEPS = 20


def batch(step: int, predicted: int | None) -> Batch:
    rng = np.random.default_rng(step)
    waves = np.sin(
        rng.uniform(0, 0.6, (4, 3, 1, 1)) * np.arange(32)[:, None] + rng.uniform(0, 0.6, (4, 1, 1, 1)) * np.arange(32)
    )
    ids = torch.from_numpy(np.stack([Random()((4, 4), rng) for _ in range(4)]))
    drawn = None if predicted is None else ids[:, -predicted:]
    mask = Mask(ids[:, :4], ids[:, 4:], drawn)
    return Batch(torch.from_numpy((waves * 127 + 128).astype(np.uint8)), (), mask, None, torch.arange(4))


def losses(decoder: DecoderConfig) -> list[float]:
    torch.manual_seed(0)
    encoder = ViTConfig(size=None, dim=32, depth=3, heads=4, patch=8, image_size=32, drop_path=0.1)
    target = NormPixelConfig().build(Frame(8, (4, 4), IMAGENET))
    model = MAE(MAEConfig(encoder=encoder, decoder=decoder), target.dim)
    optimizer = AdamW().build(param_groups(model, weight_decay=0.05, no_decay=()), lr=3e-3)
    seen = []
    for number in range(STEPS):
        torch.manual_seed(number)
        at = Step(number, 0, False)
        loss, _ = mae_loss(model, batch(number, decoder.predicted(12)), at, target=target, statistics=IMAGENET)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(number, schedule=Schedule(warmup_epochs=1), peak=3e-3, steps=STEPS, steps_per_epoch=5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.skipif(
    torch.__version__ < (2, 11),
    reason="torch 2.6 draws other truncated normal and Bernoulli numbers from the same seed",
)
@pytest.mark.parametrize("name", DECODERS)
def test_the_first_losses_are_the_committed_ones(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        golden = json.loads(Path(__file__).with_name(f"{name}_losses.json").read_text())
        assert losses(DECODERS[name]) == pytest.approx(golden, rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
