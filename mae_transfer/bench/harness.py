"""The timing harness: each contestant runs in its own process, and all processes alternate, round by round.

Separate processes give each contestant its own peak memory. Alternation makes a slow phase of the machine affect all.
The training step around a contestant's loss (autocast, backward, fused AdamW) is the same code for all.
"""

from __future__ import annotations

import logging
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

from mae_transfer.adapters.detectron2 import ABSENT as DETECTRON2_ABSENT
from mae_transfer.bench.options import Mode, Workload
from mae_transfer.engine.dist import compile_blocks, peak_memory_gib
from mae_transfer.engine.profile import matmul_peak
from mae_transfer.engine.state import autocast
from mae_transfer.suite.tables.formats import Sheet, Text

_LOG = logging.getLogger(__name__)


class Contestant(NamedTuple):
    """What is timed: steps that train `model` on `loss()`."""

    model: nn.Module
    loss: Callable[[], Tensor]
    compiled: nn.Module | None = None  # the part that is compiled; None: the whole model
    blocks: bool = False  # whether its blocks are compiled instead, as in a run of this project


Build = Callable[[Workload], Contestant]
"""A module-level function (the process starts from its name); it raises ImportError if its library is not installed."""


Modes = Sequence[Mode] | Mapping[str, Sequence[Mode]]
"""Of all contestants, or of each by name."""


class Comparison(NamedTuple):
    """The contestants of a benchmark by name, and the one that the others are compared with."""

    contestants: Mapping[str, Build]
    ratio: str  # key of the ratio of images/s in a record
    to: str | None = None  # None: the faster of the peers, which are all but the first `own`
    own: int = 1  # how many of the contestants are this package's


class Elapsed(NamedTuple):
    """The time of some steps."""

    wall: float  # seconds
    processor: float  # seconds of all cores together; other work on the machine hardly changes it


class Measures(NamedTuple):
    """Measurements of a contestant besides its speed."""

    peak_gib: float  # resident memory of the process on CPU, allocated tensors on CUDA
    flops: int | None  # of one step, counted by torch; None: counting them failed, for lack of memory as a rule
    matmul_flops_per_s: float  # of a large square matmul in the step's dtype: the machine's practical peak
    loss: float  # after the last step, to show that the contestant learns


@dataclass(frozen=True)
class Timing:
    """One contestant in one mode: images/s and images per processor second of every round, or why it failed."""

    name: str
    mode: Mode
    images_per_s: tuple[float, ...] = ()
    measures: Measures | None = None
    failure: str | None = None
    images_per_core_s: tuple[float, ...] = ()
    warmup_s: float | None = None  # of the steps before the first round, which compile the model


def race(
    contestants: Mapping[str, Build], modes: Modes, work: Workload, *, rounds: int, steps: int, warmup: int = 2
) -> list[Timing]:
    """Time `rounds` turns of `steps` training steps of each contestant in each mode; the processes alternate."""
    modes = modes if isinstance(modes, Mapping) else dict.fromkeys(contestants, modes)
    lanes = {(name, mode): _start(build, work, mode) for name, build in contestants.items() for mode in modes[name]}
    taken: dict[tuple[str, Mode], list[Elapsed]] = {key: [] for key in lanes}
    try:
        ready = {key: _ask(pipe, warmup) for key, pipe in lanes.items()}
        started = {key: reply.wall for key, reply in ready.items() if not isinstance(reply, str)}
        running = list(started)
        for number in range(rounds):
            # Alternate the order, so that no contestant always follows the same one.
            for key in running if number % 2 == 0 else running[::-1]:
                reply = _ask(lanes[key], steps)
                if isinstance(reply, str):
                    ready[key] = reply
                else:
                    taken[key].append(reply)
            running = [key for key in running if not isinstance(ready[key], str)]
        found = {key: _ask(lanes[key], "measure") for key in running}
        ready |= {key: reply for key, reply in found.items() if isinstance(reply, str)}
        measures = {key: reply for key, reply in found.items() if not isinstance(reply, str)}
    finally:
        for pipe in lanes.values():
            pipe.close()  # ends the process
    images = steps * work.batch
    return [
        Timing(
            *key, tuple(images / one.wall for one in taken[key]), measures.get(key),
            None if key in measures else ready[key], tuple(images / one.processor for one in taken[key]),
            started.get(key),
        )
        for key in lanes
    ]  # fmt: skip


