"""What the training tasks share: the common part of their configs, the way of a run from first step to results, and what a Result says of any run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import model_validator
from torch import nn

from mae_transfer import results
from mae_transfer.arithmetic import Matmul
from mae_transfer.bounds import Between, Count, Epochs, Seed, Whole
from mae_transfer.checkpoints import sha256
from mae_transfer.config import Schema, load
from mae_transfer.core.normalize import IMAGENET, Mean, Statistics, Std
from mae_transfer.data import Augmentation, Crops, Masking, Order, Samples, Share, Source, Sweep, Unreadable, batches
from mae_transfer.data.fingerprint import Fingerprint, change, fingerprint
from mae_transfer.disk import locked
from mae_transfer.draw.curves import save_curves
from mae_transfer.engine.dist import Dist, peak_memory_gib, read_mean
from mae_transfer.engine.interrupt import Interrupt
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Evaluate, StepFn, to_device, train
from mae_transfer.engine.optim import OptimConfig, peak_lr
from mae_transfer.engine.schedule import Schedule, lr_at
from mae_transfer.engine.state import LoopConfig, Precision, RunConfig, TrainState, micro_steps
from mae_transfer.engine.state import resume as resume_state
from mae_transfer.interfaces import Batch
from mae_transfer.models.attention import CPU_HAS_AMX
from mae_transfer.record import Record
from mae_transfer.tasks import trial
from mae_transfer.tasks.backbones import statistics_of
from mae_transfer.tasks.best import Selection, keeping, take_best
from mae_transfer.tasks.provenance import About, data_set, start_sitting
from mae_transfer.tasks.workdir import WorkDir, open_work_dir, write_config

EVALUATION_SEED = 0  # of what an evaluation draws (masks): the same in every run, so that runs compare


class PicturesRun(RunConfig):
    """How to carry out a run that ends with pictures of what the model makes of some images."""

    pictures: Whole = 8
    """Validation images that are drawn with their truth and with what was found at the end (--visualize)."""


class TrainConfig(Schema):
    """What every training run has to say."""

    scale: Literal["mini", "small", "paper"]
    """How far the run is from the paper's: printed beside every number."""
    epochs: Epochs
    """Passes over the training images (each pass gives `data.crops_per_image` crops per image)."""
    batch: Count
    """Crops per optimizer step, over all devices and micro-steps."""
    mean: Mean | None = None
    """Mean per channel on the scale [0, 1] that images are normalised with; None: that of the backbone's pretraining."""
    std: Std | None = None
    """Standard deviation per channel, likewise; set both or none."""
    optim: OptimConfig
    """Optimizer."""
    schedule: Schedule = Schedule()
    """Learning rate over the run."""
    precision: Precision = "bfloat16"
    """Arithmetic of the forward pass (weights stay float32)."""
    matmul: Matmul = "ieee"
    """Arithmetic of what stays float32 in matrix products and convolutions on CUDA (all of a float32 run, heads, evaluation of detectors): "ieee", or
    "tf32", faster and with 10 bits of mantissa. Torch's own default, which runs before this option had, is tf32 for convolutions and ieee for matrix
    products. Targets, tokenizers and k-NN are always ieee."""
    ema_decay: Between | None = None
    """Average the weights with this decay per step and evaluate, draw and export the average; None: the weights themselves."""
    evaluate_epochs: Epochs | None = None
    """Epochs between two evaluations; None: at the end only."""
    seed: Seed = 0
    """Feeds every random draw."""
    run: RunConfig = RunConfig()
    """How to carry it out; changes no number."""

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        statistics_of(self.mean, self.std)
        return self

    @property
    def statistics(self) -> Statistics | None:
        """What the config sets; None: it leaves that to the backbone."""
        return statistics_of(self.mean, self.std)


class ImageConfig(TrainConfig):
    """What a run that starts from images alone has to say: there is no backbone whose statistics it could take over."""

    mean: Mean = IMAGENET.mean
    """Mean per channel on the scale [0, 1] that images are normalised with."""
    std: Std = IMAGENET.std
    """Standard deviation per channel, likewise."""

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.mean, self.std)


class Job(NamedTuple):
    """What a task brings to `fit`."""

    order: Order
    build: Callable[[LoopConfig], TrainState]
    feed: Callable[[Share], Generator[Any, None, None]]
    step: Callable[[LoopConfig], StepFn]
    evaluate: Callable[[TrainState, WorkDir, nn.Module, int], dict[str, float]]
    headline: Callable[[LoopConfig], str]
    finish: Callable[[TrainState, LoopConfig, WorkDir, Logger], list[results.Result]]  # rank 0, finished runs only
    # the data sets by part ("train", "val"): a resumed run must find the files that it began with
    sources: Mapping[str, Sized]
    about: About  # what the record of the run says beside config and data
    # the name of the file that a run leaves for others, and the function that writes it
    export: tuple[str, Callable[[TrainState, WorkDir], None]] | None = None
    selection: Selection | None = None  # where the best state is kept and reported; None: the last one is


