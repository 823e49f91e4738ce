"""A few real steps that nothing is kept of: what a run would take (--estimate), and which device batch fits ("auto")."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mae_transfer.engine.dist import Dist, peak_memory_gib
from mae_transfer.engine.log import Kind, Logger
from mae_transfer.engine.loop import train
from mae_transfer.engine.state import LoopConfig, TrainState

if TYPE_CHECKING:
    from mae_transfer.tasks.task import Task

WARM_UP = 3  # steps before the clock starts: kernels are chosen, workers filled
TIMED = 20  # steps that --estimate times
TRIED = 2  # steps that tell whether a batch fits: the optimizer has its moments in the second
USED = 0.9  # share of the device's memory that a batch may take: images of other shapes and evaluations need some more
GIB = 2**30


class Trial(NamedTuple):
    """What some steps took."""

    seconds: float
    data_wait: float  # share of them spent waiting for data


class _Watch(Logger):
    """A logger that writes nothing and keeps the last values."""

    def __init__(self) -> None:
        super().__init__(Path(), steps=0, main=False)
        self.values: dict[str, float | None] = {}

    def write(self, kind: Kind, step: int, values: Mapping[str, float | None]) -> None:
        self.values = dict(values)


def drive(task: Task[Any], state: TrainState, loop: LoopConfig, *, first: int, timed: int) -> Trial:
    """Train `first` steps, then time `timed` more. Nothing is saved, evaluated or written.

    state: that of the task, or one for this rank alone; the task's rank says which part of each batch is taken.
    """
    watch = _Watch()
    quiet = loop.run.model_copy(
        update={"log_every": 10**9, "save_every": None, "keep_every": None, "save_minutes": None}
    )
    task.prepare(loop)
    seconds = 0.0
    with closing(task.feed(loop, start=state.step)) as feed:
        for count in filter(None, (first, timed)):
            short = loop.model_copy(update={"steps": state.step + count, "evaluate_every": None, "run": quiet})
            start = perf_counter()
            train(state, feed, task.loss, short, lr_at=task.lr_at(loop), log=watch, checkpoints=None)
            seconds = perf_counter() - start
            if state.stopped:
                raise RuntimeError("stopped by a signal before the timed steps were done; nothing was written")
    return Trial(seconds, watch.values.get("data_wait") or 0.0)


def estimate(task: Task[Any], loop: LoopConfig) -> str:
    """Return what the run would take: hours, memory, disk. The task's state is used up."""
    state = task.state
    device = state.dist.device
    took = drive(task, state, loop, first=WARM_UP, timed=TIMED)
    images, micro = TIMED * loop.global_batch, loop.global_batch // (state.dist.world * loop.accumulate)
    evaluations = 1 if loop.evaluate_every is None else -(-loop.steps // loop.evaluate_every)
    payload, kept = size(state.state_dict()) / GIB, loop.run.keep_last + 1  # one more while it is written
    kept += loop.steps // loop.run.keep_every if loop.run.keep_every else 0
    return (
        f"estimate from {TIMED} steps of {loop.global_batch} images, {micro} per device and forward pass: "
        f"{images / took.seconds:.1f} images/s, {took.data_wait:.0%} of the time spent waiting for data\n"
        f"  time    {duration(loop.steps * took.seconds / TIMED)} for {loop.steps} steps "
        f"({loop.steps / loop.steps_per_epoch:g} epochs); {evaluations} evaluation(s) come on top\n"
        f"  memory  {peak_memory_gib(device):.2f} GiB at the peak{_of(device)}\n"
        f"  disk    {payload * kept:.2f} GiB: {kept} training states of {payload:.2f} GiB\n"
        "nothing was written"
    )


def duration(seconds: float) -> str:
    """Return a time in the unit that is read at a glance: "42.0 seconds", "12.5 minutes", "31.4 hours"."""
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} seconds"


def size(payload: Any) -> int:
    """Return the bytes of the tensors in nested dicts and lists."""
    if isinstance(payload, Tensor):
        return payload.numel() * payload.element_size()
    inner = payload.values() if isinstance(payload, Mapping) else payload if isinstance(payload, list | tuple) else ()
    return sum(map(size, inner))


