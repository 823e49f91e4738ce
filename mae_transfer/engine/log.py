"""Logging of a run: log.jsonl (one JSON object per line), TensorBoard, optionally W&B, a progress bar or plain lines.

Only rank 0 writes; the Logger of other ranks does nothing. Values are host floats, which the loop read in one transfer.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mae_transfer import disk

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Kind = Literal["train", "eval"]
REFRESH_S = 0.25
SHOWN = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.2e}",
    "images_per_s": "{:.0f} img/s",
    "data_wait": "waiting for data {:.0%}",
}


class Logger:
    """Logger of one run; a context manager. The log of a resumed run continues without gaps or duplicates.

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
        self._main, self._steps, self._step, self._start_step = main, steps, resumed_at, resumed_at
        self._start = self._drawn = time.monotonic()
        self._path = folder / "log.jsonl"
        self._file: IO[bytes] | None = None
        self._board: SummaryWriter | None = None
        self._wandb: Any = None
        self._bar: Progress | None = None
        self._progress = progress and main
        if main:
            self._open(folder, progress=progress, wandb=wandb)

    def _open(self, folder: Path, *, progress: bool, wandb: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the import takes a second

        self._wandb = _wandb_run(folder, resumed=self._step > 0) if wandb else None
        folder.mkdir(parents=True, exist_ok=True)
        _truncate(self._path, self._step)
        self._file = self._path.open("ab", buffering=0)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=self._step + 1)
        console = Console()
        self._bar = _bar(console, self._steps, self._step) if progress and console.is_terminal else None

    def write(self, kind: Kind, step: int, values: Mapping[str, float | None]) -> None:
        """Record the values after `step` completed steps; values that are not finite become null."""
        if not self._main:
            return
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        assert self._file is not None
        assert self._board is not None
        disk.extend(self._file, (json.dumps({"kind": kind, "step": step, **finite}) + "\n").encode(), self._path)
        curves = {f"{kind}/{name}": value for name, value in finite.items() if value is not None}
        try:
            for name, value in curves.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:  # an earlier failure of its writer thread
            raise disk.named(error, self._path.parent / "tensorboard") from error
        if self._wandb is not None:
            self._wandb.log(curves, step=step)
        self._show(kind, step, finite)

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
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._step)
            self._bar.stop()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._main, self._bar, self._file, self._board, self._wandb = False, None, None, None, None

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
        return line.endswith(b"\n") and bool(row["step"] < step or (row["step"] == step and row["kind"] == "train"))
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
