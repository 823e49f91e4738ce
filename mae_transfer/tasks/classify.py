"""Image classification with a pretrained backbone: fine-tuning, partial fine-tuning, a row of linear probes, or from scratch (tasks/protocols.py).

Legend: B batch, C classes, K the protocol's scores (probes), k of top-k. Whatever is selected (a probe, an epoch) is selected on images held out of
the training set; the validation set is only reported on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import field_validator, model_validator
from torch import nn

from mae_transfer import checkpoints, results
from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import Spec, build, check
from mae_transfer.core.normalize import IMAGENET, Statistics, normalize
from mae_transfer.data import (
    Crops,
    LabelledDataConfig,
    Order,
    Share,
    Source,
    batches,
    evaluation_views,
    open_labelled,
    training_views,
)
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist, assemble, read_mean, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import StepFn
from mae_transfer.engine.optim import build_optimizer, peak_lr
from mae_transfer.engine.state import LoopConfig, TrainState, autocast
from mae_transfer.interfaces import Batch
from mae_transfer.metrics.accuracy import hits, top_ks
from mae_transfer.record import Weights
from mae_transfer.tasks.backbones import (
    BackboneConfig,
    Chosen,
    backbone_of,
    flops_of,
    open_backbone,
    tokens_of,
    trained_statistics,
)
from mae_transfer.tasks.best import Select, Selection
from mae_transfer.tasks.common import Job, TrainConfig, evaluation_facts, facts, fit, pass_over, plan, readable, unread
from mae_transfer.tasks.labels import classes_digest
from mae_transfer.tasks.protocols import PROTOCOLS, ClassifyProtocol, Feed
from mae_transfer.tasks.provenance import About, evaluation_record, name_of, of_checkpoint
from mae_transfer.tasks.workdir import WorkDir

DEBUG_ENCODER = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32}


class ClassifyConfig(TrainConfig):
    """A classification run."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 19, "size": 32},
        "data.val": {"name": "shapes", "length": 4, "size": 32, "seed": 1},
        "data.size": 32,
        "data.label_fraction": 1.0,
        "data.holdout_fraction": 0.5,
        "backbone": {"encoder": DEBUG_ENCODER},
        "schedule.warmup_epochs": 0.5,
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None},
    }

    choices: ClassVar = {"protocol": PROTOCOLS}

    task: Literal["classify"] = "classify"
    """Which task the file configures."""
    data: LabelledDataConfig = LabelledDataConfig()
    """Images and their augmentation."""
    backbone: BackboneConfig = BackboneConfig()
    """What is transferred; --backbone sets its reference."""
    protocol: Spec = Spec(name="finetune")
    """An entry of PROTOCOLS with its options."""
    select: Select = "last"
    """Which evaluation is reported: the last one, or the one that is best on the held-out images, whose state is kept as
    checkpoints/best.pt (evaluate_epochs says how often)."""

    @field_validator("protocol")
    @classmethod
    def _protocol_exists(cls, protocol: Spec) -> Spec:
        return check(PROTOCOLS, protocol)

    @model_validator(mode="after")
    def _can_select(self) -> Self:
        if (self.select == "best" or len(self.method().row) > 1) and not self.data.holdout_fraction:
            raise ValueError(
                "data.holdout_fraction = 0, but something is to be selected (a probe of the row, or the best epoch): hold a part of the training "
                "images out, e.g. 0.02; a selection on the reported images would flatter it"
            )
        return self

    @model_validator(mode="after")
    def _device_batch_changes_nothing(self) -> Self:
        mixes = max(getattr(self.method(), name, 0.0) for name in ("mixup", "cutmix")) > 0
        if self.run.device_batch == "auto" and mixes:
            raise ValueError(
                "run.device_batch='auto': mixup and cutmix draw one weight per device batch, so that the result would "
                "depend on this machine's memory: set run.device_batch to a number, or protocol.mixup=0 and protocol.cutmix=0"
            )
        return self

    def method(self) -> ClassifyProtocol:
        """Return the protocol."""
        return build(PROTOCOLS, self.protocol)

    def title(self) -> str:
        """Return what a table calls the protocol: "finetune", "partial-4", "linear", "linear-1%-labels"."""
        share = "" if self.data.label_fraction == 1 else f"-{100 * self.data.label_fraction:g}%-labels"
        return self.method().title + share


