"""Statistics of the steps since the last log line.

The running sum of the loss and the first non-finite step stay on the device until the loop reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.engine.dist import Dist, read_mean

LEAST_SCALE = 2.0**-14  # float16 gradients that overflow even at this loss scale are NaN or infinite, not just large


class NonFiniteLoss(RuntimeError):  # noqa: N818 - an event, not an error of the caller
    """The loss or a parameter is no longer finite. Training has stopped and did not save this state."""


class Window:
    """Loss, sample ids and times since the last reading.

    Args:
        lr_at: step -> learning rate, for error messages.
        last_good: returns the path of the newest checkpoint, for error messages.
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
        """Exclude the block (saving, evaluating) from the measured speed."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def remember(self, step: int, batch: Any) -> None:
        """Keep the sample ids of a host batch that has a tensor `index` (attribute or key)."""
        ids = batch.get("index") if isinstance(batch, Mapping) else getattr(batch, "index", None)
        if isinstance(ids, Tensor):
            self._ids.append((step, ids))

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
        good = self._last_good()
        raise NonFiniteLoss(
            f"{what}; this state was not saved, the last good checkpoint is {good or 'none'}: "
            "lower the learning rate, set optim.clip_norm, or use precision bfloat16 or float32"
        )

    def _reset(self) -> None:
        self._loss.zero_()
        self._ids.clear()
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()
