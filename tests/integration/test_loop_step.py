"""One optimizer step in detail: its order, its arithmetic, what it logs, what it never does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import BATCH, QUIET, Toy, ToyBatch, batches, config, equal, go, new_state, rows, toy_step, weights

from mae_transfer.engine.dist import Dist
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step, train
from mae_transfer.engine.schedule import Rates
from mae_transfer.engine.state import TrainState, micro_steps
from mae_transfer.seeding import fold

CPU = Dist(torch.device("cpu"))
READS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"}
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}


class Reads(TorchFunctionMode):
    """Collects the calls of Python that make the host wait for a tensor's value."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += [func.__name__] if getattr(func, "__name__", "") in READS else []
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Collects the operators below Python that do the same."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += [name for name in (func.name().split(".")[0],) if name in WAITS]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "ema_decay": 0.9, "clip_norm": 0.1, "precision": "bfloat16"}]
)
def test_only_log_steps_read_a_value(tmp_path: Path, options: dict[str, Any]) -> None:
    counts: list[int] = []
    seen: list[str] = []

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        counts.append(len(seen))
        return toy_step(model, batch, step)

    cfg = config(steps=9, run=QUIET.model_copy(update={"save_every": None}), **options)
    state = new_state(cfg, CPU)
    with Reads(seen), Waits(seen):
        go(tmp_path, cfg, state, step_fn=step_fn)
    reads = [counts[(number + 1) * cfg.accumulate] - counts[number * cfg.accumulate] for number in range(8)]
    assert [count > 0 for count in reads] == [False, False, False, True] * 2


@pytest.mark.cuda  # only there can torch itself forbid synchronisation
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_no_synchronisation_on_cuda_in_a_step_that_does_not_log(tmp_path: Path, precision: Any) -> None:
    dist = Dist(torch.device("cuda", 0))
    cfg = config(
        steps=8,
        precision=precision,
        accumulate=2,
        ema_decay=0.9,
        clip_norm=1.0,
        run=QUIET.model_copy(update={"save_every": None}),
    )
    state = new_state(cfg, dist)
    pinned = [batch.pin_memory() for batch in first(batches(0, accumulate=2), 16)]

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        torch.cuda.set_sync_debug_mode("default" if step.logs or step.number == 0 else "error")
        return toy_step(model, batch, step)

    try:
        with Logger(tmp_path, steps=8, progress=False) as log:
            assert (
                train(state, pinned, step_fn, cfg, rates_at=lambda step: Rates(0.01), log=log, checkpoints=None).step
                == 8
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def first(feed: Iterator[ToyBatch], count: int) -> list[ToyBatch]:
    return [next(feed) for _ in range(count)]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_micro_steps_equal_the_whole_batch(tmp_path: Path, accumulate: int) -> None:
    def run(name: str, micro: int) -> TrainState:
        cfg = config(steps=5, accumulate=micro, clip_norm=0.1)
        return go(tmp_path / name, cfg, new_state(cfg, CPU, sgd=True, model=Toy(dropout=0.0, norm=False).double()))

    for name, value in weights(run("micro", accumulate)).items():
        torch.testing.assert_close(value, weights(run("whole", 1))[name], rtol=1e-12, atol=1e-12)


def test_a_run_of_the_loop_equals_the_plain_loop(tmp_path: Path) -> None:
    """SGD by hand: zero, backward, clip, step at the scheduled rate; the first step has rate 0."""
    cfg = config(steps=4, clip_norm=0.1, run=QUIET.model_copy(update={"log_every": 1}))
    ours = go(tmp_path, cfg, new_state(cfg, CPU, sgd=True, model=Toy(dropout=0.0)))
    model, losses = Toy(dropout=0.0), []
    for step, batch in zip(range(4), batches(0), strict=False):
        loss, _ = toy_step(model, batch, Step(step, 0, False))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        lr = 0.05 * step / 5  # within the warm-up
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * (p.grad * min(1.0, 0.1 / (norm + 1e-6)) + (0.05 if p.ndim > 1 else 0.0) * p)
                p.grad = None
        losses.append(float(loss.detach()))
    torch.testing.assert_close(weights(ours), dict(model.state_dict()))
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx(losses, rel=1e-5)
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx([0.0, 0.01, 0.02, 0.03])


def test_each_group_trains_at_its_own_share_of_the_rate(tmp_path: Path) -> None:
    cfg = config(steps=1)
    state = new_state(cfg, CPU, sgd=True)
    state.optimizer.param_groups[0]["lr_scale"] = 0.25
    with Logger(tmp_path, steps=1, progress=False) as log:
        train(state, batches(0), toy_step, cfg, rates_at=lambda step: Rates(0.8), log=log, checkpoints=None)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.2, 0.8]