def compare(comparison: Comparison, work: Workload, *, modes: Modes, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time the contestants and return one record per contestant and mode, for a table or JSON."""
    rows = race(comparison.contestants, modes, work, rounds=rounds, steps=steps)
    return [describe(row, rows, work, comparison) for row in rows]


def describe(row: Timing, rows: Sequence[Timing], work: Workload, comparison: Comparison) -> dict[str, Any]:
    """Return the figures of one row. A ratio is a median over rounds of the ratio of images/s in the same round.

    It compares with the contestant `to` in the same mode, or with the faster peer in each mode. On a CPU the same is
    said of images per second of a core.
    """
    if row.measures is None:
        return {"name": row.name, "mode": row.mode, "failure": row.failure}
    finished = [other for other in rows if other.measures]
    if comparison.to is None:
        ours = list(comparison.contestants)[: comparison.own]
        peers = {other.mode: other for other in sorted(finished, key=_speed) if other.name not in ours}
        ratio: Any = {mode: _ratio(row, peers[mode]) for mode in ("eager", "compiled") if mode in peers}
        by_core: Any = {mode: _ratio(row, peers[mode], by_core=True) for mode in ratio}
    else:
        peer = next((other for other in finished if (other.name, other.mode) == (comparison.to, row.mode)), None)
        ratio, by_core = (_ratio(row, peer, by_core=by_core) if peer else None for by_core in (False, True))
    cores = {
        "images_per_core_s": statistics.median(row.images_per_core_s),
        f"{comparison.ratio}_by_core": by_core,
    }
    flops_per_image = None if row.measures.flops is None else row.measures.flops / work.batch
    peak = max(other.measures.matmul_flops_per_s for other in finished if other.measures)
    return {
        "name": row.name,
        "mode": row.mode,
        "images_per_s": _speed(row),
        "images_per_s_range": [min(row.images_per_s), max(row.images_per_s)],
        "images_per_s_rounds": list(row.images_per_s),
        comparison.ratio: ratio,
        **(cores if torch.device(work.device).type == "cpu" else {}),
        "warmup_s": row.warmup_s,
        "peak_memory_gib": row.measures.peak_gib,
        "gflops_per_image": flops_per_image and flops_per_image / 1e9,
        "share_of_matmul_peak": flops_per_image and _speed(row) * flops_per_image / peak,
        "matmul_peak_gflops_per_s": peak / 1e9,
        "loss": row.measures.loss,
    }


def sheet(records: Sequence[Mapping[str, Any]], *, title: str) -> Sheet:
    """Return the records as a table with one column per key; lists become ranges."""
    columns = list(dict.fromkeys(key for record in records for key in record if not key.endswith("_rounds")))
    rows = (tuple(Text(_show(record.get(column))) for column in columns) for record in records)
    return Sheet(title, tuple(column.replace("_", " ") for column in columns), tuple(rows))


def random_images(work: Workload) -> Tensor:
    """Return a batch of noise, (B, 3, S, S) uint8."""
    return torch.randint(256, (work.batch, 3, work.image, work.image), dtype=torch.uint8, device=work.device)


def _show(value: Any) -> str:
    """Return a value as the text of a cell."""
    if isinstance(value, dict):
        return "  ".join(f"{key} {_show(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "..".join(map(_show, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def _speed(row: Timing) -> float:
    return statistics.median(row.images_per_s)


def _ratio(row: Timing, peer: Timing, *, by_core: bool = False) -> float:
    ours, theirs = ((one.images_per_core_s if by_core else one.images_per_s) for one in (row, peer))
    return statistics.median(own / other for own, other in zip(ours, theirs, strict=True))


def _start(build: Build, work: Workload, mode: Mode) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_live, args=(theirs, build, work, mode), daemon=True).start()
    theirs.close()
    return ours


def _ask(pipe: Connection, request: Any) -> Any:
    try:
        pipe.send(request)
        return pipe.recv()
    except (EOFError, ConnectionError):
        return "the process died (out of memory?)"


def _live(pipe: Connection, build: Build, work: Workload, mode: Mode) -> None:
    """Run one contestant until the pipe is closed.

    A number is a request for the time of that many steps; "measure" is a request for Measures.
    """
    torch.manual_seed(0)
    try:
        request = pipe.recv()  # contestants build one after the other, because compilation uses every core
        trainer = Trainer(build(work), work, compiled=mode == "compiled")
        while True:
            reply = trainer.measure() if request == "measure" else trainer.train(request)
            trainer.free()
            pipe.send(reply)
            request = pipe.recv()
    except EOFError:
        return
    except ImportError as error:
        pipe.send(not_installed(error))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        raise


def not_installed(error: ImportError) -> str:
    """Return a line that names the library that a contestant needs, and how to install it."""
    library = (error.name or "").partition(".")[0]
    if library == "detectron2":
        return DETECTRON2_ABSENT
    extra = "segment" if library in ("mmcv", "mmengine", "mmseg") else "bench"
    return f"not installed ({error.name}): pip install -e '.[{extra}]'"


class Trainer:
    """The training step, the same for all contestants."""

    def __init__(self, contestant: Contestant, work: Workload, *, compiled: bool) -> None:
        self.work, self.contestant, self.last, self.warm = work, contestant, torch.zeros(()), False
        self.on_gpu = torch.device(work.device).type == "cuda"
        model = contestant.model.to(work.device).train()
        if compiled and contestant.blocks:
            compile_blocks(model)
        elif compiled:
            (contestant.compiled or model).compile()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def train(self, steps: int, loss: Callable[[], Tensor] | None = None) -> Elapsed:
        """Return the time of `steps` training steps. loss: another one than the contestant's.

        That of the first steps includes compilation.
        """
        loss = loss or self.contestant.loss
        if self.on_gpu and self.warm:
            self.step(loss)  # it takes the memory that `free` gave back
            torch.cuda.synchronize()
        self.warm = True
        with stopwatch(self.work.device) as elapsed:
            for _ in range(steps):
                self.step(loss)
        return elapsed[0]

    def step(self, loss: Callable[[], Tensor]) -> None:
        self.last = self.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def free(self) -> None:
        """Give unused memory of a GPU back, for the next contestant."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    def backward(self, loss: Callable[[], Tensor]) -> Tensor:
        with autocast(self.work.dtype, torch.device(self.work.device)):
            value = loss()
        torch.autograd.backward(value)
        return value.detach()

    def measure(self) -> Measures:
        device = torch.device(self.work.device)
        peak = peak_memory_gib(device)  # first, because counting uses more memory than a step
        try:
            flops = self.count()
        except Exception as error:  # the speeds are worth keeping
            _LOG.warning("the operations of a step are not counted: %s", error)
            flops = None
        self.optimizer.zero_grad()
        return Measures(peak, flops, matmul_peak(device, self.work.dtype), float(self.last))

    def count(self) -> int:
        """Return the floating-point operations of a step, counted by torch."""
        # MATH: torch cannot count the fused attention of CPUs. force_eager: the counter does not see compiled code.
        with (
            torch.compiler.set_stance("force_eager"),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            self.backward(self.contestant.loss)
        return int(counter.get_total_flops())


@contextmanager
def stopwatch(device: str) -> Iterator[list[Elapsed]]:
    """Yield a list that holds the time of the block after it; it waits for the device."""
    elapsed: list[Elapsed] = []
    wall, processor = time.perf_counter(), time.process_time()
    yield elapsed
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
    elapsed.append(Elapsed(time.perf_counter() - wall, time.process_time() - processor))
