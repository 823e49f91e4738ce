"""The resumable loader: torch's DataLoader over an order that can start anywhere; every sample is seeded by its key, so workers do not matter.

Legend: B samples of a micro-batch, N patches of the grid, V visible ones, S pixels per side of a view.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mae_transfer.data.decode import UnreadableImage
from mae_transfer.data.order import Key, Share, Sweep
from mae_transfer.data.source import Sample, Source
from mae_transfer.data.transforms import Augmentation
from mae_transfer.interfaces import Batch, Mask, MaskSampler
from mae_transfer.seeding import fold, seeded

log = logging.getLogger(__name__)

REPLACEMENTS = 16  # unreadable files in a row before a sample is given up


class Masking(NamedTuple):
    """How the loader draws masks: the task's sampler on its (h, w) grid of patches."""

    sampler: MaskSampler
    grid: tuple[int, int]


class Delivery(NamedTuple):
    """What a worker hands over: a batch, and what was wrong with the files that it had to replace."""

    batch: Batch | None  # None: no replacement was readable either
    unreadable: dict[int, str]  # index -> message


class Drawn(NamedTuple):
    """One sample of a batch."""

    views: tuple[Tensor, ...]  # (3, S, S) uint8 each
    permutation: np.ndarray | None  # (N,) int64, visible patches first
    label: int | np.ndarray
    image: int  # index of the image that was read


@dataclass(frozen=True, kw_only=True)
class Crops(Dataset[Delivery]):
    """Turns the keys of one micro-batch into a Batch; runs in the loader's workers."""

    source: Source
    augmentation: Augmentation
    seed: int
    masking: Masking | None = None

    def __getitem__(self, keys: list[Key]) -> Delivery:
        unreadable: dict[int, str] = {}
        drawn: list[Drawn] = []
        for (epoch, image), crops in groupby(keys, key=lambda key: (key.epoch, key.image)):
            found = self._read(epoch, image, unreadable)
            if found is None:
                return Delivery(None, unreadable)
            drawn += [self._draw(key, *found) for key in crops]
        return Delivery(_collate(drawn, self.masking), unreadable)

    def _read(self, epoch: int, image: int, unreadable: dict[int, str]) -> tuple[Sample, int] | None:
        """Return the image and its index; an unreadable one is noted and replaced by another, chosen by a pure function."""
        for attempt in range(REPLACEMENTS):
            other = fold(self.seed, "replace", epoch, image, attempt) % len(self.source) if attempt else image
            try:
                return self.source.read(other), other
            except (UnreadableImage, OSError) as error:
                unreadable[other] = str(error)
        return None

    def _draw(self, key: Key, sample: Sample, image: int) -> Drawn:
        with seeded(fold(self.seed, "sample", *key)) as rng:
            views = self.augmentation(sample.image)
            permutation = self.masking.sampler(self.masking.grid, rng) if self.masking else None
        return Drawn(views, permutation, sample.label, image)


@dataclass(kw_only=True)
class Unreadable:
    """The policy for unreadable files: `limit` 0 stops at the first, more are reported once each, counted, and replaced up to the limit."""

    limit: int = 0
    files: dict[int, str] = field(default_factory=dict)  # index -> message, of this process since its start

    def note(self, delivery: Delivery) -> None:
        """Count and report what is new in a delivery; UnreadableImage above the limit or where no replacement could be read."""
        for index, message in delivery.unreadable.items():
            if index in self.files:
                continue
            self.files[index] = message
            if self.limit == 0:
                raise UnreadableImage(f"{message} (on_error='skip' would replace such files and report them)")
            if len(self.files) > self.limit:
                raise UnreadableImage(f"{message}; this is unreadable file number {len(self.files)}, max_unreadable = {self.limit}")
            log.warning("unreadable file %d of at most %d, replaced by another: %s", len(self.files), self.limit, message)
        if delivery.batch is None:
            raise UnreadableImage(f"{REPLACEMENTS} files in a row are unreadable, the last: {list(delivery.unreadable.values())[-1]}")


def batches(crops: Crops, keys: Share | Sweep, *, workers: int = 0, pin: bool = False, unreadable: Unreadable | None = None) -> Iterator[Batch]:
    """Yield the batches of `keys`: endlessly for a Share, one pass for a Sweep. They are the same bit for bit for any number of workers.

    Args:
        workers: processes that decode; 0: this one does.
        pin: page-lock the batches, for a CUDA device.
        unreadable: the policy for unreadable files, and their record; None: the first one stops the run.
    Raises:
        UnreadableImage: names the file that the policy does not accept.
        RuntimeError: a worker died.
    """
    policy = unreadable or Unreadable()
    loader = DataLoader(
        crops,
        batch_size=None,
        sampler=keys,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # or creating it would draw from the global one
    )
    for delivery in _guarded(loader):
        policy.note(delivery)
        assert delivery.batch is not None
        yield delivery.batch


def _guarded(loader: Iterable[Delivery]) -> Iterator[Delivery]:
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # torch's own words; an error inside a worker reads "Caught ..."
            raise
        raise RuntimeError(f"a loader worker died ({str(error).splitlines()[0]}); if memory ran out, lower the number of workers") from error


def _collate(drawn: list[Drawn], masking: Masking | None) -> Batch:
    images, *views = (torch.stack(group) for group in zip(*(d.views for d in drawn), strict=True))
    return Batch(
        images, tuple(views), _mask(drawn, masking), torch.from_numpy(np.stack([d.label for d in drawn])), torch.tensor([d.image for d in drawn])
    )


def _mask(drawn: list[Drawn], masking: Masking | None) -> Mask | None:
    if masking is None:
        return None
    ids = torch.from_numpy(np.stack([d.permutation for d in drawn if d.permutation is not None]))
    visible = masking.sampler.visible(masking.grid)
    return Mask(ids[:, :visible].contiguous(), ids[:, visible:].contiguous())


def _as_is(delivery: Any) -> Any:
    return delivery


def _ignore_signals(_: Any) -> None:
    """Leave SIGTERM and SIGINT to the main process: batch systems send them to all, and it still needs its workers to save and end cleanly."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
