"""Weighted k-NN on frozen features, without training (DINO's protocol). Every k is reported, so nothing is selected.

Legend: N training images, D width, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as td
from pydantic import Field
from torch import Tensor

from mae_transfer import results
from mae_transfer.bounds import Count, Factor, Seed
from mae_transfer.core.normalize import Mean, Std, normalize
from mae_transfer.data import EvalKeys, LabelledDataConfig, Source, Unreadable, evaluation_views, open_labelled
from mae_transfer.engine.dist import Dist, peak_memory_gib, read_mean, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.state import Precision, RunConfig, autocast
from mae_transfer.metrics.accuracy import hits, top_ks
from mae_transfer.metrics.knn import knn_scores
from mae_transfer.models.heads import Pool, pool
from mae_transfer.record import Record
from mae_transfer.tasks.backbones import BackboneConfig, Chosen, open_backbone, tokens_of
from mae_transfer.tasks.classify import DEBUG_ENCODER
from mae_transfer.tasks.config import NormalisedConfig
from mae_transfer.tasks.provenance import About, evaluation_record
from mae_transfer.tasks.sweep import pass_over, unread
from mae_transfer.tasks.task import sole_user
from mae_transfer.tasks.workdir import WorkDir, open_work_dir, write_config


class KnnConfig(NormalisedConfig):
    """A k-NN evaluation."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "ks": (1, 3),
        "data.train": {"name": "shapes", "length": 6, "size": 32},
        "data.val": {"name": "shapes", "length": 2, "size": 32, "seed": 1},
        "data.size": 32,
        "backbone": {"encoder": DEBUG_ENCODER},
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    task: Literal["knn"] = "knn"
    """Which task the file configures."""
    scale: Literal["mini", "small", "paper"]
    """How close the run is to the paper's. It is printed beside every number."""
    data: LabelledDataConfig = LabelledDataConfig()
    """Images: those of `train` vote, those of `val` are classified. All are cropped as in evaluation."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone to evaluate. --backbone sets its reference."""
    mean: Mean | None = None
    """Mean per channel on the scale [0, 1], to normalise images. None: that of the backbone's pretraining."""
    std: Std | None = None
    """Standard deviation per channel. Set both `mean` and `std`, or neither."""
    pool: Pool = "cls"
    """Features of an image, after the final norm: the class token ("cls"), or the mean of the patch tokens ("mean")."""
    ks: tuple[Count, ...] = Field(default=(10, 20, 100, 200), min_length=1)
    """Numbers of neighbours. Each gives a result."""
    temperature: Factor = 0.07
    """Temperature of the votes, exp(cosine / temperature)."""
    precision: Precision = "bfloat16"
    """Arithmetic of the encoder. Similarities are float32."""
    seed: Seed = 0
    """Seed of fresh weights, for a backbone without a file."""
    run: RunConfig = RunConfig()
    """Execution options. They change no number."""


