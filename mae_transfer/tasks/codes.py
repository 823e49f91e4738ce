"""Token ids of a whole data set, computed once by all ranks and then read from disk.

Every crop must always be the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress

from mae_transfer.data import DataConfig, EvalKeys, PrecomputedLabels, Source, evaluation_views
from mae_transfer.data.sources import fingerprint
from mae_transfer.disk import atomic_write
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.state import RunConfig
from mae_transfer.interfaces import Target
from mae_transfer.locks import locked
from mae_transfer.targets import Token
from mae_transfer.tasks.sweep import pass_over

LOG = logging.getLogger(__name__)
PATIENCE_S = 60.0
IMAGES_PER_PART = 16384
"""Images of one part of a cache that is being computed; an interruption loses at most one part per process."""


def with_codes(source: Source, target: Target, data: DataConfig, run: RunConfig, dist: Dist, *, key: str) -> Source:
    """Return the source with each image's token ids as its label if the target has a cache, else the source.

    The file's name is a digest of everything that the ids depend on, so other images use another file.

    Args:
        key: what the ids depend on besides the data: the digest of the tokenizer, the split.
    Raises:
        ValueError: the augmentation is random, so that no crop occurs twice.
    """
    if not isinstance(target, Token) or target.cache is None:
        return source
    if data.augmentation.name != "none":
        raise ValueError(
            f"target.cache needs crops that are always the same, but data.augmentation is {data.augmentation.name!r}, "
            "which is random: set data.augmentation.name=none (table 1e), or leave target.cache out"
        )
    found: list[Any] = [None]
    if dist.is_main:
        about = f"{data.model_dump_json()} {target.view} {len(source)} {fingerprint(source).digest} {key}"
        found[0] = Path(target.cache) / f"tokens_{hashlib.sha256(about.encode()).hexdigest()[:16]}.npy"
    path = _agreed(found, dist)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        lock = path.with_name(f".{path.stem}.lock")
        while not _agreed([dist.is_main and _acquired(held, lock)], dist)[0]:  # other ranks wait a minute at a time
            pass
        parts = _parts(path, len(source))
        missing = [not path.exists(), [part for part in parts if not part.path.exists()]]
        needed, missing = _agreed(missing, dist)  # of the first rank: a network file system shows files late
        if needed:
            _compute(missing[dist.rank :: dist.world], source, target, data, run, dist)
            _wait(dist)
            if dist.is_main:
                _join(path, parts, target)
    _wait(dist)  # the file is complete
    return PrecomputedLabels(source, path)


def _agreed(values: list[Any], dist: Dist) -> list[Any]:
    """Return the values of the first rank."""
    if dist.world > 1:
        torch.distributed.broadcast_object_list(values, group=dist.side, group_src=0)
    return values


def _acquired(held: ExitStack, lock: Path) -> bool:
    """Return whether this run may compute the ids; False: after a minute another run still does."""
    try:
        held.enter_context(locked(lock, owner=f"process {os.getpid()} on {socket.gethostname()}", patience=PATIENCE_S))
    except ValueError:
        LOG.info("waiting for the token ids in %s: another run computes them", lock.parent)
        return False
    return True


def _wait(dist: Dist) -> None:
    if dist.world > 1:
        torch.distributed.barrier(group=dist.side)


class Part(NamedTuple):
    """The ids of consecutive images in a file of their own, until all parts are joined."""

    path: Path
    number: int
    of: int


def _parts(path: Path, images: int) -> list[Part]:
    count = -(-images // IMAGES_PER_PART)
    return [Part(path.with_name(f".{path.stem}.part{n}of{count}.npy"), n, count) for n in range(count)]


def _compute(
    parts: Sequence[Part], source: Source, target: Token, data: DataConfig, run: RunConfig, dist: Dist
) -> None:
    """Compute and write this rank's parts, each atomically: after an interruption only the missing ones remain."""
    view, size = evaluation_views(data, (target.view,)), run.evaluation_batch
    passes = [EvalKeys(images=len(source), batch=size, rank=part.number, world=part.of) for part in parts]
    with Progress(disable=not (run.progress and dist.is_main)) as bar:
        task = bar.add_task("tokens", total=sum(map(len, passes)))
        for part, keys in zip(parts, passes, strict=True):
            images = range(len(source) * part.number // part.of, len(source) * (part.number + 1) // part.of)
            codes = np.zeros((len(images), target.grid[0] * target.grid[1]), dtype=_dtype(target))
            alone = Dist(dist.device, rank=part.number, world=part.of)
            for batch in pass_over(
                source, view, alone, batch=keys.batch, workers=run.workers, unreadable=data.unreadable()
            ):
                codes[batch.index.cpu().numpy() - images.start] = (
                    target.tokenizer(batch.views[0]).flatten(1).cpu().numpy()
                )
                bar.advance(task)
            with atomic_write(part.path) as temporary, temporary.open("wb") as file:
                np.save(file, codes)


def _join(path: Path, parts: Sequence[Part], target: Token) -> None:
    """Write the parts into one file that workers map into memory, and remove them.

    Raises:
        ValueError: names a damaged part.
    """
    found = []
    for part in parts:
        try:
            found.append(np.load(part.path, mmap_mode="r"))
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{part.path} is damaged ({error}): delete it, then it is computed again") from None
    shape = (sum(map(len, found)), target.grid[0] * target.grid[1])
    with atomic_write(path) as temporary:
        joined = np.lib.format.open_memmap(temporary, mode="w+", dtype=_dtype(target), shape=shape)
        np.concatenate(found, out=joined)
        joined.flush()
    for part in parts:
        part.path.unlink()


def _dtype(target: Token) -> type[np.integer[Any]]:
    return np.uint16 if target.dim <= 2**16 else np.int32
