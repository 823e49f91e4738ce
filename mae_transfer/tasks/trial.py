"""A few real steps, of which nothing is saved: for --estimate, and for run.device_batch="auto"."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist, peak_memory_gib, reset_peak_memory
from mae_transfer.engine.log import Kind, Logger
from mae_transfer.engine.loop import train
from mae_transfer.engine.schedule import Rates
from mae_transfer.engine.state import LoopConfig, TrainState
from mae_transfer.tasks.task import Task, tied_to_batch

WARM_UP = 3  # steps before timing starts; in them kernels are selected and workers start
TIMED = 20  # steps that --estimate times
TRIED = 2  # steps to see whether a batch fits; the moments of the optimizer use memory from the second on
USED = 0.9  # share of the device's memory that a batch may use; other image shapes and evaluations need some more
GIB = 2**30


class Trial(NamedTuple):
    """The time that some steps took."""

    seconds: float
    data_wait: float  # share of the time spent waiting for data
    monitor: float  # seconds of a measurement of the monitor; 0 if there is none


class _LastValues(Logger):
    """A logger that writes nothing and keeps the last values."""

    def __init__(self) -> None:
        super().__init__(Path(), steps=0, main=False)
        self.values: dict[str, float | None] = {}

    def write(self, kind: Kind, step: int, values: Mapping[str, float | None]) -> None:
        self.values = dict(values)


def drive(task: Task[Any], state: TrainState, loop: LoopConfig, *, first: int, timed: int) -> Trial:
    """Train `first` steps and measure once with the monitor, then time `timed` more. Nothing is saved or written.

    state: that of the task, or a state of this rank alone. The task's rank selects the part of each batch.
    """
    last = _LastValues()
    quiet = loop.run.model_copy(
        update={"log_every": 10**9, "save_every": None, "keep_every": None, "save_minutes": None, "profile": None}
    )
    task.prepare(loop)
    rates, seconds = task.rates_at(loop), 0.0

    def rates_at(step: int) -> Rates:
        return rates(step)._replace(frozen=())  # all moments use memory, as later in the run

    with closing(task.feed(loop, start=state.step)) as feed:
        for count, monitor in ((first, task.monitor), (timed, None)):
            if not count:
                continue
            short = loop.model_copy(update={"steps": state.step + count, "evaluate_every": None, "run": quiet})
            start = perf_counter()
            train(state, feed, task.loss, short, rates_at=rates_at, log=last, checkpoints=None, monitor=monitor)
            seconds = perf_counter() - start
            if state.stopped:
                raise RuntimeError("a signal stopped the run before the timed steps were done; nothing was written")
    return Trial(seconds, last.values.get("data_wait") or 0.0, state.seconds.evaluate)


def estimate(task: Task[Any], loop: LoopConfig) -> str:
    """Return an estimate of the run's hours, memory and disk space. The task's state is not usable afterwards."""
    state = task.state
    device = state.dist.device
    took = drive(task, state, loop, first=WARM_UP, timed=TIMED)
    images, micro = TIMED * loop.global_batch, task.micro_batch(loop)
    evaluations = 1 if loop.evaluate_every is None else -(-loop.steps // loop.evaluate_every)
    measured = 0 if loop.monitor_every is None else -(-loop.steps // loop.monitor_every)
    monitored = f" and {measured} measurement(s) of the monitor, {duration(took.monitor)} each" if measured else ""
    payload, kept = size(state.state_dict()) / GIB, loop.run.keep_last + 1  # one more during a save
    kept += loop.steps // loop.run.keep_every if loop.run.keep_every else 0
    return (
        f"estimate from {TIMED} steps of {loop.global_batch} images, {micro} per device and forward pass: "
        f"{images / took.seconds:.1f} images/s, {took.data_wait:.0%} of the time spent waiting for data\n"
        f"  time    {duration(loop.steps * took.seconds / TIMED)} for {loop.steps} steps "
        f"({loop.steps / loop.steps_per_epoch:g} epochs), plus {evaluations} evaluation(s){monitored}\n"
        f"  memory  {peak_memory_gib(device):.2f} GiB at the peak{_of_total(device)}\n"
        f"  disk    {payload * kept:.2f} GiB: {kept} training states of {payload:.2f} GiB\n"
        "nothing was written"
    )


def duration(seconds: float) -> str:
    """Return a time with its unit: "42.0 seconds", "12.5 minutes", "31.4 hours"."""
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
    """Return the largest device batch that fits, and a sentence for the log.

    The device's share of the batch is halved until it fits. The state is unchanged afterwards. On a CPU nothing is
    tried, because a process that runs out of memory there is killed.

    Raises:
        ValueError: the training of the model depends on the device batch, or the smallest device batch does not fit.
    """
    state = task.state
    check_independent(state)
    share = loop.global_batch // state.dist.world
    tried: list[int] = []
    if not can_try(state.dist.device):
        return share, f"run.device_batch = {share} (auto: the whole share, without a trial on a CPU)"
    before = checkpoint.on_host(state.state_dict())
    for micro in halves(share, multiple=task.order().crops_per_image):
        fits = _fits(task, loop.model_copy(update={"accumulate": share // micro}))
        state.load_state_dict(before)
        _free(state)
        if fits:
            outcome = f"; {', '.join(map(str, tried))} did not fit" if tried else ", the whole share"
            return micro, f"run.device_batch = {micro} (auto{outcome})"
        tried.append(micro)
    raise ValueError(
        f"run.device_batch='auto': not even {tried[-1]} image(s) per forward pass fit into the device's memory: set "
        "run.checkpoint_activations=True, or use smaller images or a smaller model"
    )


def check_independent(state: TrainState) -> None:
    """Raise ValueError if the model trains on the device batch: results must not depend on a machine's memory."""
    for kind, name in tied_to_batch(state.bare).items():
        raise ValueError(
            f"run.device_batch='auto': with {kind} ({name}) the result would depend on the device batch and hence on "
            "this machine's memory: set run.device_batch to a number"
        )