def fit(cfg: TrainConfig, work_dir: Path, job: Job, *, dist: Dist, resume: bool) -> list[results.Result]:
    """Train, evaluate and finish a job in `work_dir`; return its results (rank 0, finished runs only).

    A bad config stops it before it starts, and before anything is written to the work dir.
    """
    loop = loop_config(cfg, job.order, dist)
    rate = partial(
        lr_at,
        schedule=cfg.schedule,
        peak=peak_lr(cfg.optim, global_batch=cfg.batch),
        steps=loop.steps,
        steps_per_epoch=loop.steps_per_epoch,
    )
    rate(0)  # a warm-up longer than the run is an error now, not later
    step = job.step(loop)
    job.feed(Share(order=job.order, rank=dist.rank, world=dist.world, accumulate=loop.accumulate)).close()  # it fits
    if cfg.run.estimate:
        return estimated(cfg, job, loop, rate, dist)
    open_work_dir(work_dir, cfg, resume=resume)
    state = job.build(loop)
    with sole_user(work_dir, dist):
        return _fit(cfg, work_dir, job, state, loop, step, rate, resume=resume)


def sole_user(work_dir: Path, dist: Dist) -> AbstractContextManager[int | None]:
    """Return what keeps other runs out of the work dir (rank 0); ValueError where there is one, naming its process."""
    if not dist.is_main:
        return nullcontext()
    return locked(work_dir / ".run.lock", owner=f"process {os.getpid()} on {socket.gethostname()}")


def _fit(
    cfg: TrainConfig,
    work_dir: Path,
    job: Job,
    state: TrainState,
    loop: LoopConfig,
    step: StepFn,
    rate: Callable[[int], float],
    *,
    resume: bool,
) -> list[results.Result]:
    dist = state.dist
    folder = open_work_dir(work_dir, cfg, resume=resume)  # again, now that nobody else is at work in it
    notices = resume_state(state, folder.checkpoints) if resume else []
    notices += same_data(state, job.sources, folder)
    if state.step == loop.steps and (done := finished(folder, cfg, state.step)):
        if not dist.is_main:
            return done
        print(f"{folder.root} is finished: its {len(done)} results stand in {folder.results}", flush=True)
        return done if job.export is None else exported(folder, state, job.export, done)
    if cfg.run.device_batch == "auto":
        cfg, loop, told = settled(cfg, job, state, loop, rate, folder=folder if resume else None)
        step, notices = job.step(loop), [*notices, told]
    prints = state.extra.get("data", {}) if dist.is_main else {}
    data = {
        part: data_set(job.about.dataset, source, Fingerprint(**prints[part]))
        for part, source in job.sources.items()
        if part in prints
    }
    start_sitting(cfg, job.about, state, loop, folder.root.name, data)
    share = Share(order=job.order, start=state.step, rank=dist.rank, world=dist.world, accumulate=loop.accumulate)
    check_up: Evaluate = partial(job.evaluate, state, folder)
    if job.selection is not None:
        check_up = keeping(job.selection, state, folder, check_up)
    with Logger(
        work_dir,
        steps=loop.steps,
        resumed_at=state.step,
        main=dist.is_main,
        progress=cfg.run.progress,
        wandb=cfg.run.wandb,
    ) as log:
        if dist.is_main:
            write_config(folder, cfg)
        for notice in [*notices, job.headline(loop)]:
            log.say(notice)
        with closing(job.feed(share)) as feed:
            train(state, feed, step, loop, lr_at=rate, log=log, checkpoints=folder.checkpoints, evaluate=check_up)
        if job.selection is not None and not state.stopped:
            log.say(take_best(job.selection, state, folder))
        if state.stopped or not dist.is_main:
            return []
        save_curves(folder.root / "log.jsonl", folder.root / "curves.png")
        return job.finish(state, loop, folder, log)


def estimated(
    cfg: TrainConfig, job: Job, loop: LoopConfig, rate: Callable[[int], float], dist: Dist
) -> list[results.Result]:
    """Print what the run would take; return no results."""
    state = job.build(loop)
    if cfg.run.device_batch == "auto":
        cfg, loop, told = settled(cfg, job, state, loop, rate, folder=None)
        if dist.is_main:
            print(told, flush=True)
    text = trial.estimate(state, job, loop, rate)
    if dist.is_main:
        print(f"{job.headline(loop)}\n{text}", flush=True)
    return []