class Parts(NamedTuple):
    """What a config opens and builds that is no training state."""

    protocol: ClassifyProtocol
    train: Source
    splits: dict[str, Source]  # what is evaluated: "val", and "holdout" where anything is held out
    classes: int
    statistics: Statistics  # what images are normalised with: the config's, or those of the backbone that was opened


def run(cfg: ClassifyConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Train, evaluate, and append the numbers to work_dir's results.jsonl; return them (rank 0, finished runs only).

    Raises:
        ValueError: config, data, backbone and work dir do not fit together; before training starts.
        NonFiniteLoss: names the step and its samples.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        parts = open_parts(cfg)
        chosen = open_backbone(cfg.backbone, changes(cfg, parts.protocol), statistics=cfg.statistics, seed=cfg.seed)
        parts = parts._replace(statistics=chosen.statistics)
        order = Order(images=len(parts.train), batch=cfg.batch, seed=cfg.seed, crops_per_image=cfg.data.crops_per_image)
        job = Job(
            order=order,
            build=partial(build_state, cfg, parts, chosen, dist=dist),
            feed=partial(feed, cfg, parts, dist=dist),
            step=partial(make_step, cfg, parts, dist=dist),
            evaluate=partial(evaluate, cfg, parts),
            headline=partial(headline, cfg, parts, chosen, dist=dist),
            finish=partial(finish, cfg, parts, chosen),
            sources={"train": parts.train, "val": parts.splits["val"]},
            about=about_run(cfg, parts, {"backbone": chosen.origin}),
            selection=Selection("holdout_top1") if cfg.select == "best" else None,
        )
        return fit(cfg, work_dir, job, dist=dist, resume=resume)


def about_run(cfg: ClassifyConfig, parts: Parts, inputs: Mapping[str, Weights]) -> About:
    """Return what the record of a run says beside config and data."""
    mixes = max(getattr(parts.protocol, name, 0.0) for name in ("mixup", "cutmix")) > 0
    return About("classify", cfg.title(), cfg.data.name, inputs, mixes=mixes)


def evaluate_checkpoint(cfg: ClassifyConfig, reference: str, work_dir: Path | None) -> list[results.Result]:
    """Evaluate what `reference` names on the validation set: a training state of this config (step_*.pt), or mae-finetuned:PATH.

    The numbers are printed, and appended to work_dir's results.jsonl where there is one. ValueError where the head does not fit the classes.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        parts, start = open_parts(cfg), time.perf_counter()
        model, chosen, state, inputs = trained(cfg, parts, reference)
        model.to(dist.device).eval()
        parts = parts._replace(statistics=chosen.statistics)
        with torch.no_grad():
            metrics = measure(cfg, parts, dist, model)
        seconds = time.perf_counter() - start
        images = sum(map(len, parts.splits.values()))
        record = evaluation_record(
            cfg,
            about_run(cfg, parts, inputs),
            parts.splits,
            dist,
            run=name_of(work_dir),
            batch=cfg.batch,
            seconds=seconds,
        )
        shared = evaluation_facts(
            cfg,
            dist,
            model,
            work_dir,
            images=images,
            seconds=seconds,
            trained=state,
            precision=cfg.precision,
            record=record,
        )
        written = numbers(cfg, chosen, model, choose(cfg, parts, {"0": metrics}), shared, backward=False)
        if dist.is_main:
            print(f"{chosen.name}, {cfg.title()}: {summary(written)}", flush=True)
            if work_dir is not None:
                written = results.append(WorkDir(work_dir).results, written)
        return written


class Trained(NamedTuple):
    """A classifier with its provenance."""

    model: nn.Module
    chosen: Chosen  # where its backbone comes from
    state: dict[str, int] | None  # "step" and "images_seen" of the training state that it is of; None: released weights
    inputs: dict[str, Weights]  # the same as the record has them


def trained(cfg: ClassifyConfig, parts: Parts, reference: str) -> Trained:
    """Return the model with the weights that a reference names."""
    own = reference.endswith(".pt") and Path(reference).is_file()
    source = (
        backbone_of(cfg.backbone, ClassifyConfig, reference)
        if own
        else cfg.backbone.model_copy(update={"reference": reference})
    )
    statistics = trained_statistics(cfg.statistics, ClassifyConfig, reference) if own else cfg.statistics
    chosen = open_backbone(source, changes(cfg, parts.protocol), statistics=statistics, seed=cfg.seed)
    model, state = parts.protocol.model(chosen.model, parts.classes), None
    inputs = {"checkpoint": chosen.origin}
    if own:
        payload = checkpoint.load(Path(reference))
        chosen = chosen._replace(sha256=checkpoints.sha256(Path(reference)))
        inputs = {
            "backbone": chosen.origin,
            "checkpoint": of_checkpoint(reference, payload, chosen.sha256),
        }
        tensors, state = payload.get("ema", payload["model"]), {name: payload[name] for name in ("step", "images_seen")}
    elif chosen.head:
        tensors = {f"backbone.{name}": tensor for name, tensor in chosen.model.state_dict().items()} | chosen.head
    else:
        raise ValueError(f"{reference} holds no classifier: give a step_*.pt of this suite, or mae-finetuned:PATH")
    load_strict(model, tensors, where=reference)
    return Trained(model, chosen, state, inputs)


def open_parts(cfg: ClassifyConfig) -> Parts:
    """Open the data; ValueError where they do not fit the protocol."""
    split, val = open_labelled(cfg.data)
    splits = {"val": val} if split.held_out is None else {"holdout": split.held_out, "val": val}
    return Parts(cfg.method(), split.train, splits, len(split.train.classes), cfg.statistics or IMAGENET)


def changes(cfg: ClassifyConfig, protocol: ClassifyProtocol) -> dict[str, Any]:
    """Return what the task wants otherwise in the backbone than it was pretrained with."""
    return {"image_size": cfg.data.size, **protocol.changes()}


def build_state(cfg: ClassifyConfig, parts: Parts, chosen: Chosen, loop: LoopConfig, *, dist: Dist) -> TrainState:
    """Return model and optimizer before the first step."""
    model = parts.protocol.model(chosen.model, parts.classes)
    dressed = assemble(model, dist=dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations)
    optimizer = build_optimizer(
        cfg.optim, parts.protocol.groups(model, cfg.optim), lr=peak_lr(cfg.optim, global_batch=cfg.batch)
    )
    return TrainState.create(
        dressed, optimizer, loop, dist=dist, digest=classes_digest(parts.splits["val"].classes), extra={"history": {}}
    )


def feed(cfg: ClassifyConfig, parts: Parts, share: Share, *, dist: Dist) -> Generator[Batch, None, None]:
    """Yield the micro-batches of this rank from step `share.start` on, without end."""
    crops = Crops(source=parts.train, augmentation=training_views(cfg.data), seed=cfg.seed)
    return batches(
        crops, share, workers=cfg.run.workers, pin=dist.device.type == "cuda", unreadable=cfg.data.unreadable()
    )


def make_step(cfg: ClassifyConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> StepFn:
    """Return the protocol's training step."""
    micro, least = cfg.batch // (dist.world * loop.accumulate), parts.protocol.least
    if micro < least and not dist.sync_bn:
        raise ValueError(
            f"images per device and forward pass: {micro}, but the probes' batch norms need {least}: raise run.device_batch, or batch"
        )
    return parts.protocol.step(Feed(parts.statistics, parts.classes, micro, dist.device))


def evaluate(
    cfg: ClassifyConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Measure every split, keep the figures with the run's state, and return those of the score that is best on the held-out images."""
    measured = measure(cfg, parts, state.dist, model)
    state.extra["history"][str(step)] = measured
    return choose(cfg, parts, {str(step): measured})


def measure(cfg: ClassifyConfig, parts: Parts, dist: Dist, model: nn.Module) -> dict[str, float]:
    """Return the share of each split that is right, "val_top1", or "val_top1_cls_x1" for a score of a row; every image counts once.

    Unreadable ones are left out and counted, "val_unreadable", where there are any.
    """
    row, ks = parts.protocol.row, top_ks(parts.classes)
    figures: dict[str, float] = {}
    view = evaluation_views(cfg.data, shorter_side=cfg.data.shorter_side)
    for name, source in parts.splits.items():
        right = torch.zeros(len(ks), len(row), dtype=torch.int64, device=dist.device)
        policy = cfg.data.unreadable()
        for batch in pass_over(
            source, view, dist, batch=cfg.run.evaluation_batch, workers=cfg.run.workers, unreadable=policy
        ):
            with autocast(cfg.precision, dist.device):
                scores = model(normalize(batch.image, parts.statistics))
            right += hits(scores.view(len(row), *scores.shape[-2:]), batch.label)
        keys = {key(name, k, probe): right[i, j] for i, k in enumerate(ks) for j, probe in enumerate(row)}
        left_out = unread(policy, dist)
        seen = readable(len(source), left_out, of=f"{name} set")
        figures |= {label: value * dist.world / seen for label, value in read_mean(keys, dist).items()}
        figures |= {f"{name}_{what}": count for what, count in left_out.items()}
    return figures


def key(split: str, k: int, probe: str) -> str:
    """Return the name of a figure."""
    return f"{split}_top{k}" + (f"_{probe}" if probe else "")


def choose(cfg: ClassifyConfig, parts: Parts, history: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the figures to report, "val_top1" ..., of the evaluation and score that are best by top-1 on the held-out images.

    Args:
        history: step -> what was measured there. Of equals the earlier step and the first of the row are taken.
    """
    row = parts.protocol.row
    candidates = [(step, probe) for step in sorted(history, key=int) for probe in row]
    if len(candidates) > 1:
        assert "holdout" in parts.splits, "nothing may be selected on the reported images"
        step, probe = max(candidates, key=lambda c: history[c[0]][key("holdout", 1, c[1])])
    else:
        step, probe = candidates[0]
    chosen = {
        key(split, k, ""): history[step][key(split, k, probe)] for split in parts.splits for k in top_ks(parts.classes)
    }
    return chosen | {name: count for name, count in history[step].items() if name.endswith("_unreadable")}


def headline(cfg: ClassifyConfig, parts: Parts, chosen: Chosen, loop: LoopConfig, *, dist: Dist) -> str:
    """Return what is about to happen, in one sentence per line."""
    splits = ", ".join(f"{len(source)} {name}" for name, source in parts.splits.items())
    return (
        f"{cfg.title()} of {chosen.name} (pretraining: {chosen.pretrain}; {cfg.scale} scale), {parts.classes} classes, {len(parts.train)} training "
        f"images, evaluated on {splits}\nnormalised with {chosen.normalization}\n{plan(cfg, loop, dist)}"
    )


def finish(
    cfg: ClassifyConfig, parts: Parts, chosen: Chosen, state: TrainState, loop: LoopConfig, folder: WorkDir, log: Logger
) -> list[results.Result]:
    """Select, and append the run's results."""
    history = state.extra["history"]
    figures = choose(cfg, parts, history if cfg.select == "best" else {str(state.step): history[str(state.step)]})
    written = numbers(cfg, chosen, state.bare, figures, facts(cfg, state, folder), backward=True)
    written = results.append(folder.results, written)
    log.say(f"done: {summary(written)}; in {folder.results}")
    return written


def summary(written: list[results.Result]) -> str:
    """Return the numbers in one line."""
    return ", ".join(f"{r.split} {r.metric} {r.value:.2f}%" for r in written)


def numbers(
    cfg: ClassifyConfig,
    chosen: Chosen,
    model: nn.Module,
    figures: dict[str, float],
    about: dict[str, Any],
    *,
    backward: bool,
) -> list[results.Result]:
    """Return one Result per figure, in percent."""
    shared: dict[str, Any] = about | {
        "task": "classify", "protocol": cfg.title(), "dataset": cfg.data.name, "unit": "%", "higher_is_better": True,
        "backbone": chosen.name, "pretrain": chosen.pretrain, "checkpoint_sha256": chosen.sha256, "normalization": chosen.normalization,
        "flops_per_image": flops_of(model, cfg.data.size, backward=backward), "tokens_per_image": tokens_of(chosen.model, cfg.data.size),
    }  # fmt: skip
    parted = {tuple(name.split("_")): value for name, value in figures.items()}
    return [
        results.Result(
            split=split,
            metric=metric,
            value=100 * value,
            **shared | {"unreadable": parted.get((split, "unreadable"), 0)},
        )
        for (split, metric), value in parted.items()
        if metric != "unreadable"
    ]
