"""The only training loop. It knows no model, no data set and no task: it receives callables; nobody else does backward, clip, step, average or save.

A step that does not log never waits for the device: its loss stays there (see Window). Every micro-step is seeded by who it is, so that a resumed run
draws what an unbroken one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import average_statistics, peak_memory_gib, seed_step
from mae_transfer.engine.interrupt import Interrupt, Stopped
from mae_transfer.engine.log import Logger
from mae_transfer.engine.state import LoopConfig, TrainState, autocast
from mae_transfer.engine.window import Window
from mae_transfer.seeding import fold


class Step(NamedTuple):
    """Where a micro-step stands."""

    number: int  # 0-based optimizer step
    micro: int  # 0-based micro-step within it
    logs: bool  # this step's metrics will be read: compute expensive ones only then


StepFn = Callable[[nn.Module, Any, Step], tuple[Tensor, dict[str, Tensor]]]
"""(assembled model, batch on the device, step) -> loss (0-d, mean over the micro-batch), {name: 0-d device tensor}."""
Evaluate = Callable[[nn.Module, int], dict[str, float]]
"""(model in eval mode: the averaged weights where there are any, completed steps) -> results; called on every rank."""


def train(
    state: TrainState,
    batches: Iterable[Any],
    step_fn: StepFn,
    cfg: LoopConfig,
    *,
    lr_at: Callable[[int], float],
    log: Logger,
    checkpoints: Path | None,
    evaluate: Evaluate | None = None,
) -> TrainState:
    """Train from `state.step` to `cfg.steps` and return the same state; `state.stopped` tells that a signal ended it early, and saved.

    Args:
        batches: micro-batches, `cfg.accumulate` per step, beginning with the first one of step `state.step`.
        lr_at: 0-based step -> learning rate, which each group's "lr_scale" multiplies.
        checkpoints: folder of the training states; None saves none.
        evaluate: called every `cfg.evaluate_every` steps and at the end; the last results stay in `state.metrics`.
    Raises:
        NonFiniteLoss: names the step, its lr and its samples; what is on disk stays good.
        ValueError: the batches end before the steps do, or a fresh state meets the checkpoints of an earlier run.
    """
    if checkpoints is not None and state.step == 0 and (earlier := checkpoint.newest(checkpoints)) is not None:
        raise ValueError(f"{earlier} is of an earlier run: continue it with --resume, or use another work dir")
    window = Window(state.dist, lr_at=lr_at, last_good=lambda: checkpoint.newest(checkpoints) if checkpoints else None)
    run = _Run(state, iter(batches), step_fn, cfg, lr_at, log, checkpoints, evaluate, window, saved=state.step)
    state.model.train()
    state.stopped = False
    with Interrupt(state.dist, save_minutes=cfg.run.save_minutes) as interrupt:
        if state.step > 0:
            run.evaluate_if_due()  # the sitting before may have ended between its save and its evaluation
        while state.step < cfg.steps and not state.stopped:
            run.step()
            wish = interrupt.poll()
            state.stopped = wish.stop and state.step < cfg.steps
            if wish.save or state.stopped or run.due(cfg.run.save_every) or run.due(cfg.run.keep_every):
                run.save()
            if not state.stopped:
                run.evaluate_if_due()
    if state.stopped:
        log.say(
            f"saved at step {state.step} of {cfg.steps}; continue with --resume"
            if checkpoints
            else f"stopped at step {state.step}, nothing saved"
        )
    return state


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on the device: through tuples, NamedTuples, lists and dicts, and by `.to` of anything that has it."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch.to(device) if hasattr(batch, "to") else batch


@dataclass
class _Run:
    """The loop's parts, bound together for the length of one call of `train`."""

    state: TrainState
    feed: Iterator[Any]
    step_fn: StepFn
    cfg: LoopConfig
    lr_at: Callable[[int], float]
    log: Logger
    folder: Path | None
    evaluate: Evaluate | None
    window: Window
    saved: int  # the step that is on disk
    start: float = field(default_factory=time.perf_counter)

    def due(self, every: int | None) -> bool:
        """True at the end and after every `every` steps."""
        return self.state.step == self.cfg.steps or (every is not None and self.state.step % every == 0)

    def step(self) -> None:
        """One optimizer step over `accumulate` micro-batches, and its log line where one is due."""
        state, number = self.state, self.state.step
        state.step += 1
        logs = self.due(self.cfg.run.log_every)
        metrics = self._backward(number, logs=logs) | self._update(self.lr_at(number))
        state.images_seen += self.cfg.global_batch
        self.log.tick(state.step)
        if logs:
            self._write(number, metrics)

    def save(self) -> None:
        """Write a checkpoint of what has been proved finite; once per step."""
        if self.saved == self.state.step:
            return
        with self.window.paused():
            self.window.verify(self.state.tensors(), after=self.state.step)
            self._average_statistics()
            self._lap()
            if self.folder is not None and self.state.dist.is_main:
                kept = self.cfg.run
                checkpoint.save(
                    self.folder,
                    self.state.step,
                    self.state.state_dict(),
                    keep_last=kept.keep_last,
                    keep_every=kept.keep_every,
                )
        self.saved = self.state.step

    def evaluate_if_due(self) -> None:
        """Save, then evaluate; a signal ends that between two batches, and the next sitting begins with it."""
        if self.evaluate is None or not self.due(self.cfg.evaluate_every):
            return
        self.save()
        self._average_statistics()
        try:
            with self.window.paused(), _evaluating(self.state.averaged) as model, torch.no_grad():
                self.state.metrics = self.evaluate(model, self.state.step)
        except Stopped:
            self.state.stopped = True
            return
        self.log.write(
            "eval", self.state.step, {"epoch": self.state.step / self.cfg.steps_per_epoch, **self.state.metrics}
        )

    def _average_statistics(self) -> None:
        for model in [self.state.bare] if self.state.ema is None else [self.state.bare, self.state.averaged]:
            average_statistics(model, self.state.dist)

    def _backward(self, number: int, *, logs: bool) -> dict[str, Tensor]:
        """Accumulate the gradient of one step; return its metrics, means over the micro-batches."""
        losses: list[Tensor] = []
        rows: list[dict[str, Tensor]] = []
        for micro in range(self.cfg.accumulate):
            seed_step(fold(self.cfg.seed, "step", number, micro, self.state.dist.rank), self.state.dist.device)
            batch = self._next(number)
            with _no_sync(self.state.model, micro + 1 < self.cfg.accumulate):
                with autocast(self.cfg.precision, self.state.dist.device):
                    loss, metrics = self.step_fn(self.state.model, batch, Step(number, micro, logs))
                self.state.scaler.scale(loss / self.cfg.accumulate).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            rows.append(metrics)
        self.window.add(number, torch.stack(losses).mean())
        return {name: torch.stack([row[name].detach() for row in rows]).mean() for name in rows[0]} if logs else {}

    def _update(self, lr: float) -> dict[str, Tensor]:
        """Clip, step, forget the gradient, average the weights; return the gradient's norm where it is clipped."""
        optimizer, scaler, norm = self.state.optimizer, self.state.scaler, {}
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self.cfg.clip_norm is not None:
            scaler.unscale_(optimizer)
            norm = {"grad_norm": nn.utils.clip_grad_norm_(self.state.model.parameters(), self.cfg.clip_norm)}
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.state.ema is not None:
            self.state.ema.update(self.state.bare)
        return norm

    def _next(self, number: int) -> Any:
        with self.window.waiting():
            batch = next(self.feed, None)
        if batch is None:
            raise ValueError(f"the batches ended at step {number} of {self.cfg.steps}: the loader must be endless")
        self.window.remember(number, batch)
        return to_device(batch, self.state.dist.device)

    def _write(self, number: int, metrics: dict[str, Tensor]) -> None:
        read = self.window.read(metrics, global_batch=self.cfg.global_batch)
        if self.state.scaler.is_enabled():
            read["loss_scale"] = self.window.check_scale(self.state.scaler.get_scale(), number)
        self._lap()
        place = {
            "epoch": self.state.step / self.cfg.steps_per_epoch,
            "lr": self.lr_at(number),
            "peak_mem_gib": peak_memory_gib(self.state.dist.device),
        }
        self.log.write("train", self.state.step, place | read)

    def _lap(self) -> None:
        now = time.perf_counter()
        self.state.wall_s += now - self.start
        self.start = now


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in eval mode and every submodule back into its own mode afterwards: a frozen trunk may stay in eval mode while training."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def _no_sync(model: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Only the last micro-step's backward reduces the gradients over the ranks."""
    return model.no_sync() if more and isinstance(model, DistributedDataParallel) else nullcontext()
