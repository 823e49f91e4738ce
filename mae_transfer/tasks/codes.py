"""Token ids of a whole data set, computed once and then read from disk. Every crop must always be the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from mae_transfer.data import DataConfig, PrecomputedLabels, Source, evaluation_views
from mae_transfer.data.sources import fingerprint
from mae_transfer.disk import whole
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.state import RunConfig
from mae_transfer.interfaces import Target
from mae_transfer.targets import Token
from mae_transfer.tasks.sweep import pass_over


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
    path: list[Any] = [None]
    if dist.is_main:
        about = f"{data.model_dump_json()} {target.view} {len(source)} {fingerprint(source).digest} {key}"
        path[0] = Path(target.cache) / f"tokens_{hashlib.sha256(about.encode()).hexdigest()[:16]}.npy"
        if not path[0].exists():
            _write_ids(path[0], source, target, data, run, dist.device)
    if dist.world > 1:
        torch.distributed.broadcast_object_list(path, group=dist.side, group_src=0)
    return PrecomputedLabels(source, path[0])


def _write_ids(
    path: Path, source: Source, target: Token, data: DataConfig, run: RunConfig, device: torch.device
) -> None:
    """Compute the ids (images, N) of every image and write them atomically."""
    codes = np.zeros(
        (len(source), target.grid[0] * target.grid[1]), dtype=np.uint16 if target.dim <= 2**16 else np.int32
    )
    view = evaluation_views(data, (target.view,))
    feed = pass_over(
        source, view, Dist(device), batch=run.evaluation_batch, workers=run.workers, unreadable=data.unreadable()
    )
    for batch in track(
        feed, description="tokens", total=-(-len(source) // run.evaluation_batch), disable=not run.progress
    ):
        codes[batch.index.cpu().numpy()] = target.tokenizer(batch.views[0]).flatten(1).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, codes)
