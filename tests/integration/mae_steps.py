"""Five float64 SGD steps of small MAEs on a fixed global batch, alone or under torchrun. Used by test_mae_dist.py.

Usage: python mae_steps.py OUT
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_transfer.core.masks import Random
from mae_transfer.core.normalize import IMAGENET
from mae_transfer.engine.dist import Dist, assemble, read_mean, session
from mae_transfer.engine.loop import Step
from mae_transfer.interfaces import Batch, Mask
from mae_transfer.models.mae import MAE, DecoderConfig, MAEConfig
from mae_transfer.models.vit import ViTConfig
from mae_transfer.targets import Frame, NormPixelConfig
from mae_transfer.tasks.pretrain import mae_loss

GLOBAL_BATCH = 8
DECODERS = {
    "self": DecoderConfig(depth=1, dim=16, heads=4),
    "cross": DecoderConfig(kind="cross", share=0.5, depth=2, dim=16, heads=4),
}


def share(rank: int, world: int, step: int, predicted: int | None) -> Batch:
    """Return this rank's part of global batch `step`."""
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.integers(0, 256, (GLOBAL_BATCH, 3, 16, 16), dtype=np.uint8))
    ids = torch.from_numpy(np.stack([Random()((4, 4), rng) for _ in range(GLOBAL_BATCH)]))
    mine = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    mask = Mask(ids[mine, :4], ids[mine, 4:], None if predicted is None else ids[mine, -predicted:])
    return Batch(images[mine], (), mask, None, torch.arange(GLOBAL_BATCH)[mine])


def train(decoder: DecoderConfig, dist: Dist) -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = ViTConfig(size=None, dim=32, depth=2, heads=4, patch=4, image_size=16)
    target = NormPixelConfig().build(Frame(4, (4, 4), IMAGENET))
    bare = MAE(MAEConfig(encoder=encoder, decoder=decoder), target.dim)
    model = assemble(bare, dist=dist)
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    gradients: dict[str, Tensor] = {}
    losses = []
    for number in range(5):
        optimizer.zero_grad()
        batch = share(dist.rank, dist.world, number, decoder.predicted(12))
        loss, _ = mae_loss(model, batch, Step(number, 0, False), target=target, statistics=IMAGENET)
        loss.backward()
        losses.append(read_mean({"loss": loss}, dist)["loss"])
        gradients = gradients or {name: p.grad.clone() for name, p in bare.named_parameters() if p.grad is not None}
        optimizer.step()
    return {"losses": losses, "gradients": gradients, "model": bare.state_dict()}


def main(out: str) -> None:
    torch.set_default_dtype(torch.float64)
    with session("cpu") as dist:
        found = {kind: train(decoder, dist) for kind, decoder in DECODERS.items()}
        if dist.is_main:
            torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1])
