"""Stop on a signal and save by the clock; all ranks agree without waiting for a device."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as td

from mae_transfer.engine.dist import Dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0  # seconds; a repeat within them counts as the same signal: batch systems and torchrun both send it, twice


class Request(NamedTuple):
    """Actions after this step, agreed by all ranks."""

    stop: bool
    save: bool


class Stopped(Exception):  # noqa: N818 - an event, not an error
    """A signal ended an evaluation between two batches."""


class Interrupt:
    """Context manager that turns SIGTERM or Ctrl-C into a request to stop after the current step.

    A second Ctrl-C, at least a second later, acts as usual. With several ranks a request is sent after one step and
    read after the next, so no rank waits for it. Signal handlers belong to the process, so only one interrupt is
    `active` at a time; an evaluation finds it there.
    """

    active: Interrupt | None = None

    def __init__(self, dist: Dist, *, save_minutes: float | None) -> None:
        self._dist = dist
        self._interval = float("inf") if save_minutes is None else save_minutes * 60
        self._due = time.monotonic() + self._interval
        self._stop = False
        self._since = 0.0  # time of the first signal
        self._previous: dict[int, Any] = {}
        self._sent: tuple[torch.Tensor, Any] | None = None

    @property
    def world(self) -> int:
        """Number of processes."""
        return self._dist.world

    def __enter__(self) -> Self:
        Interrupt.active = self
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to the main thread only
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Interrupt.active = None
        self._restore()
        if self._sent is not None and error is None:
            self._sent[1].wait()

    def poll(self) -> Request:
        """Return what to do after this step. Every rank calls it once per step and gets the same result."""
        local = Request(self._stop, self._clock())
        if self._dist.world == 1:
            return local
        agreed = Request(False, False)
        if self._sent is not None:
            flags, work = self._sent
            work.wait()
            agreed = Request(*map(bool, flags.tolist()))
        flags = torch.tensor([local.stop, local.save], dtype=torch.uint8)
        self._sent = flags, td.all_reduce(flags, td.ReduceOp.MAX, group=self._dist.side, async_op=True)
        return agreed

    def check(self) -> None:
        """Raise Stopped if any rank received a signal; every rank raises after the same batch of an evaluation.

        Every rank must call it equally often.
        """
        if self.poll().stop:
            raise Stopped

    def _clock(self) -> bool:
        """Return whether a save by the clock is due; only the clock of rank 0 counts."""
        due = self._dist.is_main and time.monotonic() >= self._due
        if due:
            self._due = time.monotonic() + self._interval
        return due

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._stop:
            self._stop, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
