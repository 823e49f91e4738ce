"""Masked-autoencoder pretraining: images in, a backbone and pictures out (He et al., arXiv 2111.06377).

Legend: B batch, N patches, V visible, M = N - V hidden, P target size per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer import checkpoints, results
from mae_transfer.bounds import Count
from mae_transfer.config import Spec, build, check
from mae_transfer.core.masks import MASKERS
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides
from mae_transfer.data import (
    Crops,
    DataConfig,
    Masking,
    Order,
    Share,
    Source,
    Spread,
    Unreadable,
    batches,
    evaluation_views,
    open_sources,
    training_views,
)
from mae_transfer.draw.reconstructions import panels, save_sheet
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist, assemble, read_mean, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step
from mae_transfer.engine.optim import build_optimizer, param_groups, peak_lr, spared
from mae_transfer.engine.state import LoopConfig, TrainState
from mae_transfer.interfaces import Batch, Mask, Target
from mae_transfer.models.mae import MAE, MAEConfig
from mae_transfer.record import Weights
from mae_transfer.seeding import fold
from mae_transfer.targets import TARGETS
from mae_transfer.tasks.codes import with_codes
from mae_transfer.tasks.common import EVALUATION_SEED, ImageConfig, Job, facts, fit, pass_over, plan, record_of, unread
from mae_transfer.tasks.provenance import About
from mae_transfer.tasks.targets import buffers_of, check_target, digest_of, open_target, references_of
from mae_transfer.tasks.workdir import WorkDir


class PretrainConfig(ImageConfig):
    """A pretraining run; it is evaluated by its loss on validation images, and by pictures."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 8},
        "data.val": {"name": "shapes", "length": 2, "seed": 1},
        "data.crops_per_image": 1,
        "model.encoder.size": None,
        "model.encoder.dim": 32,
        "model.encoder.depth": 2,
        "model.encoder.heads": 2,
        "model.decoder.dim": 16,
        "model.decoder.heads": 2,
        "schedule.warmup_epochs": 0.5,
        "schedule.milestones": (),
        "target.tokenizer?": "random:16/8",
        "target.teacher?": "random:ViT-Ti/16",
        "target.basis?": "random:8",
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    choices: ClassVar = {"mask": MASKERS, "target": TARGETS}

    data: DataConfig = DataConfig()
    """Images and their augmentation."""
    model: MAEConfig = MAEConfig()
    """Encoder and decoder."""
    mask: Spec = Spec(name="random")
    """An entry of MASKERS with its options (ratio = share of hidden patches)."""
    target: Spec = Spec(name="norm_pixel")
    """An entry of TARGETS with its options."""
    start: str | None = None
    """Weights to begin from instead of the initialisation: mae-full:PATH (a released file with its decoder) or a step_*.pt of this suite."""
    evaluate_images: Count = 2048
    """Images to evaluate on, spread evenly over the validation set (over the training set where there is none)."""
    pictures: Count = 8
    """Images to draw."""

    @field_validator("mask")
    @classmethod
    def _mask_exists(cls, mask: Spec) -> Spec:
        return check(MASKERS, mask)

    @field_validator("target")
    @classmethod
    def _target_exists(cls, target: Spec) -> Spec:
        return check_target(target)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        encoder = self.model.encoder
        if sides(encoder.image_size) != sides(self.data.size):
            raise ValueError(
                f"model.encoder.image_size = {encoder.image_size}, but data.size = {self.data.size}: they are the same image"
            )
        if not encoder.channels == len(self.mean) == len(self.std):
            raise ValueError(
                f"model.encoder.channels = {encoder.channels}, but mean has {len(self.mean)} values and std {len(self.std)}"
            )
        if self.optim.layer_decay:
            raise ValueError(
                f"optim.layer_decay = {self.optim.layer_decay}: pretraining has one rate for all layers; leave it out"
            )
        build(MASKERS, self.mask).visible(encoder.grid())
        return self

    def method(self) -> str:
        """Return what a table calls this pretraining: "MAE norm_pixel, random 75%, 800 ep"."""
        grid = self.model.encoder.grid()
        hidden = 1 - build(MASKERS, self.mask).visible(grid) / (grid[0] * grid[1])
        return f"MAE {self.target.name}, {self.mask.name} {hidden:.0%}, {self.epochs:g} ep"


class Parts(NamedTuple):
    """What a config builds that is no training state."""

    target: Target
    masking: Masking
    train: Source
    held_out: Source  # what is evaluated and drawn
    split: str  # where the held-out images come from: "val", or "train" where there is no such set