def test_every_micro_step_draws_from_a_seed_of_its_own(tmp_path: Path) -> None:
    draws: dict[tuple[int, int], float] = {}
    others: set[tuple[float, float]] = set()

    def step_fn(model: nn.Module, batch: ToyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        draws[step.number, step.micro] = float(torch.rand(()))
        others.add((random.random(), float(np.random.rand())))
        return toy_step(model, batch, step)

    cfg = config(steps=3, accumulate=2, seed=5)
    for name in ("a", "b"):
        go(tmp_path / name, cfg, new_state(cfg, CPU), step_fn=step_fn)
    expected = {
        (n, m): float(torch.rand((), generator=torch.Generator().manual_seed(fold(5, "step", n, m, 0))))
        for n in range(3)
        for m in range(2)
    }
    assert draws == expected
    assert len(set(draws.values())) == 6
    assert len(others) == 6, "random and numpy draw alike in every run too: mixup uses them"


def test_a_float16_gradient_is_clipped_at_its_true_size_not_at_its_scaled_one(tmp_path: Path) -> None:
    norms = []
    for precision in ("float32", "float16"):
        cfg = config(steps=1, clip_norm=0.1, precision=precision)
        state = new_state(cfg, CPU, model=Toy(dropout=0.0))
        state.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "float16")
        go(tmp_path / precision, cfg, state)
        norms.append(rows(tmp_path / precision)[-1]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path: Path) -> None:
    def step_fn(model: nn.Module, batch: Any, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        return model(torch.ones(2, 6)).sum() * 0 + step.number, {"number": torch.tensor(float(step.number))}

    cfg = config(steps=10)
    go(tmp_path, cfg, new_state(cfg, CPU), step_fn=step_fn)
    record = rows(tmp_path)
    assert [row["step"] for row in record] == [4, 8, 10]
    assert [row["loss"] for row in record] == [1.5, 5.5, 8.5]
    assert [row["number"] for row in record] == [3.0, 7.0, 9.0]
    assert [row["epoch"] for row in record] == [0.8, 1.6, 2.0]
    assert all(row["images_per_s"] > 0 and 0 <= row["data_wait"] <= 1 and row["peak_mem_gib"] > 0 for row in record)


def test_the_state_counts_images_and_time_over_all_sittings(tmp_path: Path) -> None:
    first = go(tmp_path, config(steps=5), new_state(config(steps=5), CPU))
    trained = first.seconds.train  # a checkpoint holds these, but not the seconds of its own saving
    second = go(tmp_path, config(steps=10), new_state(config(), CPU))
    assert (first.images_seen, second.images_seen) == (5 * BATCH, 10 * BATCH)
    assert second.seconds.train > trained > 0
    assert second.extra == {"note": "kept"}


def test_checkpoints_come_by_the_clock_too(tmp_path: Path) -> None:
    cfg = config(steps=3, run=QUIET.model_copy(update={"save_every": None, "save_minutes": 1e-9, "keep_last": 9}))
    go(tmp_path, cfg, new_state(cfg, CPU))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_batches_that_end_too_soon_are_an_error(tmp_path: Path) -> None:
    cfg = config(steps=10)
    with Logger(tmp_path, steps=10, progress=False) as log, pytest.raises(ValueError, match="ended at step 3 of 10"):
        train(
            new_state(cfg, CPU),
            first(batches(0), 3),
            toy_step,
            cfg,
            rates_at=lambda step: Rates(0.1),
            log=log,
            checkpoints=None,
        )


def test_a_fresh_run_does_not_mix_with_the_checkpoints_of_an_earlier_one(tmp_path: Path) -> None:
    go(tmp_path, config(steps=5), new_state(config(steps=5), CPU))
    with (
        Logger(tmp_path / "other", steps=5, progress=False) as log,
        pytest.raises(ValueError, match=r"step_00000005\.pt is of an earlier run"),
    ):
        train(
            new_state(config(), CPU),
            batches(0),
            toy_step,
            config(),
            rates_at=lambda step: Rates(0.1),
            log=log,
            checkpoints=tmp_path / "checkpoints",
        )


def test_a_float16_step_that_overflows_is_skipped_and_training_goes_on(tmp_path: Path) -> None:
    cfg = config(steps=6, precision="float16")
    state = new_state(cfg, CPU)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = weights(state)
    go(tmp_path, config(steps=1, precision="float16"), state)
    kept = weights(state)
    assert torch.equal(before["0.weight"], kept["0.weight"])
    assert state.scaler.get_scale() == 2.0**39


@pytest.mark.parametrize(
    ("world", "device_batch", "expected"), [(1, None, (64, 1)), (4, None, (16, 1)), (2, 8, (8, 4)), (1, 1000, (64, 1))]
)
def test_micro_steps_fill_the_global_batch_exactly(
    world: int, device_batch: int | None, expected: tuple[int, int]
) -> None:
    assert micro_steps(64, device_batch=device_batch, world=world) == expected


@pytest.mark.parametrize(("world", "device_batch", "remedy"), [
    (3, None, "set it to a multiple of 3"), (1, 7, r"change run\.device_batch"), (128, None, "start another number"),
])  # fmt: skip
def test_a_batch_that_cannot_be_divided_is_an_error(world: int, device_batch: int | None, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        micro_steps(64, device_batch=device_batch, world=world)


def test_the_same_seed_gives_the_same_run_and_the_global_generator_is_not_its_source(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        state = new_state(config(), CPU)
        torch.manual_seed(hash(name) % 1000)
        runs.append(weights(go(tmp_path / name, config(), state)))
    assert equal(*runs)