def largest_batch(task: Task[Any], loop: LoopConfig) -> tuple[int, str]:
    """Return the largest device batch that fits, by halving the device's share of the batch, and a sentence for the log.

    The state is afterwards what it was. On a CPU nothing is tried: a process that runs out of memory there is killed.

    Raises:
        ValueError: the model has batch norms, which see a device batch, or not even the smallest one fits.
    """
    state = task.state
    check_norms(state)
    share = loop.global_batch // state.dist.world
    tried: list[int] = []
    if not can_try(state.dist.device):
        return share, f"run.device_batch = {share} (auto: the whole share; on a CPU memory is not tried)"
    before = on_cpu(state.state_dict())
    for micro in halves(share, multiple=task.order().crops_per_image):
        fits = _fits(task, loop.model_copy(update={"accumulate": share // micro}))
        state.load_state_dict(before)
        _free(state)
        if fits:
            out = f"; {', '.join(map(str, tried))} did not fit" if tried else ", the whole share"
            return micro, f"run.device_batch = {micro} (auto{out})"
        tried.append(micro)
    raise ValueError(
        f"run.device_batch='auto': not even {tried[-1]} image(s) per forward pass fit into the device's memory: "
        "set run.checkpoint_activations=True, smaller images or a smaller model"
    )


def check_norms(state: TrainState) -> None:
    """Raise ValueError where a batch norm would see the device batch: results must not depend on a machine's memory."""
    state.model.train()
    names = [name for name, module in state.bare.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modules = dict(state.bare.named_modules())
    if seen := [name for name in names if modules[name].training]:
        raise ValueError(
            f"run.device_batch='auto': {seen[0]} is a batch norm, whose statistics are those of a device batch, so that the "
            "result would depend on this machine's memory: set run.device_batch to a number"
        )


def halves(share: int, *, multiple: int = 1) -> Iterator[int]:
    """Yield the share and then each time the largest divisor of it, at most half as large, that is a multiple of this."""
    size = share
    while size >= 1:
        if share % size == 0 and size % multiple == 0:
            yield size
            size //= 2
        else:
            size -= 1


def can_try(device: torch.device) -> bool:
    """Return whether running out of memory on this device is an error that can be caught."""
    return device.type != "cpu"


def on_cpu(payload: Any) -> Any:
    """Return nested dicts and lists with copies of their tensors on the host."""
    if isinstance(payload, Tensor):
        return payload.detach().to("cpu", copy=True)
    if isinstance(payload, Mapping):
        return {key: on_cpu(value) for key, value in payload.items()}
    return type(payload)(map(on_cpu, payload)) if isinstance(payload, list | tuple) else payload


def _fits(task: Task[Any], loop: LoopConfig) -> bool:
    """Return whether two steps fit on every rank; each tries alone, so that none waits for one that ran out of memory."""
    state, dist = task.state, task.dist
    alone = TrainState(
        state.bare,
        state.optimizer,
        state.scaler,
        state.ema,
        Dist(dist.device),
        state.digest,
        state.extra,
        step=state.step,
    )
    try:
        drive(task, alone, loop, first=0, timed=TRIED)
        fits = dist.device.type != "cuda" or peak_memory_gib(dist.device) * GIB <= USED * _total(dist.device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; mps raises a plain one
        if "out of memory" not in str(error).lower():
            raise
        fits = False
    if dist.world > 1:
        flag = torch.tensor(int(fits))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, group=dist.side)
        fits = bool(flag)
    return fits


def _free(state: TrainState) -> None:
    """Give back what a trial has left on the device."""
    state.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if state.dist.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(state.dist.device)


def _total(device: torch.device) -> int:
    total: int = torch.cuda.mem_get_info(device)[1]
    return total


def _of(device: torch.device) -> str:
    return f" of {_total(device) / GIB:.1f} GiB" if device.type == "cuda" else ""
