"""Where the time of a step goes: a profile of some steps, and the peak that a device reaches in matrix products."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

import torch
from torch.profiler import profile, schedule

from mae_transfer.engine.log import Logger
from mae_transfer.engine.state import AUTOCAST, Precision

_LOG = logging.getLogger(__name__)
PROFILED = 3  # steps
ROWS = 30  # operations in the table


class Profile:
    """A context that profiles a few steps of a loop and writes a trace and a table into the folder of its log."""

    def __init__(self, after: int, log: Logger) -> None:
        """Get ready to profile the steps `after` + 1 to `after` + PROFILED."""
        self._after, self._log = after, log
        self._running: profile | None = None
        self._done = False

    def advance(self, step: int) -> None:
        """Start, go on or stop, before the next step and after `step` completed ones."""
        if self._running is not None:
            self._running.step()
        elif step == self._after - 1:  # one step to warm up
            window = schedule(wait=0, warmup=1, active=PROFILED, repeat=1)
            self._running = profile(schedule=window, on_trace_ready=self._write)
            self._running.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            self._running.stop()
        if not self._done:
            self._log.say(f"run.profile={self._after} profiled nothing: the run ended too early")

    def _write(self, done: profile) -> None:
        self._done = True
        path = self._log.folder / "profile" / f"step_{self._after:08d}.json"
        device = "device" if torch.cuda.is_available() else "cpu"
        table = done.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=ROWS)
        try:
            path.parent.mkdir(exist_ok=True)
            done.export_chrome_trace(str(path))
            path.with_suffix(".txt").write_text(table, encoding="utf-8")
        except OSError as error:
            _LOG.warning("run.profile: the profile was not written, and the run goes on: %s", error)
            return
        self._log.say(f"profile of the steps after {self._after}: {path} (open it in ui.perfetto.dev), {path.stem}.txt")


def matmul_peak(device: torch.device, precision: Precision, *, tries: int = 5) -> float:
    """Return the FLOP/s of the fastest of several large square matmuls, in the arithmetic of the precision."""
    side, dtype = 2048 if device.type == "cpu" else 8192, AUTOCAST[precision] or torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(tries + 1):  # the first one warms up
        start = time.perf_counter()
        a @ b
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times[1:])
