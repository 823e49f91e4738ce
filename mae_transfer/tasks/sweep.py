"""One pass over a data set for an evaluation. Each rank reads its part; unreadable files are counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor

from mae_transfer.data import Augment, Crops, EvalKeys, Masking, Samples, Source, Unreadable, Workers, batches
from mae_transfer.engine.dist import Dist, read_mean
from mae_transfer.engine.interrupt import Interrupt
from mae_transfer.engine.state import RunConfig
from mae_transfer.interfaces import Batch

B = TypeVar("B")
EVALUATION_SEED = 0  # for the random draws of an evaluation (masks); the same in every run, so runs are comparable


def workers_of(run: RunConfig) -> Workers:
    """Return how a run decodes."""
    return Workers(run.workers, run.prefetch, run.start_method)


def pass_over(
    source: Source,
    view: Augment,
    dist: Dist,
    *,
    batch: int,
    workers: int | Workers,
    unreadable: Unreadable,
    masking: Masking | None = None,
) -> Iterator[Batch]:
    """Yield this rank's part of a source on the device, every image once. Masks depend only on the image's index."""
    crops = Crops(source=source, augmentation=view, seed=EVALUATION_SEED, masking=masking)
    yield from sweep_over(crops, dist, batch=batch, workers=workers, unreadable=unreadable)


def sweep_over(
    samples: Samples[Any, Any], dist: Dist, *, batch: int, workers: int | Workers, unreadable: Unreadable
) -> Iterator[Any]:
    """Yield this rank's part of samples of any kind on the device, every image once (see `interruptible`)."""
    images = len(samples.source)
    sweep = EvalKeys(images=images, batch=batch, rank=dist.rank, world=dist.world)
    pin = dist.device.type == "cuda"
    with closing(batches(samples, sweep, workers=workers, pin=pin, unreadable=unreadable)) as feed:
        for read in interruptible(feed, dist, images=images, batch=batch):
            yield read.to(dist.device, non_blocking=True)


def interruptible(feed: Iterable[B], dist: Dist, *, images: int, batch: int) -> Iterator[B]:
    """Yield this rank's batches of a pass.

    In a run in which all ranks of `dist` take part, a signal ends the pass between two batches (Stopped).

    Args:
        images: of all ranks.
        batch: images per batch.
    """
    interrupt = Interrupt.active if Interrupt.active is not None and Interrupt.active.world == dist.world else None
    common = -(-(images // dist.world) // batch)  # the number of batches that every rank has
    for read in feed:
        if interrupt is not None and common > 0:
            interrupt.check()
            common -= 1
        yield read
    while interrupt is not None and common > 0:  # batches of unreadable files only were not yielded
        interrupt.check()
        common -= 1


def readable(images: int, left_out: Mapping[str, float], *, of: str) -> int:
    """Return the number of images that were read, given the result of `unread`.

    Raises:
        ValueError: no image could be read.
    """
    seen = round(images - left_out.get("unreadable", 0))
    if not seen:
        raise ValueError(f"no image of the {of} could be read: check its files")
    return seen


def unread(policy: Unreadable, dist: Dist) -> dict[str, float]:
    """Return {"unreadable": number of unreadable images of all ranks}, or {} if there are none. Every rank calls it."""
    count = round(read_mean({"n": torch.tensor(len(policy.files), device=dist.device)}, dist)["n"] * dist.world)
    return {"unreadable": count} if count else {}


def sum_of_ranks(part: Tensor, dist: Dist) -> Tensor:
    """Return the sum of the parts of all ranks. Every rank calls it."""
    total = part.clone()
    if dist.world > 1:
        torch.distributed.all_reduce(total)
    return total


def mean_of_sums(sums: Mapping[str, Tensor], images: int, dist: Dist) -> dict[str, float]:
    """Return the means over the images of all ranks, given the sums over the `images` of this rank.

    Every rank calls it. ValueError if no rank has an image.
    """
    means = read_mean({**sums, "images": torch.tensor(images, device=dist.device)}, dist)
    if not means["images"]:
        raise ValueError("no image of an evaluation set could be read: check its files")
    return {name: means[name] / means["images"] for name in sums}


def gather(part: Tensor, dist: Dist) -> Tensor:
    """Return the parts of all ranks, concatenated in the order of ranks, on every rank."""
    if dist.world == 1:
        return part
    counts: list[Any] = [None] * dist.world
    torch.distributed.all_gather_object(counts, len(part), group=dist.side)
    parts = [
        part.contiguous() if rank == dist.rank else part.new_empty((count, *part.shape[1:]))
        for rank, count in enumerate(counts)
    ]
    for rank, buffer in enumerate(parts):
        torch.distributed.broadcast(buffer, rank)
    return torch.cat(parts)