def run(cfg: KnnConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Classify the validation images by their nearest training images.

    Rank 0 appends one Result per k and top-k to results.jsonl in work_dir.

    Args:
        resume: has no effect, because there is no state to continue from.
    Raises:
        ValueError: config, data and backbone do not fit together.
    """
    with session(cfg.run.device, timeout_minutes=cfg.run.timeout_minutes) as dist, torch.no_grad():
        start = time.perf_counter()
        split, val = open_labelled(cfg.data)
        if max(cfg.ks) > len(split.train):
            raise ValueError(
                f"ks = {cfg.ks}: there are not {max(cfg.ks)} neighbours of {len(split.train)} training images; lower ks"
            )
        chosen = open_backbone(cfg.backbone, {"image_size": cfg.data.size}, statistics=cfg.statistics, seed=cfg.seed)
        folder = open_work_dir(work_dir, cfg, resume=True)
        chosen.model.to(dist.device).eval()
        sources = (split.train, val)
        steps = sum(len(sweep_of(cfg, source, dist)) for source in sources)
        logger = partial(
            Logger, work_dir, steps=steps, main=dist.is_main, progress=cfg.run.progress, wandb=cfg.run.wandb
        )
        with sole_user(work_dir, dist), logger() as log:
            if dist.is_main:
                write_config(folder, cfg)
            log.say(
                f"k-NN of {chosen.name} (pretraining: {chosen.pretrain}; {cfg.scale} scale), {len(split.train)} "
                f"training images, {len(val)} to classify\nnormalised with {chosen.normalization}"
            )
            tick = ticker(log)
            policies = cfg.data.unreadable(), cfg.data.unreadable()
            bank, labels = (
                gathered(part, dist) for part in features(cfg, chosen, split.train, dist, tick, policies[0])
            )
            if max(cfg.ks) > len(bank):
                raise ValueError(
                    f"ks = {cfg.ks}: only {len(bank)} training images could be read, fewer than {max(cfg.ks)} "
                    "neighbours; lower ks"
                )
            figures = classify(cfg, chosen, val, bank, labels, dist, tick, policies[1])
            unreadable = round(sum(unread(policy, dist).get("unreadable", 0) for policy in policies))
            log.write("eval", steps, figures)
            seconds, images = time.perf_counter() - start, len(split.train) + len(val)
            about = About("knn", "knn", cfg.data.name, {"backbone": chosen.origin})
            record = evaluation_record(
                cfg,
                about,
                {"train": split.train, "val": val},
                dist,
                run=work_dir.name,
                batch=cfg.run.evaluation_batch,
                seconds=seconds,
            )
            if not dist.is_main:
                return []
            measured = numbers(
                cfg, chosen, folder, figures, dist, images=images, unreadable=unreadable, seconds=seconds, record=record
            )
            written = results.append(folder.results, measured)
            shown = ", ".join(f"{name} {100 * value:.2f}%" for name, value in figures.items())
            log.say(f"done: {shown}; in {folder.results}")
            return written


def features(
    cfg: KnnConfig, chosen: Chosen, source: Source, dist: Dist, tick: Callable[[], None], policy: Unreadable
) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the features (N, D), float32, and of the labels (N,), on the device.

    Unreadable images are left out.
    """
    view = evaluation_views(cfg.data, shorter_side=cfg.data.shorter_side)
    pooled: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in pass_over(
        source, view, dist, batch=cfg.run.evaluation_batch, workers=cfg.run.workers, unreadable=policy
    ):
        with autocast(cfg.precision, dist.device):
            pooled.append(pool(chosen.model(normalize(batch.image, chosen.statistics), norm=True), cfg.pool))
        labels.append(batch.label)
        tick()
    if not pooled:
        raise ValueError(f"no image of {len(source)} could be read: check the files under data.root")
    return torch.cat(pooled), torch.cat(labels)


def classify(
    cfg: KnnConfig,
    chosen: Chosen,
    val: Source,
    bank: Tensor,
    labels: Tensor,
    dist: Dist,
    tick: Callable[[], None],
    policy: Unreadable,
) -> dict[str, float]:
    """Return the accuracy on the validation images by "knn-20_top1" ... in [0, 1]. Every image counts once."""
    classes = len(val.classes)
    queries, truth = features(cfg, chosen, val, dist, tick, policy)
    right = hits(knn_scores(queries, bank, labels, classes=classes, ks=cfg.ks, temperature=cfg.temperature), truth)
    counts = {f"knn-{k}_top{top}": right[i, j] for i, top in enumerate(top_ks(classes)) for j, k in enumerate(cfg.ks)}
    seen = torch.tensor(len(truth), device=dist.device)
    means = read_mean({**counts, "seen": seen}, dist)
    return {name: means[name] / means["seen"] for name in counts}  # in the order of ks


def gathered(part: Tensor, dist: Dist) -> Tensor:
    """Return the parts of all ranks, concatenated in the order of ranks, on every rank."""
    if dist.world == 1:
        return part
    counts: list[Any] = [None] * dist.world
    td.all_gather_object(counts, len(part), group=dist.side)
    parts = [
        part.contiguous() if rank == dist.rank else part.new_empty((count, *part.shape[1:]))
        for rank, count in enumerate(counts)
    ]
    for rank, buffer in enumerate(parts):
        td.broadcast(buffer, rank)
    return torch.cat(parts)


def sweep_of(cfg: KnnConfig, source: Source, dist: Dist) -> EvalKeys:
    """Return the order of this rank's batches."""
    return EvalKeys(images=len(source), batch=cfg.run.evaluation_batch, rank=dist.rank, world=dist.world)


def ticker(log: Logger) -> Callable[[], None]:
    """Return a function that advances the progress display by one batch."""
    counter: Iterator[int] = iter(range(1, 2**62))
    return lambda: log.tick(next(counter))


def numbers(
    cfg: KnnConfig,
    chosen: Chosen,
    folder: WorkDir,
    figures: dict[str, float],
    dist: Dist,
    *,
    images: int,
    unreadable: int,
    seconds: float,
    record: Record | None,
) -> list[results.Result]:
    """Return one Result per figure, in percent."""
    shared: dict[str, Any] = {
        "run": folder.root.name, "task": "classify", "dataset": cfg.data.name, "split": "val", "unit": "%",
        "higher_is_better": True, "seed": cfg.seed, "backbone": chosen.name, "pretrain": chosen.pretrain,
        "checkpoint_sha256": chosen.sha256, "normalization": chosen.normalization,
        "params": sum(p.numel() for p in chosen.model.parameters()), "epochs": 0.0, "steps": 0, "images_seen": images,
        "global_batch": cfg.run.evaluation_batch, "world_size": dist.world, "precision": cfg.precision,
        "matmul": "ieee", "wall_s": seconds, "images_per_s": images / seconds,
        "peak_mem_gib": peak_memory_gib(dist.device), "device": results.device_name(dist.device),
        "engine": "mae_transfer", "scale": cfg.scale, "config_digest": cfg.digest(),
        "recipe_digest": cfg.recipe_digest(), "tokens_per_image": tokens_of(chosen.model, cfg.data.size),
        "unreadable": unreadable, "record": record,
    }  # fmt: skip
    percent = {tuple(name.split("_")): 100 * value for name, value in figures.items()}
    return [
        results.Result(protocol=protocol, metric=metric, value=value, **shared)
        for (protocol, metric), value in percent.items()
    ]
