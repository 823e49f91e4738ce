"""Fits the PCA basis of the target `pca` to the training crops of a pretraining config."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from rich.progress import track
from torch import Tensor

from mae_transfer.checkpoints.tokenizers import save_basis
from mae_transfer.core.normalize import normalize
from mae_transfer.core.patches import patchify
from mae_transfer.core.pca import Basis, fit_basis
from mae_transfer.data import Order, Source, TrainKeys, Unreadable, batches, open_sources, training_crops
from mae_transfer.tasks.pretrain import PretrainConfig
from mae_transfer.tasks.sweep import workers_of

IMAGES_PER_BATCH = 64


def fit(cfg: PretrainConfig, work_dir: Path, *, components: int, images: int) -> Basis:
    """Fit the `components` strongest principal components of the patches of at least `images` training crops.

    Write them to basis.safetensors and print the share of the variance that they explain.

    Raises:
        ValueError: there are more components than values in a patch, or fewer images than in a batch.
    """
    patch, path = cfg.model.encoder.patch, work_dir / "basis.safetensors"
    policy = cfg.data.unreadable()
    source, _ = open_sources(cfg.data)
    batch = min(IMAGES_PER_BATCH, images, len(source))
    count = math.ceil(images / batch)
    basis = fit_basis(patches(cfg, source, batch, count, policy), components, patch=patch, statistics=cfg.statistics)
    save_basis(path, basis)
    if policy.files:
        print(f"{len(policy.files)} unreadable images were replaced by others")
    shares = {
        count: float(basis.explained[:count].sum())
        for count in (1, 2, 4, 8, 16, 32, 64, components)
        if count <= components
    }
    print(
        "share of the variance explained by the first: "
        + ", ".join(f"{count}: {share:.1%}" for count, share in shares.items())
    )
    print(
        f"done: {path} (target=dict(name='pca', basis='{path}')), from patches of {patch} px of "
        f"{batch * count} crops of {cfg.data.name}"
    )
    return basis


def patches(cfg: PretrainConfig, source: Source, batch: int, count: int, policy: Unreadable) -> Iterator[Tensor]:
    """Yield the normalised patches (n, P) of `count` batches of training crops.

    Every image is used once before any is used again.
    """
    crops = training_crops(cfg.data, source, seed=cfg.seed)
    share = TrainKeys(
        order=Order(images=len(source), batch=batch, seed=cfg.seed), start=0, rank=0, world=1, accumulate=1
    )
    feed = batches(crops, share, workers=workers_of(cfg.run), unreadable=policy)
    taken_batches = itertools.islice(feed, count)
    for taken in track(taken_batches, description="patches", total=count, disable=not cfg.run.progress):
        yield patchify(normalize(taken.image, cfg.statistics), cfg.model.encoder.patch).flatten(0, 1)
