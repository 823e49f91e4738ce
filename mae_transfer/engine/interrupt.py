"""When to stop and when to save by the clock: signals and time, agreed upon by all ranks without waiting for a device."""

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
ECHO = 1.0  # seconds in which a repeated signal is the first one again: batch systems and torchrun both send it, to the group and to each process


class Wish(NamedTuple):
    """What the ranks agreed to do after this step."""

    stop: bool
    save: bool


class Stopped(Exception):  # noqa: N818 - what happened, not a mistake of the caller
    """A signal has ended an evaluation between two batches."""


class Interrupt:
    """Turns SIGTERM or Ctrl-C into a wish to stop after the step; a second Ctrl-C, a second later or more, acts as it always does. Context manager.

    With several ranks a wish is sent after one step and read after the next, so that nobody ever waits for it. Signals are the process's, so one
    interrupt at a time is `active`: an evaluation asks it without being handed it.
    """

    active: Interrupt | None = None

    def __init__(self, dist: Dist, *, save_minutes: float | None) -> None:
        self._dist = dist
        self._interval = float("inf") if save_minutes is None else save_minutes * 60
        self._due = time.monotonic() + self._interval
        self._stop = False
        self._since = 0.0  # of the first signal
        self._previous: dict[int, Any] = {}
        self._sent: tuple[torch.Tensor, Any] | None = None

    @property
    def world(self) -> int:
        """How many processes agree."""
        return self._dist.world

    def __enter__(self) -> Self:
        Interrupt.active = self
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Interrupt.active = None
        self._restore()
        if self._sent is not None and error is None:
            self._sent[1].wait()

    def poll(self) -> Wish:
        """Return what to do after this step; every rank calls it once per step and gets the same answer."""
        mine = Wish(self._stop, self._clock())
        if self._dist.world == 1:
            return mine
        agreed = Wish(False, False)
        if self._sent is not None:
            flags, work = self._sent
            work.wait()
            agreed = Wish(*map(bool, flags.tolist()))
        flags = torch.tensor([mine.stop, mine.save], dtype=torch.uint8)
        self._sent = flags, td.all_reduce(flags, td.ReduceOp.MAX, group=self._dist.side, async_op=True)
        return agreed

    def check(self) -> None:
        """Raise Stopped, on every rank after the same batch of an evaluation, where a rank was told to stop; every rank calls it as often."""
        if self.poll().stop:
            raise Stopped

    def _clock(self) -> bool:
        """Rank 0's clock counts."""
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
