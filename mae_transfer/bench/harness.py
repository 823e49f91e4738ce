"""The timing harness: each contestant runs in its own process, and all processes alternate, round by round.

Separate processes give each contestant its own peak memory. Alternation makes a slow phase of the machine affect all.
The training step around a contestant's loss (autocast, backward, fused AdamW) is the same code for all.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.bench.work import Mode, Work
from mae_transfer.engine.dist import peak_memory_gib
from mae_transfer.engine.state import autocast


class Entry(NamedTuple):
    """A built contestant: loss = module(*inputs)."""

    module: nn.Module
    inputs: tuple[Any, ...]


Build = Callable[[Work], Entry]
"""A module-level function (the process starts from its name); it raises ImportError if its library is not installed."""


class Measures(NamedTuple):
    """Measurements of a contestant besides its speed."""

    peak_gib: float  # resident memory of the process on CPU, allocated tensors on CUDA
    flops: int  # of one step, counted by torch
    matmul_flops_per_s: float  # of a large square matmul in the step's dtype: the machine's practical peak
    loss: float  # after the last step, to show that the contestant learns


@dataclass(frozen=True)
class Row:
    """One contestant in one mode: images/s of every round, or the reason of its failure."""

    name: str
    mode: Mode
    images_per_s: tuple[float, ...] = ()
    measures: Measures | None = None
    failure: str | None = None


def race(
    contestants: Mapping[str, Build], modes: Sequence[Mode], work: Work, *, rounds: int, steps: int, warmup: int = 2
) -> list[Row]:
    """Time `rounds` turns of `steps` training steps of each contestant in each mode; the processes alternate."""
    lanes = {(name, mode): _start(build, work, mode) for name, build in contestants.items() for mode in modes}
    speeds: dict[tuple[str, Mode], list[float]] = {key: [] for key in lanes}
    try:
        ready = {key: _ask(pipe, warmup) for key, pipe in lanes.items()}
        running = [key for key, reply in ready.items() if not isinstance(reply, str)]
        for number in range(rounds):
            # Alternate the order, so that no contestant always follows the same one.
            for key in running if number % 2 == 0 else running[::-1]:
                taken = _ask(lanes[key], steps)
                if isinstance(taken, str):
                    ready[key] = taken
                else:
                    speeds[key].append(steps * work.batch / taken)
            running = [key for key in running if not isinstance(ready[key], str)]
        found = {key: _ask(lanes[key], "measure") for key in running}
        ready |= {key: reply for key, reply in found.items() if isinstance(reply, str)}
        measures = {key: reply for key, reply in found.items() if not isinstance(reply, str)}
    finally:
        for pipe in lanes.values():
            pipe.close()  # ends the process
    return [Row(*key, tuple(speeds[key]), measures.get(key), None if key in measures else ready[key]) for key in lanes]


def compared(row: Row, rows: Sequence[Row], work: Work, *, to: str, called: str) -> dict[str, Any]:
    """Return the figures of one row.

    The entry named `called` is the median over rounds of the ratio of its images/s to those of the contestant `to` in
    the same mode and round.
    """
    if row.measures is None:
        return {"name": row.name, "mode": row.mode, "failure": row.failure}
    peer = next((other for other in rows if (other.name, other.mode) == (to, row.mode) and other.measures), None)
    ratios = [own / other for own, other in zip(row.images_per_s, peer.images_per_s, strict=True)] if peer else []
    return {
        "name": row.name,
        "mode": row.mode,
        "images_per_s": statistics.median(row.images_per_s),
        "images_per_s_range": [min(row.images_per_s), max(row.images_per_s)],
        "images_per_s_rounds": list(row.images_per_s),
        called: statistics.median(ratios) if ratios else None,
        "peak_memory_gib": row.measures.peak_gib,
        "gflops_per_image": row.measures.flops / work.batch / 1e9,
    }


def _start(build: Build, work: Work, mode: Mode) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_live, args=(theirs, build, work, mode), daemon=True).start()
    theirs.close()
    return ours


def _ask(pipe: Connection, request: Any) -> Any:
    pipe.send(request)
    try:
        return pipe.recv()
    except EOFError:
        return "the process died (out of memory?)"


def _live(pipe: Connection, build: Build, work: Work, mode: Mode) -> None:
    """Run one contestant until the pipe is closed.

    A number is a request for the seconds of that many steps; "measure" is a request for Measures.
    """
    torch.manual_seed(0)
    try:
        request = pipe.recv()  # contestants build one after the other, because compilation uses every core
        runner = Runner(build(work), work, compiled=mode == "compiled")
        while True:
            pipe.send(runner.measure() if request == "measure" else runner.seconds(request))
            request = pipe.recv()
    except EOFError:
        return
    except ImportError as error:
        pipe.send(f"not installed ({error.name}): pip install -e '.[bench]'")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        raise


class Runner:
    """The training step, the same for all contestants."""

    def __init__(self, entry: Entry, work: Work, *, compiled: bool) -> None:
        self.work, self.inputs, self.loss = work, entry.inputs, torch.zeros(())
        self.module = entry.module.to(work.device).train()
        if compiled:
            self.module.compile()
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def seconds(self, steps: int) -> float:
        """Return the wall time of `steps` training steps."""
        with stopwatch(self.work.device) as elapsed:
            for _ in range(steps):
                self.loss = self.forward_backward(self.module)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return elapsed[0]

    def forward_backward(self, forward: Callable[..., Tensor]) -> Tensor:
        with autocast(self.work.dtype, torch.device(self.work.device)):
            loss = forward(*self.inputs)
        torch.autograd.backward(loss)
        return loss.detach()

    def measure(self) -> Measures:
        peak = peak_memory_gib(torch.device(self.work.device))  # first, because counting uses more memory than a step
        # MATH: torch cannot count the fused attention of CPUs. force_eager: the counter does not see compiled code.
        with (
            torch.compiler.set_stance("force_eager"),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            self.forward_backward(self.module)
        return Measures(peak, counter.get_total_flops(), _matmul_peak(self.work), float(self.loss))


@contextmanager
def stopwatch(device: str) -> Iterator[list[float]]:
    """Yield a list that holds the elapsed seconds after the block; it waits for the device."""
    elapsed: list[float] = []
    start = time.perf_counter()
    yield elapsed
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
    elapsed.append(time.perf_counter() - start)


def _matmul_peak(work: Work, *, tries: int = 5) -> float:
    """Return the FLOP/s of the fastest of several large square matmuls."""
    side = 2048 if torch.device(work.device).type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=work.device, dtype=work.torch_dtype) for _ in range(2))
    times = []
    for _ in range(tries + 1):
        with stopwatch(work.device) as elapsed:
            a @ b
        times += elapsed
    return 2 * side**3 / min(times[1:])
