"""The only training loop. It knows no model, no data set and no task: it receives callables.

No other code calls backward, clips, steps, averages weights or saves. A step that does not log never waits for the
device: its loss stays there (see Meter). The seed of a micro-step depends on its position only, so a resumed run draws
the same random numbers as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import average_statistics, peak_memory_gib, reset_peak_memory, seed_step
from mae_transfer.engine.interrupt import Interrupt, Stopped
from mae_transfer.engine.log import Logger, Meter
from mae_transfer.engine.optim import clip_gradients
from mae_transfer.engine.schedule import Rates
from mae_transfer.engine.state import LoopConfig, TrainState, autocast
from mae_transfer.seeding import fold


class Step(NamedTuple):
    """Position of a micro-step."""

    number: int  # 0-based optimizer step
    micro: int  # 0-based micro-step within it
    logs: bool  # whether the metrics of this step are logged; compute expensive ones only then
    average: nn.Module | None = None  # the model with averaged weights, in eval mode: a teacher


StepFn = Callable[[nn.Module, Any, Step], tuple[Tensor, dict[str, Tensor]]]
"""(assembled model, batch on the device, step) -> loss (0-d, mean over the micro-batch), {name: 0-d device tensor}."""
Evaluate = Callable[[nn.Module, int], dict[str, float]]
"""(model in eval mode, TrainState.evaluated; completed steps) -> results. Called on every rank."""

Inspect = Callable[[int, Mapping[str, float]], str]
"""(completed steps, figures, the same on every rank) -> an alarm in words, or "". Called on every rank."""


def train(
    state: TrainState,
    batches: Iterable[Any],
    step_fn: StepFn,
    cfg: LoopConfig,
    *,
    rates_at: Callable[[int], Rates],
    log: Logger,
    checkpoints: Path | None,
    evaluate: Evaluate | None = None,
    monitor: Evaluate | None = None,
    inspect: Inspect | None = None,
) -> TrainState:
    """Train from `state.step` to `cfg.steps` and return the same state.

    `state.stopped` is True if a signal ended the training early; the state was saved then.

    Args:
        batches: micro-batches (Tensors with an `index`), `cfg.accumulate` per step, from step `state.step` on.
        rates_at: 0-based step -> learning rate, which each group multiplies by its "lr_scale"; weight decay of the
            groups that have some; decay of the averaged weights; frozen parameters.
        checkpoints: folder of the training states; None saves none.
        evaluate: called every `cfg.evaluate_every` steps and at the end; `state.metrics` keeps the last results.
        monitor: called every `cfg.monitor_every` steps, if set, and at the end; its figures are only logged.
        inspect: called with the figures of each log line of the training. What it returns is logged as an alarm.
    Raises:
        NonFiniteLoss: names the step, its lr and its samples; the checkpoints on disk stay intact.
        ValueError: the batches end before the steps do, or a new run finds the checkpoints of an earlier one.
        OSError: a checkpoint or the log cannot be written.
    """
    if checkpoints is not None and state.step == 0 and (earlier := checkpoint.newest(checkpoints)) is not None:
        raise ValueError(f"{earlier} is of an earlier run: continue it with --resume, or use another work dir")
    writer = checkpoint.Writer(
        checkpoints if state.dist.is_main else None, keep_last=cfg.run.keep_last, keep_every=cfg.run.keep_every
    )

    def last_good() -> str:
        failure = ""
        try:
            writer.wait()
        except Exception as error:
            failure = f" ({error})"
        return f"{(checkpoints and checkpoint.newest(checkpoints)) or 'none'}{failure}"

    meter = Meter(state.dist, lr_at=lambda step: rates_at(step).lr, last_good=last_good)
    run = _Run(
        state,
        iter(batches),
        step_fn,
        cfg,
        rates_at,
        log,
        writer,
        evaluate,
        monitor,
        inspect,
        meter,
        saved=state.step,
    )
    profile = None
    if cfg.flops_per_image or cfg.run.profile:
        from mae_transfer.engine.profile import Profile, matmul_peak

        if cfg.flops_per_image:
            run.peak = matmul_peak(state.dist.device, cfg.precision)
            reset_peak_memory(state.dist.device)  # the peak of the run, not of what was measured before it
        if cfg.run.profile and state.step < cfg.run.profile < cfg.steps:
            profile = Profile(cfg.run.profile, log) if state.dist.is_main else None
        elif cfg.run.profile:
            log.say(
                f"run.profile={cfg.run.profile} profiles nothing: give a step after {state.step}, below {cfg.steps}"
            )
    state.model.train()
    state.stopped = False
    with Interrupt(state.dist, save_minutes=cfg.run.save_minutes) as interrupt, writer, profile or nullcontext():
        if state.step > 0:
            run.evaluate_if_due()  # the run may have been stopped between the save and the evaluation of this step
        while state.step < cfg.steps and not state.stopped:
            if profile is not None:
                profile.advance(state.step)
            run.step()
            writer.check()
            request = interrupt.poll()
            state.stopped = request.stop and state.step < cfg.steps
            if request.save or state.stopped or run.due(cfg.run.save_every) or run.due(cfg.run.keep_every):
                run.save()
            if not state.stopped:
                run.evaluate_if_due()
    run.lap("save")  # the end waited for the last state
    if state.stopped:
        log.say(
            f"saved at step {state.step} of {cfg.steps}; continue with --resume"
            if checkpoints
            else f"stopped at step {state.step}, nothing saved"
        )
    return state


@dataclass
class _Run:
    """The loop's parts during one call of `train`."""

    state: TrainState
    feed: Iterator[Any]
    step_fn: StepFn
    cfg: LoopConfig
    rates_at: Callable[[int], Rates]
    log: Logger
    writer: checkpoint.Writer
    evaluate: Evaluate | None
    monitor: Evaluate | None
    inspect: Inspect | None
    meter: Meter
    saved: int  # step of the last checkpoint
    peak: float = 0.0  # FLOP/s of the device in matrix products, if flops_per_image is set
    start: float = field(default_factory=lambda: time.perf_counter())

    def due(self, every: int | None) -> bool:
        """True at the end and after every `every` steps."""
        return self.state.step == self.cfg.steps or (every is not None and self.state.step % every == 0)

    def step(self) -> None:
        """Run one optimizer step over `accumulate` micro-batches, and log it if a log line is due."""
        state, number = self.state, self.state.step
        state.step += 1
        logs = self.due(self.cfg.run.log_every)
        metrics = self._backward(number, logs=logs) | self._update(self.rates_at(number))
        state.images_seen += self.cfg.global_batch
        self.log.tick(state.step)
        if logs:
            self._write(number, metrics)

    def save(self) -> None:
        """Check that the state is finite, then start to write a checkpoint; at most one per step."""
        if self.saved == self.state.step:
            return
        with self.meter.paused():
            self.meter.verify(self.state.tensors(), after=self.state.step)
            self._average_statistics()
            self.lap("train")
            if self.writer.folder is not None:
                self.writer.save(self.state.step, self.state.state_dict())
            self.lap("save")
        self.saved = self.state.step

    def evaluate_if_due(self) -> None:
        """Save, then evaluate and monitor. A signal stops both between two batches; the resumed run repeats them."""
        cfg, state = self.cfg, self.state
        if self.evaluate is not None and self.due(cfg.evaluate_every):
            state.metrics = self._judge("eval", self.evaluate) or state.metrics
        if self.monitor is not None and cfg.monitor_every and self.due(cfg.monitor_every) and not state.stopped:
            self._judge("monitor", self.monitor)

    def _judge(self, kind: Literal["eval", "monitor"], evaluate: Evaluate) -> dict[str, float]:
        """Save, evaluate and log; return the figures, none if a signal stopped the evaluation.

        The state is on the disk before its evaluation, which may write another one (the best so far).
        """
        state = self.state
        self.save()
        with self.meter.paused():
            self.writer.wait()
            self.lap("save")
        self._average_statistics()
        try:
            with self.meter.paused(), _evaluating(state.evaluated) as model, torch.no_grad():
                figures = evaluate(model, state.step)
        except Stopped:
            state.stopped = True
            return {}
        finally:
            self.lap("evaluate")
        self.log.write(kind, state.step, {"epoch": state.step / self.cfg.steps_per_epoch, **figures})
        return figures

    def _average_statistics(self) -> None:
        for model in (self.state.bare, self.state.averaged):
            if model is not None:
                average_statistics(model, self.state.dist)

    def _backward(self, number: int, *, logs: bool) -> dict[str, Tensor]:
        """Accumulate the gradient of one step; return its metrics, averaged over the micro-batches."""
        losses: list[Tensor] = []
        rows: list[dict[str, Tensor]] = []
        for micro in range(self.cfg.accumulate):
            seed_step(fold(self.cfg.seed, "step", number, micro, self.state.dist.rank), self.state.dist.device)
            batch, at = self._next(number), Step(number, micro, logs, self.state.averaged)
            with _no_sync(self.state.model, micro + 1 < self.cfg.accumulate):
                with autocast(self.cfg.precision, self.state.dist.device):
                    loss, metrics = self.step_fn(self.state.model, batch, at)
                self.state.scaler.scale(loss / self.cfg.accumulate).backward()
            losses.append(loss.detach())
            rows.append(metrics)
        self.meter.add(number, torch.stack(losses).mean())
        return {name: torch.stack([row[name].detach() for row in rows]).mean() for name in rows[0]} if logs else {}

    def _update(self, rates: Rates) -> dict[str, Tensor]:
        """Clip, step, zero the gradient and update the average; return the gradient norm if clipping is on."""
        optimizer, scaler, norm = self.state.optimizer, self.state.scaler, {}
        for group in optimizer.param_groups:
            group["lr"] = rates.lr * group.get("lr_scale", 1.0)
            if rates.weight_decay is not None and group["weight_decay"]:
                group["weight_decay"] = rates.weight_decay
        for parameter in rates.frozen:
            parameter.grad = None  # the optimizer skips it
        if self.cfg.clip_norm is not None:
            scaler.unscale_(optimizer)
            parameters, each = self.state.model.parameters(), self.cfg.clip_each
            norm = {"grad_norm": clip_gradients(parameters, self.cfg.clip_norm, each=each)}
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.state.ema is not None:
            if rates.ema_decay is not None:
                self.state.ema.decay = rates.ema_decay
            self.state.ema.update(self.state.bare)
        return norm

    def _next(self, number: int) -> Any:
        with self.meter.waiting():
            batch = next(self.feed, None)
        if batch is None:
            raise ValueError(f"the batches ended at step {number} of {self.cfg.steps}: the loader must be endless")
        self.meter.remember(number, batch)
        return batch.to(self.state.dist.device, non_blocking=True)

    def _write(self, number: int, metrics: dict[str, Tensor]) -> None:
        read = self.meter.read(metrics, global_batch=self.cfg.global_batch)
        if self.state.scaler.is_enabled():
            read["loss_scale"] = self.meter.check_scale(self.state.scaler.get_scale(), number)
        self.lap("train")
        if self.cfg.flops_per_image:
            share = self.cfg.flops_per_image / (self.state.dist.world * self.peak)
            read["mfu"] = read["images_per_s"] * share
        position = {
            "epoch": self.state.step / self.cfg.steps_per_epoch,
            "lr": self.rates_at(number).lr,
            "peak_mem_gib": peak_memory_gib(self.state.dist.device),
        }
        self.log.write("train", self.state.step, position | read)
        if self.inspect is not None and (words := self.inspect(self.state.step, read)):
            self.log.warn(self.state.step, words)

    def lap(self, kind: Literal["train", "evaluate", "save"]) -> None:
        """Count the time since the last call as that of one kind of work."""
        now = time.perf_counter()
        before = getattr(self.state.seconds, kind)
        self.state.seconds = self.state.seconds.model_copy(update={kind: before + now - self.start})
        self.start = now


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in eval mode, then restore each submodule's own mode: a frozen trunk may train in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def _no_sync(model: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Return a context without gradient reduction, except for the last micro-step of a step."""
    return model.no_sync() if more and isinstance(model, DistributedDataParallel) else nullcontext()
