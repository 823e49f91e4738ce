"""A toy run of the training loop: a small network with dropout on random numbers.

It is also a script, for runs that are killed or started by torchrun.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from mae_transfer.engine.dist import Dist, assemble, session, unwrap_model
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step, StepFn, train
from mae_transfer.engine.optim import AdamW, param_groups
from mae_transfer.engine.schedule import Rates, Schedule, lr_at
from mae_transfer.engine.state import LoopConfig, RunConfig, TrainState, micro_steps, resume
from mae_transfer.interfaces import Tensors

BATCH, SCHEDULED = 8, 10
QUIET = RunConfig(device="cpu", log_every=4, save_every=5, progress=False)


@dataclass(frozen=True)
class ToyBatch(Tensors):
    image: Tensor
    views: tuple[Tensor, ...]
    label: Tensor
    index: Tensor


class Toy(nn.Sequential):
    """(B, 6) -> (B, 2), with dropout, and a batch norm where buffers matter."""

    def __init__(self, *, dropout: float = 0.2, norm: bool = True) -> None:
        torch.manual_seed(7)
        super().__init__(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16) if norm else nn.Identity(),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(16, 2),
        )


def sample(index: int) -> Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(index), dtype=torch.float64)


def batches(
    start: int, *, accumulate: int = 1, rank: int = 0, world: int = 1, batch: int = BATCH
) -> Iterator[ToyBatch]:
    """Endless micro-batches from step `start`; step s holds samples s * batch + 0..batch-1 for any number of ranks."""
    share = batch // world
    micro = share // accumulate
    step = start
    while True:
        for m in range(accumulate):
            first = step * batch + rank * share + m * micro
            image = torch.stack([sample(index) for index in range(first, first + micro)])
            yield ToyBatch(image, (image[:, :2],), image[:, 2:4].tanh(), torch.arange(first, first + micro))
        step += 1


def toy_step(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    pred = model(batch.image.to(next(model.parameters()).dtype))
    loss = (
        (pred.float() - batch.label.float()).square().mean()
        if pred.dtype != torch.float64
        else (pred - batch.label).square().mean()
    )
    return loss, ({"spread": pred.detach().float().std()} if step.logs else {})


def config(*, steps: int = 10, run: RunConfig = QUIET, **options: Any) -> LoopConfig:
    return LoopConfig(steps=steps, steps_per_epoch=5, global_batch=BATCH, run=run, **options)


def new_state(
    cfg: LoopConfig, dist: Dist, *, sgd: bool = False, model: nn.Module | None = None, digest: str = "d"
) -> TrainState:
    model = assemble(Toy() if model is None else model, dist=dist, compile=cfg.run.compile)
    groups = param_groups(unwrap_model(model), weight_decay=0.05)
    optimizer = torch.optim.SGD(groups, lr=0.1) if sgd else AdamW().build(groups, lr=0.01)
    return TrainState.create(model, optimizer, cfg, dist=dist, digest=digest, extra={"note": "kept"})


def go(
    folder: Path, cfg: LoopConfig, state: TrainState, *, step_fn: StepFn = toy_step, evaluate: Any = None
) -> TrainState:
    """Resume `state` if the folder holds a checkpoint, then train; the schedule has at least SCHEDULED steps."""
    dist = state.dist
    resume(state, folder / "checkpoints")
    rate = functools.partial(
        lr_at,
        schedule=Schedule(warmup_epochs=1.0),
        peak=0.05,
        steps=max(SCHEDULED, cfg.steps),
        steps_per_epoch=cfg.steps_per_epoch,
    )
    feed = batches(state.step, accumulate=cfg.accumulate, rank=dist.rank, world=dist.world)
    with Logger(folder, steps=cfg.steps, resumed_at=state.step, main=dist.is_main, progress=cfg.run.progress) as log:
        return train(
            state,
            feed,
            step_fn,
            cfg,
            rates_at=lambda step: Rates(rate(step)),
            log=log,
            checkpoints=folder / "checkpoints",
            evaluate=evaluate,
        )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(state: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.bare.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def slow_step(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    time.sleep(0.01)
    return toy_step(model, batch, step)


def nan_on_rank_1(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    loss, metrics = toy_step(model, batch, step)
    return loss * (float("nan") if step.number == 6 and os.environ.get("RANK") == "1" else 1.0), metrics


STEPS: dict[str, StepFn] = {"plain": toy_step, "slow": slow_step, "nan": nan_on_rank_1}


def write_slowly() -> None:
    """Let every write of a state take a while between its halves."""
    save = torch.save

    def slow_save(payload: Any, file: BinaryIO) -> None:
        whole = BytesIO()
        save(payload, whole)
        data = whole.getvalue()
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(0.2)
        file.write(data[len(data) // 2 :])

    torch.save = slow_save


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--step", choices=STEPS, default="plain")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="float64, SGD, no dropout, no batch norm, EMA, accumulation: what must not depend on the world",
    )
    parser.add_argument("--slow-writes", action="store_true")
    args = parser.parse_args()
    if args.slow_writes:
        write_slowly()
    torch.set_num_threads(1)
    with session("cpu") as dist:
        args.folder.mkdir(parents=True, exist_ok=True)
        (args.folder / f"rank{dist.rank}.pid").write_text(str(os.getpid()))
        accumulate = micro_steps(BATCH, device_batch=2 if args.exact else None, world=dist.world)[1]
        cfg = config(
            steps=args.steps,
            accumulate=accumulate,
            ema_decay=0.9 if args.exact else None,
            clip_norm=0.5 if args.exact else None,
        )
        model = Toy(dropout=0.0, norm=False).double() if args.exact else Toy()
        state = go(args.folder, cfg, new_state(cfg, dist, sgd=args.exact, model=model), step_fn=STEPS[args.step])
    print(f"rank {dist.rank} ended at step {state.step} stopped={state.stopped}", flush=True)


if __name__ == "__main__":
    main()