def settled(
    cfg: TrainConfig,
    job: Job,
    state: TrainState,
    loop: LoopConfig,
    rate: Callable[[int], float],
    *,
    folder: WorkDir | None,
) -> tuple[TrainConfig, LoopConfig, str]:
    """Return config and loop with the device batch that "auto" means, and a sentence for the log.

    folder: of a run that goes on: what was found when it began holds.
    """
    recorded = load(folder.config, type(cfg)).run.device_batch if folder and folder.config.is_file() else None
    if isinstance(recorded, int):
        micro, told = recorded, f"run.device_batch = {recorded} (auto; as when the run began)"
    else:
        micro, told = trial.largest_batch(state, job, loop, rate)
    cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"device_batch": micro})})
    return cfg, loop_config(cfg, job.order, state.dist), told


def same_data(state: TrainState, sources: Mapping[str, Sized], folder: WorkDir) -> list[str]:
    """Note the fingerprints of the data in the state; return what the user should be told.

    Raises:
        ValueError: on every rank, where the state was trained on other files, with what changed.
    """
    told: list[Any] = [None, []]
    if state.dist.is_main:
        now = {part: fingerprint(source) for part, source in sources.items()}
        before = state.extra.get("data", {})
        changes = [
            f"{part}: {what}"
            for part, print_ in now.items()
            if part in before and (what := change(before[part], print_))
        ]
        if changes:
            told[0] = (
                f"the data of {folder.root} have changed since the run began: put them as they were, or use another --work-dir\n  "
                + "\n  ".join(changes)
            )
        if state.step and not before:
            told[1] = [
                "the training state is of a version that noted nothing of the data: it is taken that they are the same"
            ]
        state.extra["data"] = {part: print_.saved() for part, print_ in now.items()}
    if state.dist.world > 1:
        torch.distributed.broadcast_object_list(told, group=state.dist.side, group_src=0)
    if told[0]:
        raise ValueError(told[0])
    return list(told[1])


def finished(folder: WorkDir, cfg: TrainConfig, step: int) -> list[results.Result]:
    """Return the results that this run itself has written after its last step; an evaluation of its state stands there with 0 epochs.

    None where some were lost: a disk that filled up, or a damaged line.
    """
    if not folder.results.is_file():
        return []
    found, defects = results.load(folder.results)
    own = [
        result
        for result in found
        if (result.config_digest, result.steps, result.epochs) == (cfg.digest(), step, cfg.epochs)
    ]
    expected = own[0].together if own else None
    whole = (
        not defects if expected is None else len(own) == expected
    )  # an earlier version did not say how many there were
    return own if whole else []


def exported(
    folder: WorkDir,
    state: TrainState,
    export: tuple[str, Callable[[TrainState, WorkDir], None]],
    done: list[results.Result],
) -> list[results.Result]:
    """Write a finished run's file again from its state where it is missing or not what the results say; return the results, which name its digest."""
    path, write = folder.root / export[0], export[1]
    if path.is_file() and sha256(path) == done[0].checkpoint_sha256:
        return done
    print(
        f"{path} {'is damaged' if path.is_file() else 'is missing'}: it is written again from the training state",
        flush=True,
    )
    write(state, folder)
    digest = sha256(path)
    if digest == done[0].checkpoint_sha256:
        return done
    return results.append(folder.results, [result.model_copy(update={"checkpoint_sha256": digest}) for result in done])


def readable(images: int, left_out: Mapping[str, float], *, of: str) -> int:
    """Return how many of the images counted, given what `unread` gave; ValueError where none did."""
    seen = round(images - left_out.get("unreadable", 0))
    if not seen:
        raise ValueError(f"no image of the {of} could be read")
    return seen


def unread(policy: Unreadable, dist: Dist) -> dict[str, float]:
    """Return {"unreadable": how many images of an evaluation no rank could read}, empty where all could be; every rank calls it."""
    count = round(read_mean({"n": torch.tensor(len(policy.files), device=dist.device)}, dist)["n"] * dist.world)
    return {"unreadable": count} if count else {}


def loop_config(cfg: TrainConfig, order: Order, dist: Dist) -> LoopConfig:
    """Return how long and how precisely to train, in the engine's terms."""
    steps_per_epoch = order.steps_per_epoch
    wanted = (
        cfg.run.device_batch if isinstance(cfg.run.device_batch, int) else None
    )  # "auto" begins with the whole share
    _, accumulate = micro_steps(cfg.batch, device_batch=wanted, world=dist.world)
    return LoopConfig(
        steps=max(1, round(cfg.epochs * steps_per_epoch)),
        steps_per_epoch=steps_per_epoch,
        global_batch=cfg.batch,
        accumulate=accumulate,
        precision=cfg.precision,
        clip_norm=cfg.optim.clip_norm,
        ema_decay=cfg.ema_decay,
        seed=cfg.seed,
        evaluate_every=max(1, round(cfg.evaluate_epochs * steps_per_epoch)) if cfg.evaluate_epochs else None,
        run=cfg.run,
    )


