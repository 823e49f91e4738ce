"""Token ids of a whole data set, computed once by all ranks and then read from disk.

Every crop must always be the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from mae_transfer.data import Crops, DataConfig, EvalKeys, PrecomputedLabels, Source, batches, evaluation_views
from mae_transfer.data.sources import fingerprint
from mae_transfer.engine.dist import Dist, agree
from mae_transfer.engine.state import RunConfig
from mae_transfer.interfaces import Target
from mae_transfer.targets import Token
from mae_transfer.tasks.cached import compute_once
from mae_transfer.tasks.sweep import EVALUATION_SEED, workers_of


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
    folder = Path(target.cache)

    def locate() -> Path:
        about = f"{data.model_dump_json()} {target.view} {len(source)} {fingerprint(source).digest} {key}"
        return folder / f"tokens_{hashlib.sha256(about.encode()).hexdigest()[:16]}.npy"

    path, row = agree(locate, dist), np.dtype((_type_of(target), (target.grid[0] * target.grid[1],)))
    samples = Crops(source=source, augmentation=evaluation_views(data, (target.view,)), seed=EVALUATION_SEED)
    policy = data.unreadable()
    with Progress(disable=not (run.progress and dist.is_main)) as bar:
        task = bar.add_task("tokens", total=-(-len(source) // (dist.world * run.evaluation_batch)))

        def compute(images: range) -> np.ndarray:
            rows = np.zeros(len(images), row)
            keys = EvalKeys(images=len(images), batch=run.evaluation_batch, first=images.start)
            for batch in batches(samples, keys, workers=workers_of(run), unreadable=policy):
                ids = target.tokenizer(batch.views[0].to(dist.device)).flatten(1)
                rows[batch.index.numpy() - images.start] = ids.numpy(force=True)
                bar.advance(task)
            return rows

        compute_once(path, compute, dist, images=len(source), row=row, batch=run.evaluation_batch)
    return PrecomputedLabels(source, path)


def _type_of(target: Token) -> type[np.integer[Any]]:
    return np.uint16 if target.dim <= 2**16 else np.int32
