"""The resumable loader: torch's DataLoader over an order that can start at any step.

The order of samples is a pure function of (seed, step). It needs no stored state, and resume is exact. A key (epoch,
image, repeat) identifies a sample. Each epoch permutes its images, each image gives `crops_per_image` neighbouring
crops, and each global batch is a consecutive slice of the crops. Rank r takes the r-th part of the slice, and its
micro-steps take consecutive parts of that. So order, crops and masks do not depend on the world size or on gradient
accumulation. Every sample is seeded by its key, so the batches do not depend on the number of workers.

Legend: B samples of a micro-batch, N patches of the grid, V visible patches, S pixels per side of a view.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby
from multiprocessing.connection import wait
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from mae_transfer.data.decode import Undecoded, UnreadableImage
from mae_transfer.data.rand_augment import DrawnOperation, pack_operations
from mae_transfer.data.regions import LeftCrop, Region, decode_regions, in_advance, in_turn
from mae_transfer.data.reports import collect_notes, report_counted, report_on_main
from mae_transfer.data.sources import Sample, Source
from mae_transfer.data.transforms import Augment, finish_region
from mae_transfer.interfaces import Batch, Mask, MaskSampler
from mae_transfer.seeding import fold, global_states_kept, seed_all

_LOG = logging.getLogger(__name__)
S = TypeVar("S")  # what a source reads
S_co = TypeVar("S_co", covariant=True)
D = TypeVar("D")  # what `draw` returns

REPLACEMENTS = 16  # attempts to replace an unreadable file
MORE_SHARED_MEMORY = (
    "if /dev/shm is full, raise its size (docker run --shm-size=8g), lower run.workers or run.device_batch, or set "
    "run.workers=0"
)
GRACE_S = 2.0  # seconds for a worker to finish before it is killed


class Key(NamedTuple):
    """One crop of one image. It seeds the random draws of the crop."""

    epoch: int
    image: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence of global batches. The last crops of an epoch are dropped if they do not fill a batch.

    Raises:
        ValueError: an epoch has fewer crops than one batch.
    """

    images: int
    batch: int  # crops of one optimizer step, over all ranks and micro-steps
    seed: int
    crops_per_image: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.crops_per_image < 1:
            raise ValueError(f"batch {self.batch}, crops_per_image {self.crops_per_image}: both must be at least 1")
        if self.steps_per_epoch < 1:
            crops = f"{self.images} images x {self.crops_per_image} crops"
            raise ValueError(
                f"the data set is smaller than one batch: {crops} < batch = {self.batch}; lower batch or add images"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the images."""
        return self.images * self.crops_per_image // self.batch

    def keys(self, step: int) -> list[Key]:
        """Return the keys of global batch `step` (0-based, counted from the start of training)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        crops = np.arange(within * self.batch, (within + 1) * self.batch)
        images = _permutation(self.images, self.seed, epoch)[crops // self.crops_per_image]
        return [
            Key(epoch, *pair) for pair in zip(images.tolist(), (crops % self.crops_per_image).tolist(), strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class TrainKeys:
    """The endless sequence of one rank's micro-batches from step `start`, as lists of keys for the loader's workers."""

    order: Order
    start: int = 0
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate
        if self.order.batch % (parts * self.order.crops_per_image):
            crops = self.order.crops_per_image
            raise ValueError(
                f"batch = {self.order.batch} cannot be split evenly over {self.world} processes x {self.accumulate} "
                f"micro-steps x {crops} crops per image; make it a multiple of {parts * crops}"
            )

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.order.batch // (self.world * self.accumulate)
        step = self.start
        while True:
            keys = self.order.keys(step)
            for micro in range(self.accumulate):
                first = (self.rank * self.accumulate + micro) * size
                yield keys[first : first + size]
            step += 1


@dataclass(frozen=True, kw_only=True)
class EvalKeys:
    """Every image exactly once, in order. Ranks take consecutive shares, and the last batch may be smaller."""

    images: int
    batch: int  # images of one process
    rank: int = 0
    world: int = 1
    first: int = 0  # index of the first image

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self._starts():
            images = range(start, min(start + self.batch, self._starts().stop))
            yield [Key(0, self.first + image, 0) for image in images]

    def __len__(self) -> int:
        return len(self._starts())

    def _starts(self) -> range:
        return range(self.images * self.rank // self.world, self.images * (self.rank + 1) // self.world, self.batch)


@lru_cache(maxsize=2)
def _permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(fold(seed, "order", epoch)).permutation(images)


class Masking(NamedTuple):
    """How the loader draws masks: a sampler and the (h, w) grid of patches."""

    sampler: MaskSampler
    grid: tuple[int, int]

    @property
    def visible(self) -> int:
        """V, the number of visible patches."""
        return self.sampler.visible(self.grid)


class Workers(NamedTuple):
    """The processes that decode."""

    processes: int = 0  # 0: the main process decodes
    prefetch: int = 2  # batches that each prepares in advance
    start_method: str | None = None  # fork, forkserver or spawn; None: Python's default


class WorkerOutput(NamedTuple):
    """The output of a worker: a batch, and messages about its files."""

    batch: Any  # Tensors with an `index`; None: no file could be read
    unreadable: dict[int, str]  # index -> message
    notes: tuple[str, ...] = ()  # about unusual files that are used
    failure: str = ""  # why the worker cannot send the batch
    left: dict[int, Region] | None = None  # rows of the batch whose images are still to be decoded
    undecoded: int = 0  # how many of them the device could not decode
    reason: str = ""  # why


class Readable(Protocol[S_co]):
    """The part of a data set that the loader uses, for any kind of sample."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> S_co: ...


@dataclass(frozen=True, kw_only=True)
class Samples(Dataset[WorkerOutput], Generic[S, D], ABC):
    """Turns the keys of one micro-batch into a batch, in a loader worker. Subclasses define `draw` and `collate`."""

    source: Readable[S]
    seed: int
    # True (training): replace an unreadable image by another one. False (evaluation): leave it out, because the
    # replacement would count twice.
    replaced: bool = True

    @abstractmethod
    def draw(self, sample: S, rng: np.random.Generator) -> D:
        """Return the augmented sample. `rng` and the global generators are seeded by its key."""

    @abstractmethod
    def collate(self, drawn: list[D], images: Tensor) -> Any:
        """Return the batch: Tensors whose `index` is `images`, (B,) int64, the images that were read."""

    def __getitem__(self, keys: list[Key]) -> WorkerOutput:
        with collect_notes() as notes, global_states_kept():
            output = self._load(keys)
        return output._replace(notes=tuple(notes))

    def _load(self, keys: list[Key]) -> WorkerOutput:
        unreadable: dict[int, str] = {}
        drawn: list[D] = []
        images: list[int] = []
        for (epoch, image), crops in groupby(keys, key=lambda key: (key.epoch, key.image)):
            found = self._drawn(epoch, image, list(crops), unreadable)
            if found is None and self.replaced:
                return WorkerOutput(None, unreadable)
            if found is None:
                continue
            drawn += found[0]
            images += [found[1]] * len(found[0])
        batch = self.collate(drawn, torch.tensor(images)) if drawn else None
        return WorkerOutput(batch, unreadable, left=self.left(drawn))

    def left(self, drawn: list[D]) -> dict[int, Region]:
        """Return the images that are still to be decoded, by their row in the batch."""
        return {}

    def finished(
        self, outputs: Iterable[WorkerOutput], keys: Iterable[list[Key]]
    ) -> Generator[WorkerOutput, None, None]:
        """Yield the outputs of the workers after the main process has decoded what they left. `keys` are theirs."""
        yield from outputs

    def _drawn(
        self, epoch: int, image: int, crops: list[Key], unreadable: dict[int, str]
    ) -> tuple[list[D], int] | None:
        """Return the crops of an image and its index; None if unreadable.

        With `replaced`, a pure function chooses another image.
        """
        for attempt in range(REPLACEMENTS if self.replaced else 1):
            other = fold(self.seed, "replace", epoch, image, attempt) % len(self.source) if attempt else image
            try:
                sample = self.source.read(other)
                return [self._draw(sample, key) for key in crops], other
            except (UnreadableImage, OSError) as error:
                unreadable[other] = str(error)
        return None

    def _draw(self, sample: S, key: Key) -> D:
        seed = fold(self.seed, "sample", *key)
        seed_all(seed)
        return self.draw(sample, np.random.default_rng(seed))


class Crop(NamedTuple):
    """One cropped image of a batch."""

    views: tuple[Tensor, ...]  # (3, S, S) uint8 each
    permutation: np.ndarray | None  # (N,) int64, visible patches first, then those to predict
    label: int | np.ndarray
    operations: tuple[DrawnOperation, ...] = ()  # RandAugment that is left to the device


@dataclass(frozen=True, kw_only=True)
class Crops(Samples[Sample, Crop]):
    """Images cropped by an augmentation, with masks for pretraining, as a Batch."""

    source: Source
    augmentation: Augment
    masking: Masking | None = None
    predicted: int | None = None  # hidden patches to predict, drawn uniformly; None: all
    operations: Callable[[Tensor], tuple[DrawnOperation, ...]] | None = None  # draws those for the device
    decode_on: torch.device | None = None  # decodes images of which one box is used; None: the worker

    def draw(self, sample: Sample, rng: np.random.Generator) -> Crop:
        """Return the views of one crop, and its mask."""
        if isinstance(sample.image, Undecoded):
            sample.image.left = self.decode_on is not None
        views = self.augmentation(sample.image)
        operations = self.operations(views[0]) if self.operations else ()
        permutation = self.masking.sampler(self.masking.grid, rng) if self.masking else None
        if self.masking and permutation is not None and self.predicted is not None:
            rng.shuffle(permutation[self.masking.visible :])
        return Crop(views, permutation, sample.label, operations)

    def collate(self, drawn: list[Crop], images: Tensor) -> Batch:
        """Return the crops as a Batch. Its images are those that are decoded."""
        first, *views = (_stack(group) for group in zip(*(crop.views for crop in drawn), strict=True))
        labels = torch.from_numpy(np.stack([crop.label for crop in drawn]))
        operations = pack_operations([crop.operations for crop in drawn], *first.shape[2:]) if self.operations else None
        return Batch(first, tuple(views), self._mask(drawn), labels, images, operations)

    def left(self, drawn: list[Crop]) -> dict[int, Region]:
        first = ((row, crop.views[0]) for row, crop in enumerate(drawn))
        return {row: view.region for row, view in first if isinstance(view, LeftCrop)}

    def finished(
        self, outputs: Iterable[WorkerOutput], keys: Iterable[list[Key]]
    ) -> Generator[WorkerOutput, None, None]:
        """Yield the outputs with all images, on the device. A GPU decodes a batch during the step of the one before.

        What the device cannot decode is drawn again, as in a worker.
        """
        if self.decode_on is None:
            return super().finished(outputs, keys)
        assert self.replaced, "each key has a row"
        on_gpu = self.decode_on.type == "cuda"
        stream = torch.cuda.Stream(self.decode_on) if on_gpu else None
        run, pairs = in_advance if on_gpu else in_turn, zip(outputs, keys, strict=False)
        return run(pairs, lambda pair: self._decode(*pair, stream), lambda pair, found: self._complete(*pair, found))

    def _decode(self, output: WorkerOutput, keys: list[Key], stream: torch.cuda.Stream | None) -> _Images | None:
        """Return the images of the batch; None if the worker has left none. It draws no random numbers."""
        left, device = output.left, self.decode_on
        if not left or device is None:
            return None
        with torch.cuda.stream(stream):  # None: no other stream
            found = decode_regions(list(left.values()), device)
            images = torch.empty((len(keys), *output.batch.image.shape[1:]), dtype=torch.uint8, device=device)
            failed, reason = [], found.reason
            for (row, region), pixels in zip(left.items(), found.boxes, strict=True):
                try:
                    done = None if pixels is None else finish_region(pixels, region)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:  # CUDA cannot reduce an image by a very large factor
                    done, reason = None, str(error).partition("\n")[0]
                if done is None:
                    failed.append(row)
                else:
                    images[row] = done
            here = [row for row in range(len(keys)) if row not in left]
            for row, image in zip(here, output.batch.image, strict=True):
                images[row].copy_(image, non_blocking=True)
            return _Images(images, failed, reason, stream.record_event() if stream else None)

    def _complete(self, output: WorkerOutput, keys: list[Key], found: _Images | None) -> WorkerOutput:
        """Return the output with these images, and with those drawn again that could not be decoded."""
        if found is None:
            if output.batch is not None:
                report_on_main(
                    "run.decode_on = 'device' had no effect on a batch, because none of its images is a plain JPEG: "
                    "remove it if few are"
                )
            return output
        batch, images, failed = output.batch, found.images, found.failed
        if found.ready is not None:
            stream = torch.cuda.current_stream(self.decode_on)
            stream.wait_event(found.ready)
            images.record_stream(stream)
        if not failed:
            return output._replace(batch=replace(batch, image=images), left=None)
        again = replace(self, decode_on=None)[[keys[row] for row in failed]]
        whole = WorkerOutput(
            None, output.unreadable | again.unreadable, (*output.notes, *again.notes), undecoded=len(failed),
            reason=found.reason,
        )  # fmt: skip
        if again.batch is None:
            return whole
        for row, image in zip(failed, again.batch.image, strict=True):
            images[row].copy_(image, non_blocking=True)
        batch.label[failed], batch.index[failed] = again.batch.label, again.batch.index
        return whole._replace(batch=replace(batch, image=images))

    def _mask(self, drawn: list[Crop]) -> Mask | None:
        if self.masking is None:
            return None
        ids = torch.from_numpy(np.stack([crop.permutation for crop in drawn if crop.permutation is not None]))
        keep, masked = (part.contiguous() for part in ids.tensor_split([self.masking.visible], dim=1))
        return Mask(keep, masked, None if self.predicted is None else masked[:, : self.predicted].contiguous())


class _Images(NamedTuple):
    """The images of a batch on the device that decoded them."""

    images: Tensor  # (B, 3, S, T) uint8
    failed: list[int]  # rows that are still empty
    reason: str  # why
    ready: torch.cuda.Event | None  # of the stream that computes them; None: they are there


def _stack(views: tuple[Tensor, ...]) -> Tensor:
    """Return the views that are decoded as one tensor."""
    decoded = [view for view in views if not isinstance(view, LeftCrop)]
    return torch.stack(decoded) if decoded else torch.empty((0, *views[0].shape), dtype=torch.uint8)


@dataclass(kw_only=True)
class Unreadable:
    """The policy for unreadable files: skip, count and report up to `limit` different files; 0: stop at the first."""

    limit: int = 0
    files: dict[int, str] = field(default_factory=dict)  # index -> message, since this process started
    odd: set[str] = field(default_factory=set)  # notes on files that are used, since this process started
    undecoded: int = 0  # crops that the device could not decode, since this process started

    def note(self, output: WorkerOutput) -> None:
        """Count and report the new files in an output. UnreadableImage above the limit.

        Crops that the device could not decode are reported whenever their number has doubled.
        """
        before, self.undecoded = self.undecoded, self.undecoded + output.undecoded
        if self.undecoded.bit_length() > before.bit_length():
            _LOG.warning("%d crops were not decoded on the device: %s", self.undecoded, output.reason)
        for message in output.notes:
            if message not in self.odd:
                self.odd.add(message)
                report_counted(len(self.odd), message)
        for index, message in output.unreadable.items():
            if index in self.files:
                continue
            self.files[index] = message
            if self.limit == 0:
                raise UnreadableImage(f"{message} (data.on_error='skip' skips and reports such files)")
            if len(self.files) > self.limit:
                raise UnreadableImage(
                    f"{message}; this is unreadable file number {len(self.files)}, max_unreadable = {self.limit}: "
                    "repair the files or raise data.max_unreadable"
                )
            _LOG.warning("unreadable file %d of at most %d, skipped: %s", len(self.files), self.limit, message)


def batches(
    samples: Samples[Any, Any],
    keys: TrainKeys | EvalKeys,
    *,
    workers: int | Workers = 0,
    pin: bool = False,
    unreadable: Unreadable | None = None,
) -> Generator[Any, None, None]:
    """Yield the batches of `keys`: endlessly for TrainKeys, one pass for EvalKeys.

    The batches are bitwise the same for any number of workers.

    Args:
        workers: the processes that decode, or their number. 0: decode in this process.
        pin: page-lock the batches, for a CUDA device.
        unreadable: the policy for unreadable files, and their record. None: the first one stops the run. An unreadable
            image is replaced by another one for TrainKeys, and left out for EvalKeys.

    Raises:
        UnreadableImage: names the file that the policy does not accept.
        RuntimeError: a worker died.
    """
    policy = unreadable or Unreadable()
    crew = workers if isinstance(workers, Workers) else Workers(workers)
    samples = replace(samples, replaced=isinstance(keys, TrainKeys))
    loader = DataLoader(
        samples,
        batch_size=None,
        sampler=keys,
        collate_fn=_to_shared_memory,
        num_workers=crew.processes,
        prefetch_factor=crew.prefetch if crew.processes else None,
        multiprocessing_context=crew.start_method if crew.processes else None,
        pin_memory=pin,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # without it the loader would draw from the global generator
    )
    feed = _start_workers(loader)
    # an exception can keep this generator alive until the process ends
    at_exit = atexit.register(partial(_end_workers, feed))
    try:
        with closing(samples.finished(_check_outputs(feed), keys)) as outputs:
            for output in outputs:
                policy.note(output)
                if output.batch is not None:
                    yield output.batch
                elif samples.replaced:
                    last = list(output.unreadable.values())[-1]
                    raise UnreadableImage(f"{REPLACEMENTS} files in a row are unreadable, the last: {last}")
    finally:
        atexit.unregister(at_exit)
        _end_workers(feed)


def _start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the loader's workers and return its iterator. If one cannot start, none is left running."""
    others = set(multiprocessing.active_children())
    try:
        return iter(loader)
    except OSError as error:  # no space for the semaphores of a queue, or too many processes
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise OSError(
            error.errno, f"loader workers cannot be started ({error.strerror}): {MORE_SHARED_MEMORY}"
        ) from error


def _check_outputs(feed: Iterator[WorkerOutput]) -> Iterator[WorkerOutput]:
    try:
        for output in feed:
            if output.failure:
                raise OSError(output.failure)
            yield output
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:  # workers send memory over a socket
        words = (str(error).splitlines() or [type(error).__name__])[0]
        # torch's message for a dead worker; the message of an error inside a worker starts with "Caught"
        if isinstance(error, RuntimeError) and not words.startswith("DataLoader worker"):
            raise
        raise RuntimeError(f"a loader worker died ({words}); if memory ran out, lower run.workers") from error


def _to_shared_memory(output: Any) -> Any:
    """Move a worker's batch into shared memory and report a failure.

    Otherwise the failure would occur in a thread of the worker, and the main process would wait forever.
    """
    if get_worker_info() is None:
        return output
    try:
        if output.batch is not None:
            output.batch.apply(Tensor.share_memory_)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        failure = f"a loader worker has no shared memory for its batch ({reason}): {MORE_SHARED_MEMORY}"
        return WorkerOutput(None, {}, failure=failure)
    return output


def _init_worker(_: int) -> None:
    """Ignore SIGTERM and SIGINT, and end the worker when the main process ends.

    The main process handles these signals: it needs its workers to save and to end cleanly.
    """
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _end_workers(feed: Any) -> None:
    """End a loader's workers, once. torch waits for each worker, then sends SIGTERM, which the workers ignore."""
    workers = getattr(feed, "_workers", [])
    if not workers or feed._shutdown:
        return
    if feed._worker_pids_set:  # torch's SIGCHLD handler would raise for a killed worker
        signal_handling._remove_worker_pids(id(feed))  # type: ignore[attr-defined]  # it has no public name
        feed._worker_pids_set = False
    killing = threading.Timer(GRACE_S, lambda: [worker.kill() for worker in workers if worker.is_alive()])
    killing.daemon = True
    killing.start()
    feed._shutdown_workers()
    killing.cancel()