def pass_over(
    source: Source,
    view: Augmentation,
    dist: Dist,
    *,
    batch: int,
    workers: int,
    unreadable: Unreadable,
    masking: Masking | None = None,
) -> Iterator[Batch]:
    """Yield this rank's part of a source on the device, every image once; masks depend on nothing but the image's index."""
    crops = Crops(source=source, augmentation=view, seed=EVALUATION_SEED, masking=masking)
    yield from sweep_over(crops, dist, batch=batch, workers=workers, unreadable=unreadable)


def sweep_over(
    samples: Samples[Any, Any], dist: Dist, *, batch: int, workers: int, unreadable: Unreadable
) -> Iterator[Any]:
    """Yield this rank's part of any kind of samples on the device, every image once.

    Within a run that all of `dist` takes part in, a signal ends it between two batches (Stopped).
    """
    sweep = Sweep(images=len(samples.source), batch=batch, rank=dist.rank, world=dist.world)
    interrupt = Interrupt.active if Interrupt.active is not None and Interrupt.active.world == dist.world else None
    common = -(-(sweep.images // dist.world) // batch)  # batches that every rank has at least
    with closing(batches(samples, sweep, workers=workers, unreadable=unreadable)) as feed:
        for found in feed:
            if interrupt is not None and common > 0:
                interrupt.check()
                common -= 1
            yield to_device(found, dist.device)
    while interrupt is not None and common > 0:  # a batch of unreadable files alone is not there
        interrupt.check()
        common -= 1


def plan(cfg: TrainConfig, loop: LoopConfig, dist: Dist) -> str:
    """Return steps, batch, rate and machine in one sentence."""
    slow = cfg.precision == "bfloat16" and dist.device.type == "cpu" and not CPU_HAS_AMX
    hint = " (which has no matrix units for it: --set precision=float32 is faster here)" if slow else ""
    micro = cfg.batch // (dist.world * loop.accumulate)
    peak = peak_lr(cfg.optim, global_batch=cfg.batch)
    return (
        f"{loop.steps} steps of {cfg.batch} crops = {dist.world} x {loop.accumulate} x {micro}; peak lr {peak:.2e}; {cfg.precision} on "
        f"{results.device_name(dist.device)}{hint}"
    )


def record_of(state: TrainState) -> Record:
    """Return the record of a run with the seconds so far (rank 0)."""
    assert state.record is not None
    return state.record.timed(state.seconds)


def facts(cfg: TrainConfig, state: TrainState, folder: WorkDir) -> dict[str, Any]:
    """Return the fields of a Result that are the same for every number of a trained run."""
    return {
        "run": folder.root.name, "seed": cfg.seed, "params": sum(p.numel() for p in state.bare.parameters()),
        "epochs": cfg.epochs, "steps": state.step, "images_seen": state.images_seen, "global_batch": cfg.batch, "world_size": state.dist.world,
        "precision": cfg.precision, "matmul": cfg.matmul, "wall_s": state.wall_s,
        "images_per_s": state.images_seen / state.seconds.train, "record": record_of(state),
        "peak_mem_gib": peak_memory_gib(state.dist.device), "unreadable": state.metrics.get("unreadable", 0),
        "device": results.device_name(state.dist.device), "engine": "mae_transfer",
        "scale": cfg.scale, "config_digest": cfg.digest(), "recipe_digest": cfg.recipe_digest(),
    }  # fmt: skip


def evaluation_facts(
    cfg: TrainConfig,
    dist: Dist,
    model: nn.Module,
    work_dir: Path | None,
    *,
    images: int,
    seconds: float,
    trained: Mapping[str, Any] | None,
    precision: Precision,
    record: Record | None,
    unreadable: int = 0,
) -> dict[str, Any]:
    """Return the same fields for the evaluation of a finished model on `images`, which took so many seconds.

    Args:
        trained: "step" and "images_seen" of the training state that it is of, so that an early one cannot pass for a finished run; None: weights
            that are no training state, released ones.
        precision: that it was evaluated in, which need not be that of the training.
    """
    steps, seen = (trained["step"], trained["images_seen"]) if trained else (0, 0)
    return {
        "run": work_dir.name if work_dir else "eval", "seed": cfg.seed, "params": sum(p.numel() for p in model.parameters()), "epochs": 0.0,
        "steps": steps, "images_seen": seen, "global_batch": cfg.batch, "world_size": dist.world, "precision": precision, "matmul": cfg.matmul,
        "wall_s": seconds, "images_per_s": images / seconds, "unreadable": unreadable, "device": results.device_name(dist.device),
        "engine": "mae_transfer", "record": record,
        "scale": cfg.scale, "config_digest": cfg.digest(), "recipe_digest": cfg.recipe_digest(),
    }  # fmt: skip
