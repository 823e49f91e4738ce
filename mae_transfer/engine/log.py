"""Logging of a run. A Meter measures the steps between two log lines on the device; a Logger writes what it read.

The log is log.jsonl (one JSON object per line), TensorBoard, optionally W&B, and a progress bar or plain lines.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mae_transfer import disk
from mae_transfer.engine.dist import Dist, read_mean

Kind = Literal["train", "eval", "monitor"]
REFRESH_S = 0.25
LEAST_SCALE = 2.0**-14  # float16 gradients that overflow even at this loss scale are NaN or infinite, not just large
SHOWN = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.2e}",
    "images_per_s": "{:.0f} img/s",
    "mfu": "mfu {:.0%}",
    "peak_mem_gib": "{:.1f} GiB",
    "data_wait": "waiting for data {:.0%}",
}


class NonFiniteLoss(RuntimeError):  # noqa: N818 - an event, not an error of the caller
    """The loss or a parameter is no longer finite. Training has stopped and did not save this state."""


class Meter:
    """Loss, sample ids and times of the steps since the last reading.

    The running sum of the loss and the first non-finite step stay on the device until they are read.

    Args:
        lr_at: step -> learning rate, for error messages.
        last_good: returns the newest checkpoint in words, for error messages.
    """

    def __init__(self, dist: Dist, *, lr_at: Callable[[int], float], last_good: Callable[[], str]) -> None:
        self._dist, self._lr_at, self._last_good = dist, lr_at, last_good
        wide = torch.float32 if dist.device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=wide, device=dist.device)
        self._bad = torch.full((), -1, dtype=torch.int64, device=dist.device)
        self._ids: list[tuple[int, Tensor]] = []
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the block (saving, evaluating) from the measured speed."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def remember(self, step: int, batch: Any) -> None:
        """Keep the sample ids of a host batch, its `index`."""
        self._ids.append((step, batch.index))

    def add(self, step: int, loss: Tensor) -> None:
        """Add the loss of a finished step (0-d, on the device), without reading it."""
        self._steps += 1
        self._loss += loss
        self._bad.masked_fill_((self._bad < 0) & ~torch.isfinite(loss), step)

    def read(self, metrics: Mapping[str, Tensor], *, global_batch: int) -> dict[str, float]:
        """Return the mean loss since the last reading, the metrics, img/s and the share of time spent waiting for data.

        Loss and metrics are means over all ranks. On cuda the host runs ahead of the device, so the waiting time is an
        upper bound of the time in which the device had no data.

        Raises:
            NonFiniteLoss: on every rank, if any rank has a loss that is not finite.
        """
        means = read_mean({"loss": self._loss / self._steps, "bad": self._bad >= 0, **metrics}, self._dist)
        self._raise_if(means.pop("bad") > 0)
        elapsed = time.perf_counter() - self._start
        speed = {"images_per_s": self._steps * global_batch / elapsed, "data_wait": self._waited / elapsed}
        self._reset()
        return means | speed

    def verify(self, tensors: Sequence[Tensor], *, after: int) -> None:
        """Raise NonFiniteLoss on every rank unless all losses so far and all `tensors` are finite on every rank.

        after: completed steps, for the error message.
        """
        largest = torch.nn.utils.get_total_norm(tensors, norm_type=float("inf"))
        flags = read_mean({"bad": self._bad >= 0, "broken": ~torch.isfinite(largest)}, self._dist)
        self._raise_if(flags["bad"] > 0)
        if flags["broken"] > 0:
            self._fail(
                f"a parameter, buffer or moment is not finite after step {after - 1} (lr {self._lr_at(after - 1):.3e})"
            )
        self._ids.clear()

    def check_scale(self, scale: float, step: int) -> float:
        """Return the loss scale of float16; raise NonFiniteLoss if it is below LEAST_SCALE.

        The scale falls with each skipped step, so such a value means that no step had finite gradients for a long time.
        """
        if scale < LEAST_SCALE:
            self._fail(
                f"at step {step} the loss scale is {scale:g}: no gradient was finite for a long time, "
                "and every such step was skipped"
            )
        return scale

    def _raise_if(self, failed: bool) -> None:
        if not failed:
            return
        step = int(self._bad)
        if step < 0:
            self._fail("the loss is not finite on another rank (its message names the step)")
        ids = [i for number, index in self._ids if number == step for i in index.tolist()]
        self._fail(
            f"the loss is not finite at step {step} "
            f"(lr {self._lr_at(step):.3e}; sample ids on rank {self._dist.rank}: {ids})"
        )

    def _fail(self, what: str) -> None:
        raise NonFiniteLoss(
            f"{what}; this state was not saved, the last good checkpoint is {self._last_good()}: "
            "lower the learning rate, set optim.clip_norm, or use precision bfloat16 or float32"
        )

    def _reset(self) -> None:
        self._loss.zero_()
        self._ids.clear()
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()


class Logger:
    """Logger of one run; a context manager. The log of a resumed run continues without gaps or duplicates.

    Only rank 0 writes. Values are host floats.

    Args:
        folder: the work dir.
        steps: length of the run, for the progress bar and the time left.
        resumed_at: completed steps of the checkpoint that the run starts from; later lines of log.jsonl are dropped.
        main: False makes every method do nothing.
        progress: show the bar on a terminal, or a line per log step elsewhere.
        wandb: also log to Weights & Biases (its environment variables apply); ValueError if it is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        resumed_at: int = 0,
        main: bool = True,
        progress: bool = True,
        wandb: bool = False,
    ) -> None:
        self.folder = folder
        self._main, self._steps, self._step, self._start_step = main, steps, resumed_at, resumed_at
        self._start = self._drawn = time.monotonic()
        self._path = folder / "log.jsonl"
        self._bar: Progress | None = None
        self._progress = progress and main
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter  # the import takes a second

        self._wandb = _wandb_run(folder, resumed=resumed_at > 0) if wandb else None
        folder.mkdir(parents=True, exist_ok=True)
        _truncate(self._path, resumed_at)
        self._file = self._path.open("ab", buffering=0)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)
        console = Console()
        self._bar = _bar(console, steps, resumed_at) if progress and console.is_terminal else None

    def write(self, kind: Kind, step: int, values: Mapping[str, float | None]) -> None:
        """Record the values after `step` completed steps; values that are not finite become null."""
        if not self._main:
            return
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        disk.append_bytes(self._file, (json.dumps({"kind": kind, "step": step, **finite}) + "\n").encode(), self._path)
        curves = {f"{kind}/{name}": value for name, value in finite.items() if value is not None}
        try:
            for name, value in curves.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:  # an earlier failure of its writer thread
            raise disk.explain_failure(error, self._path.parent / "tensorboard") from error
        if self._wandb is not None:
            self._wandb.log(curves, step=step)
        self._show(kind, step, finite)

    def warn(self, step: int, words: str) -> None:
        """Record an alarm after `step` completed steps, as a row of kind "alarm", and print it."""
        if self._main:
            row = {"kind": "alarm", "step": step, "words": words}
            disk.append_bytes(self._file, (json.dumps(row) + "\n").encode(), self._path)
            self.say(f"alarm at step {step}: {words}")

    def tick(self, step: int) -> None:
        """Move the bar to `step` completed steps; redraws at most a few times per second."""
        self._step = step
        if self._bar is not None and time.monotonic() - self._drawn > REFRESH_S:
            self._bar.update(self._bar.task_ids[0], completed=step)
            self._bar.refresh()
            self._drawn = time.monotonic()

    def say(self, sentence: str) -> None:
        """Print a sentence, above the progress bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(sentence, markup=False, highlight=False)
        elif self._main:
            print(sentence, flush=True)

    def close(self) -> None:
        """Flush and close everything; a second call does nothing."""
        if not self._main:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._step)
            self._bar.stop()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._main, self._bar = False, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing fails again on a full disk; that error must not hide the one that ended the run.
        with suppress(OSError) if error is not None else nullcontext():
            self.close()

    def _show(self, kind: Kind, step: int, values: Mapping[str, float | None]) -> None:
        shown = SHOWN if kind == "train" else {name: name + " {:.4f}" for name in values}
        text = "  ".join(form.format(values[name]) for name, form in shown.items() if values.get(name) is not None)
        if kind == "train" and self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)
        elif self._progress:
            self.say(
                f"{kind} {step}/{self._steps}  {text}" + (f"  {self._time_left(step)} left" if kind == "train" else "")
            )

    def _time_left(self, step: int) -> str:
        seconds = (time.monotonic() - self._start) / max(step - self._start_step, 1) * (self._steps - step)
        return f"{seconds // 3600:.0f}:{seconds // 60 % 60:02.0f}:{seconds % 60:02.0f}"


def _bar(console: Console, steps: int, done: int) -> Progress:
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    bar = Progress(*columns, console=console, auto_refresh=False, speed_estimate_period=600)
    bar.add_task("train", total=steps, completed=done, text="")
    bar.start()
    return bar


def _truncate(path: Path, step: int) -> None:
    """Keep the lines up to `step`.

    An evaluation at `step` is dropped because the loop repeats it. A line that a crash cut short is dropped too.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    disk.write_text(path, "".join(line.decode() for line in lines if _belongs(line, step)))


def _belongs(line: bytes, step: int) -> bool:
    try:
        row = json.loads(line)
        kept: bool = row["step"] < step or (row["step"] == step and row["kind"] in ("train", "alarm"))
        return kept and line.endswith(b"\n")
    except (ValueError, KeyError, TypeError):  # truncated by a crash, or damaged
        return False


def _wandb_run(folder: Path, *, resumed: bool) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "run.wandb=True, but wandb is not installed: pip install wandb, or set run.wandb=False"
        ) from None
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the same after every resume
    return wandb.init(dir=str(folder), name=folder.name, id=identity, resume="allow" if resumed else None)
