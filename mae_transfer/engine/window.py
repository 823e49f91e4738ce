"""The steps since the device was last read: the loss's running sum and the first non-finite step stay on the device until somebody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.engine.dist import Dist, read_mean

LEAST_SCALE = 2.0**-14  # float16 gradients that overflow even here are not large, they are not numbers


class NonFiniteLoss(RuntimeError):  # noqa: N818 - what happened, not a mistake of the caller
    """The loss or a parameter is no longer a finite number; training has stopped and nothing was saved from it."""


class Window:
    """What is remembered between two readings.

    Args:
        lr_at: step -> learning rate, for the error's text.
        last_good: gives the newest checkpoint's path, for the same.
    """

    def __init__(self, dist: Dist, *, lr_at: Callable[[int], float], last_good: Callable[[], Path | None]) -> None:
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
        """Leave the block (saving, evaluating) out of the speed."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def remember(self, step: int, batch: Any) -> None:
        """Keep the host-side sample ids of a batch that has a tensor `index` (attribute or key)."""
        ids = batch.get("index") if isinstance(batch, Mapping) else getattr(batch, "index", None)
        if isinstance(ids, Tensor):
            self._ids.append((step, ids))

    def add(self, step: int, loss: Tensor) -> None:
        """Add the loss of a finished step (0-d, on the device), without reading it."""
        self._steps += 1
        self._loss += loss
        self._bad.masked_fill_((self._bad < 0) & ~torch.isfinite(loss), step)

    def read(self, metrics: Mapping[str, Tensor], *, global_batch: int) -> dict[str, float]:
        """Return the mean loss since the last reading, the metrics (both over all ranks), img/s and the share of time waited for data.

        On cuda the host runs ahead of the device, so time waited is an upper bound of the time that the device lacked data.

        Raises:
            NonFiniteLoss: on every rank, where any rank met one.
        """
        means = read_mean({"loss": self._loss / self._steps, "bad": self._bad >= 0, **metrics}, self._dist)
        self._raise_if(means.pop("bad") > 0)
        elapsed = time.perf_counter() - self._start
        speed = {"images_per_s": self._steps * global_batch / elapsed, "data_wait": self._waited / elapsed}
        self._reset()
        return means | speed

    def verify(self, tensors: Sequence[Tensor], *, after: int) -> None:
        """Raise NonFiniteLoss, on every rank, unless the losses so far and all `tensors` after `after` steps are finite on every rank."""
        largest = torch.nn.utils.get_total_norm(tensors, norm_type=float("inf"))
        flags = read_mean({"bad": self._bad >= 0, "broken": ~torch.isfinite(largest)}, self._dist)
        self._raise_if(flags["bad"] > 0)
        if flags["broken"] > 0:
            self._fail(
                f"a parameter, buffer or moment is not finite after step {after - 1} (lr {self._lr_at(after - 1):.3e})"
            )
        self._ids.clear()

    def check_scale(self, scale: float, step: int) -> float:
        """Return the loss scale of float16; raise NonFiniteLoss where it has fallen so far that every step since was skipped."""
        if scale < LEAST_SCALE:
            self._fail(
                f"at step {step} the loss scale is {scale:g}: no gradient was finite for a long time, and every such step was skipped"
            )
        return scale

    def _raise_if(self, failed: bool) -> None:
        if not failed:
            return
        step = int(self._bad)
        if step < 0:
            self._fail("the loss is not finite on another rank, whose own message names the step")
        ids = [i for number, index in self._ids if number == step for i in index.tolist()]
        self._fail(
            f"the loss is not finite at step {step} (lr {self._lr_at(step):.3e}; sample ids on rank {self._dist.rank}: {ids})"
        )

    def _fail(self, what: str) -> None:
        good = self._last_good()
        raise NonFiniteLoss(
            f"{what}; nothing was saved from it, the last good checkpoint is {good or 'none'}: lower the lr, clip, or use bfloat16/float32"
        )

    def _reset(self) -> None:
        self._loss.zero_()
        self._ids.clear()
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()
