"""Predict which of four orientations an image is in (Gidaris et al., arXiv 1803.07728).

Legend: B batch, S pixels per side.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer import results
from mae_transfer.core.normalize import normalize
from mae_transfer.data import Crops, DataConfig, Order, Share, batches, evaluation_views, open_sources, training_views
from mae_transfer.engine.dist import assemble, read_mean, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import build_optimizer, param_groups, peak_lr
from mae_transfer.engine.state import LoopConfig, TrainState, autocast
from mae_transfer.interfaces import Batch
from mae_transfer.models.heads import Classifier, Tune, freeze
from mae_transfer.tasks.backbones import BackboneConfig, open_backbone
from mae_transfer.tasks.classify import DEBUG_ENCODER
from mae_transfer.tasks.common import Job, TrainConfig, facts, fit, pass_over, plan, readable, unread
from mae_transfer.tasks.provenance import About
from mae_transfer.tasks.workdir import WorkDir

TURNS = 4  # of 90 degrees


class RotationConfig(TrainConfig):
    """A rotation run."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 8, "size": 32},
        "data.val": {"name": "shapes", "length": 2, "size": 32, "seed": 1},
        "data.size": 32,
        "backbone": {"encoder": DEBUG_ENCODER},
        "schedule.warmup_epochs": 0.5,
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    task: Literal["rotation"] = "rotation"
    """Which task the file configures."""
    data: DataConfig = DataConfig()
    """Images and their augmentation; labels are not used."""
    backbone: BackboneConfig = BackboneConfig()
    """What is transferred; --backbone sets its reference."""
    tune_blocks: Tune = 0
    """How many of the last blocks train with the classifier: a number, "half" of the last one, or "all"."""


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) in all orientations, (4 B, 3, S, S), and the number of quarter turns, (4 B,) int64."""
    turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    return torch.cat([images.rot90(k, dims=(2, 3)) for k in range(TURNS)]), turns


def run(cfg: RotationConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Train, evaluate, and append the accuracy to work_dir's results.jsonl; return it (rank 0, finished runs only)."""
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        train, val = open_sources(cfg.data)
        if val is None:
            raise ValueError("data.val is not set: rotation evaluates on images that it does not train on")
        changes = {"image_size": cfg.data.size, "final_norm": False}
        chosen = open_backbone(cfg.backbone, changes, statistics=cfg.statistics, seed=cfg.seed)

        def build(loop: LoopConfig) -> TrainState:
            freeze(chosen.model, cfg.tune_blocks)
            model = Classifier(chosen.model, TURNS)
            flags = {"compile": cfg.run.compile, "checkpoint_activations": cfg.run.checkpoint_activations}
            groups = param_groups(model, weight_decay=cfg.optim.weight_decay)
            optimizer = build_optimizer(cfg.optim, groups, lr=peak_lr(cfg.optim, global_batch=cfg.batch))
            return TrainState.create(assemble(model, dist=dist, **flags), optimizer, loop, dist=dist)

        def feed(share: Share) -> Generator[Batch, None, None]:
            crops = Crops(source=train, augmentation=training_views(cfg.data), seed=cfg.seed)
            pin = dist.device.type == "cuda"
            return batches(crops, share, workers=cfg.run.workers, pin=pin, unreadable=cfg.data.unreadable())

        def step(model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
            images, turns = turned(normalize(batch.image, chosen.statistics))
            return F.cross_entropy(model(images).float(), turns), {}

        def evaluate(state: TrainState, folder: WorkDir, model: nn.Module, at: int) -> dict[str, float]:
            right, policy = torch.zeros((), dtype=torch.int64, device=dist.device), cfg.data.unreadable()
            view, size, workers = evaluation_views(cfg.data), cfg.run.evaluation_batch, cfg.run.workers
            for batch in pass_over(val, view, dist, batch=size, workers=workers, unreadable=policy):
                images, turns = turned(normalize(batch.image, chosen.statistics))
                with autocast(cfg.precision, dist.device):
                    right += (model(images).argmax(dim=1) == turns).sum()
            left_out = unread(policy, dist)
            seen = readable(len(val), left_out, of="validation set")
            return {"top1": read_mean({"right": right}, dist)["right"] * dist.world / (TURNS * seen), **left_out}

        def finish(state: TrainState, loop: LoopConfig, folder: WorkDir, log: Logger) -> list[results.Result]:
            result = results.Result(
                task="rotation", protocol=f"rotation-{cfg.tune_blocks}", dataset=cfg.data.name, split="val",
                metric="top1", value=100 * state.metrics["top1"], unit="%", higher_is_better=True,
                backbone=chosen.name, pretrain=chosen.pretrain, checkpoint_sha256=chosen.sha256,
                normalization=chosen.normalization, **facts(cfg, state, folder),
            )  # fmt: skip
            log.say(f"done: {result.value:.2f}% of the orientations; in {folder.results}")
            return results.append(folder.results, [result])

        job = Job(
            order=Order(images=len(train), batch=cfg.batch, seed=cfg.seed, crops_per_image=cfg.data.crops_per_image),
            build=build,
            feed=feed,
            step=lambda loop: step,
            evaluate=evaluate,
            headline=lambda loop: f"rotation on {chosen.name} ({cfg.scale} scale)\n{plan(cfg, loop, dist)}",
            finish=finish,
            sources={"train": train, "val": val},
            about=About(
                "rotation", f"rotation-{cfg.tune_blocks}", cfg.data.name, {"backbone": chosen.origin}, labels=False
            ),
        )
        return fit(cfg, work_dir, job, dist=dist, resume=resume)