def run(cfg: PretrainConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Pretrain, evaluate, draw and export into `work_dir`; return the results that were appended to its results.jsonl (rank 0, finished runs only).

    Raises:
        ValueError: config, data and work dir do not fit together; before training starts.
        NonFiniteLoss: names the step and its samples.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        parts = build_parts(cfg, dist)
        job = Job(
            order=Order(
                images=len(parts.train), batch=cfg.batch, seed=cfg.seed, crops_per_image=cfg.data.crops_per_image
            ),
            build=partial(build_state, cfg, parts.target, dist=dist),
            feed=partial(feed, cfg, parts, dist=dist),
            step=lambda _: step_fn(cfg.statistics, parts.target),
            evaluate=partial(evaluate, cfg, parts),
            headline=partial(headline, cfg, parts, dist=dist),
            finish=partial(finish, cfg, parts),
            sources={"train": parts.train, parts.split: parts.held_out},
            about=About("pretrain", cfg.method(), cfg.data.name, inputs(cfg), labels=False),
            export=("backbone.safetensors", partial(export, cfg)),
        )
        return fit(cfg, work_dir, job, dist=dist, resume=resume)


def inputs(cfg: PretrainConfig) -> dict[str, Weights]:
    """Return the files of weights that a run refers to: where it starts from, and its target's tokenizer, teacher or basis."""
    references = {"start": cfg.start, **references_of(cfg.target)}
    return {
        role: checkpoints.origin(reference, checkpoints.LAYOUTS, sha256=None)
        for role, reference in references.items()
        if reference is not None
    }


def step_fn(
    statistics: Statistics, target: Target
) -> Callable[[nn.Module, Batch, Step], tuple[Tensor, dict[str, Tensor]]]:
    """Return the training step: predict the hidden patches, compare with their targets, average."""

    def step(model: nn.Module, batch: Batch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.mask is not None
        truth = target(batch, batch.mask.ids_masked)  # before the activations are there: the least memory at the peak
        prediction = model(normalize(batch.image, statistics), batch.mask)
        metrics = target.metrics(prediction.detach(), truth) if at.logs else {}
        return target.loss(prediction, truth).mean(), metrics

    return step


def evaluate(
    cfg: PretrainConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Return the loss on the held-out images, each once, under fixed masks (float32, mean over hidden patches); draw some of them."""
    dist = state.dist
    torch.manual_seed(
        fold(EVALUATION_SEED, "evaluate", dist.rank)
    )  # for a corruption that draws; the loop seeds every step anew
    total = torch.zeros(2, dtype=torch.float64 if dist.device.type != "mps" else torch.float32, device=dist.device)
    policy = cfg.data.unreadable()
    for batch in held_out_batches(cfg, parts, dist, policy):
        assert batch.mask is not None
        prediction = model(normalize(batch.image, cfg.statistics), batch.mask)
        losses = parts.target.loss(prediction, parts.target(batch, batch.mask.ids_masked))
        total += torch.stack([losses.sum(), torch.full_like(losses, 1.0).sum()])
    mean = read_mean({"loss": total[0], "patches": total[1]}, dist)
    if not mean["patches"]:
        raise ValueError(f"no image of the {parts.split} set could be read")
    if dist.is_main:
        save_sheet(
            folder.pictures / f"step_{step:08d}.png", picture_rows(cfg, parts, model, dist.device, most=cfg.pictures)
        )
    return {f"{parts.split}_loss": mean["loss"] / mean["patches"], **unread(policy, dist)}


@torch.no_grad()
def picture_rows(cfg: PretrainConfig, parts: Parts, model: nn.Module, device: torch.device, *, most: int) -> Tensor:
    """Return the panels (B, 4, 3, H, W) of what the model makes of up to `most` held-out images, spread evenly over them."""
    rows = []
    for batch in held_out_batches(
        cfg, parts._replace(held_out=Spread(parts.held_out, most)), Dist(device), cfg.data.unreadable()
    ):
        assert batch.mask is not None
        prediction = model(normalize(batch.image, cfg.statistics), batch.mask)
        rows.append(panels(batch.image, parts.target.decode(prediction, batch, batch.mask.ids_masked), batch.mask))
    return torch.cat(rows) if rows else torch.zeros(0, 4, 3, 1, 1)


def feed(cfg: PretrainConfig, parts: Parts, share: Share, *, dist: Dist) -> Generator[Batch, None, None]:
    """Yield the micro-batches of this rank from step `share.start` on, without end."""
    crops = Crops(
        source=parts.train,
        augmentation=training_views(cfg.data, parts.target.views),
        seed=cfg.seed,
        masking=parts.masking,
    )
    return batches(
        crops, share, workers=cfg.run.workers, pin=dist.device.type == "cuda", unreadable=cfg.data.unreadable()
    )


def held_out_batches(cfg: PretrainConfig, parts: Parts, dist: Dist, policy: Unreadable) -> Iterator[Batch]:
    """Return this rank's part of the held-out images, with their fixed masks."""
    return pass_over(
        parts.held_out,
        evaluation_views(cfg.data, parts.target.views),
        dist,
        batch=cfg.run.evaluation_batch,
        workers=cfg.run.workers,
        unreadable=policy,
        masking=parts.masking,
    )


def build_parts(cfg: PretrainConfig, dist: Dist) -> Parts:
    """Open the data and build target and mask sampler; ValueError where they do not fit."""
    encoder = cfg.model.encoder
    train_set, val_set = open_sources(cfg.data)
    held_out = val_set if val_set is not None else train_set
    target = open_target(cfg.target, encoder, cfg.statistics)
    if isinstance(target, nn.Module):
        target.to(dist.device)
    prepared = partial(with_codes, target=target, data=cfg.data, run=cfg.run, dist=dist)
    train, shown = (
        prepared(train_set, key="train" + digest_of(cfg.target)),
        prepared(held_out, key="held out" + digest_of(cfg.target)),
    )
    masking = Masking(build(MASKERS, cfg.mask), encoder.grid())
    return Parts(target, masking, train, Spread(shown, cfg.evaluate_images), "val" if val_set is not None else "train")


def build_state(cfg: PretrainConfig, target: Target, loop: LoopConfig, *, dist: Dist) -> TrainState:
    """Return model and optimizer before the first step. Unless told otherwise, only vectors and biases have no weight decay (MAE, table 8)."""
    torch.manual_seed(fold(cfg.seed, "init"))
    model = MAE(cfg.model, target.dim)
    if cfg.start is not None:
        load_start(model, cfg.start)
    dressed = assemble(model, dist=dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations)
    groups = param_groups(model, weight_decay=cfg.optim.weight_decay, no_decay=spared(model, cfg.optim, default=()))
    optimizer = build_optimizer(cfg.optim, groups, lr=peak_lr(cfg.optim, global_batch=cfg.batch))
    extra = {"target": buffers_of(target)}
    return TrainState.create(dressed, optimizer, loop, dist=dist, digest=digest_of(cfg.target), extra=extra)


def load_start(model: MAE, reference: str) -> None:
    """Fill encoder and decoder from mae-full:PATH or a step_*.pt of this suite; ValueError with the names of whatever does not fit.

    Where the images of the new run have another size, positions follow it (checkpoints.start.fill).
    """
    prefix, path = checkpoints.split(reference, checkpoints.LAYOUTS)
    if prefix == "mae-full":
        checkpoints.load_mae(model, Path(path))
    elif not prefix and path.endswith(".pt"):
        payload = checkpoint.load(Path(path))
        checkpoints.fill(model, payload.get("ema", payload["model"]), where=path)
    else:
        raise ValueError(
            f"start = {reference!r}: give mae-full:PATH, a released MAE with its decoder, or a step_*.pt of this suite"
        )


def headline(cfg: PretrainConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> str:
    """Return what is about to happen, in one sentence per line."""
    return (
        f"{cfg.method()} ({cfg.scale} scale), {len(parts.train)} training images, evaluated on {len(parts.held_out)} of the {parts.split} split\n"
        f"{plan(cfg, loop, dist)}"
    )


def finish(
    cfg: PretrainConfig, parts: Parts, state: TrainState, loop: LoopConfig, folder: WorkDir, log: Logger
) -> list[results.Result]:
    """Export the encoder and append the run's results."""
    export(cfg, state, folder)
    figures = {metric: value for metric, value in state.metrics.items() if metric != "unreadable"}
    written = results.append(
        folder.results, [result(cfg, parts, state, folder, metric, value) for metric, value in figures.items()]
    )
    log.say(
        f"done: {folder.backbone} (for the transfer tasks), pictures in {folder.pictures}, numbers in {folder.results}"
    )
    return written


def export(cfg: PretrainConfig, state: TrainState, folder: WorkDir) -> None:
    """Write the encoder alone."""
    model = state.averaged
    assert isinstance(model, MAE)
    about = {
        "recipe": cfg.model_dump(mode="json", exclude={"run"}),
        "digest": cfg.digest(),
        "pretrain": cfg.method(),
        "images_seen": state.images_seen,
        "scale": cfg.scale,
        checkpoints.RECORD: record_of(state).exported().model_dump(mode="json"),
    }
    checkpoints.export_backbone(folder.backbone, model.encoder, about=about)


def result(
    cfg: PretrainConfig, parts: Parts, state: TrainState, folder: WorkDir, metric: str, value: float
) -> results.Result:
    """Return one number of this run as a Result; its tokens are those that the encoder sees."""
    encoder, (h, w) = cfg.model.encoder, parts.masking.grid
    return results.Result(
        task="pretrain", protocol=cfg.method(), dataset=cfg.data.name, split=parts.split,
        metric=metric, value=value, unit="loss per hidden patch", higher_is_better=False,
        backbone=encoder.name(), pretrain=cfg.method(), checkpoint_sha256=checkpoints.sha256(folder.backbone),
        flops_per_image=step_flops(cfg, parts),
        tokens_per_image=(h * w if cfg.model.corrupt else parts.masking.sampler.visible((h, w))) + int(encoder.class_token),
        **facts(cfg, state, folder),
    )  # fmt: skip


def step_flops(cfg: PretrainConfig, parts: Parts) -> int:
    """Return the floating-point operations of forward and backward of one image, counted by torch (2 per multiply-add; attention included)."""
    with torch.device("meta"):
        model = MAE(cfg.model, parts.target.dim)
        h, w = cfg.model.encoder.grid()
        visible = parts.masking.sampler.visible((h, w))
        images = torch.zeros(1, cfg.model.encoder.channels, h * cfg.model.encoder.patch, w * cfg.model.encoder.patch)
        ids = torch.zeros(1, h * w, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(images, Mask(ids[:, :visible], ids[:, visible:])).sum().backward()
    return int(counter.get_total_flops())