def halves(share: int, *, multiple: int = 1) -> Iterator[int]:
    """Yield divisors of `share` that are multiples of `multiple`: the largest, then each time one of at most half."""
    size = share
    while size >= 1:
        if share % size == 0 and size % multiple == 0:
            yield size
            size //= 2
        else:
            size -= 1


def can_try(device: torch.device) -> bool:
    """Return whether running out of memory on this device raises an error."""
    return device.type != "cpu"


def _fits(task: Task[Any], loop: LoopConfig) -> bool:
    """Return whether two steps fit on every rank.

    Each rank tries without the others, so no rank waits for one that ran out of memory.
    """
    state, dist = task.state, task.dist
    alone = TrainState(
        state.bare,
        state.optimizer,
        state.scaler,
        state.ema,
        Dist(dist.device),
        state.held,
        state.evaluates,
        state.digest,
        state.extra,
        step=state.step,
    )
    try:
        drive(task, alone, loop, first=0, timed=TRIED)
        fits = dist.device.type != "cuda" or peak_memory_gib(dist.device) * GIB <= USED * _total_memory(dist.device)
    except RuntimeError as error:  # torch.OutOfMemoryError on cuda, a plain RuntimeError on mps
        if "out of memory" not in str(error).lower():
            raise
        fits = False
    if dist.world > 1:
        flag = torch.tensor(int(fits))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, group=dist.side)
        fits = bool(flag)
    return fits


def _free(state: TrainState) -> None:
    """Release the memory that a trial used on the device, and the graphs that it compiled for its batch."""
    state.optimizer.zero_grad(set_to_none=True)
    torch._dynamo.reset()
    gc.collect()
    reset_peak_memory(state.dist.device)


def _total_memory(device: torch.device) -> int:
    total: int = torch.cuda.mem_get_info(device)[1]
    return total


def _of_total(device: torch.device) -> str:
    return f" of {_total_memory(device) / GIB:.1f} GiB" if device.type == "cuda" else ""
