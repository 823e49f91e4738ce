"""Semantic segmentation with a pretrained backbone: UperNet or a linear head (tasks/segment_protocols.py), mmseg's heads and pipeline, our loop.

Legend: B batch, S pixels per side of a crop, C classes, H x W pixels of an image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from functools import partial
from operator import gt
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from mae_transfer import checkpoints, results
from mae_transfer.adapters.mmseg import Segmenter, accuracy
from mae_transfer.adapters.mmseg_transforms import Rescale, TrainingCrop
from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import Spec, build, check, load
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides, size_of
from mae_transfer.data import (
    MapBatch,
    MapCrops,
    MapDataConfig,
    MapSource,
    MapViews,
    Order,
    Scales,
    Share,
    Unreadable,
    batches,
    open_map_set,
    open_maps,
    same_classes,
)
from mae_transfer.data.ade_check import check_sets
from mae_transfer.data.maps import inside
from mae_transfer.draw.segmentations import Picture, save_picture
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist, assemble, bare, on_main, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step, StepFn
from mae_transfer.engine.optim import build_optimizer, peak_lr
from mae_transfer.engine.state import LoopConfig, TrainState, autocast
from mae_transfer.metrics.iou import IouMetric
from mae_transfer.tasks.backbones import (
    BackboneConfig,
    Chosen,
    backbone_of,
    flops_of,
    open_backbone,
    tokens_of,
    trained_statistics,
)
from mae_transfer.tasks.best import HOLDOUT, Select, Selection, check_selection
from mae_transfer.tasks.common import (
    EVALUATION_SEED,
    Job,
    PicturesRun,
    TrainConfig,
    evaluation_facts,
    facts,
    fit,
    plan,
    sweep_over,
    unread,
)
from mae_transfer.tasks.labels import classes_digest, learned
from mae_transfer.tasks.provenance import About, evaluation_record, name_of, of_checkpoint
from mae_transfer.tasks.segment_inference import PUBLISHED_SCALES, InferenceConfig, Windows, probabilities
from mae_transfer.tasks.segment_protocols import PROTOCOLS, SegmentProtocol
from mae_transfer.tasks.workdir import WorkDir, run_of

DEBUG_ENCODER = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32}
NUMBERS = ("mIoU", "mAcc", "aAcc")
MULTI_SCALE: dict[str, Any] = {
    "inference.scales": PUBLISHED_SCALES,
    "inference.flip": True,
}  # what --multi-scale stands for


class SegmentConfig(TrainConfig):
    """A segmentation run; an epoch is a pass over the training images, a crop of each."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 8, "size": 48},
        "data.val": {"name": "shapes", "length": 2, "size": 48, "seed": 1},
        "data.size": 32,
        "data.scale": (96, 48),
        "backbone": {"encoder": DEBUG_ENCODER},
        "data.holdout?": {"name": "shapes", "length": 2, "size": 48, "seed": 2},
        "protocol.taps?": None,
        "protocol.channels?": None,
        "inference.stride?": None,
        "schedule.warmup_epochs": 0.5,
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "pictures": 1},
    }

    choices: ClassVar = {"protocol": PROTOCOLS}

    task: Literal["segment"] = "segment"
    """Which task the file configures."""
    data: MapDataConfig = MapDataConfig()
    """Images with class maps, and their augmentation."""
    backbone: BackboneConfig = BackboneConfig()
    """What is transferred; --backbone sets its reference."""
    protocol: Spec = Spec(name="upernet")
    """An entry of PROTOCOLS with its options."""
    inference: InferenceConfig = InferenceConfig()
    """How images are segmented in evaluation."""
    select: Select = "last"
    """Which state is reported on: the last one, or the one that is best on data.holdout (evaluate_epochs says how often it
    is tried), which is kept as checkpoints/best.pt."""
    run: PicturesRun = PicturesRun()
    """How to carry it out; changes no number."""

    @field_validator("protocol")
    @classmethod
    def _protocol_exists(cls, protocol: Spec) -> Spec:
        return check(PROTOCOLS, protocol)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_selection(self.select, self.data.holdout)
        stride = self.inference.stride
        if self.inference.mode == "slide" and stride is not None and any(map(gt, sides(stride), sides(self.data.size))):
            raise ValueError(
                f"inference.stride={stride}, data.size={self.data.size}: windows further apart than their side leave pixels unseen"
            )
        return self

    def method(self) -> SegmentProtocol:
        """Return the protocol."""
        return build(PROTOCOLS, self.protocol)


class Parts(NamedTuple):
    """What a config opens and builds that is no training state."""

    protocol: SegmentProtocol
    train: MapSource
    val: MapSource
    chosen: Chosen
    holdout: MapSource | None  # to choose the best state on


def run(cfg: SegmentConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Train, evaluate, and append the numbers to work_dir's results.jsonl; return them (rank 0, finished runs only).

    Raises:
        ValueError: config, data, backbone and work dir do not fit together; before training starts.
        NonFiniteLoss: names the step and its samples.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        parts = open_parts(cfg, cfg.backbone, cfg.statistics)
        held = {} if parts.holdout is None else {"holdout": parts.holdout}
        checked = {"training": parts.train, "validation": parts.val, **held}
        on_main(dist, partial(check_sets, checked, skip=cfg.data.unreadable().limit))
        job = Job(
            order=Order(images=len(parts.train), batch=cfg.batch, seed=cfg.seed),
            build=partial(build_state, cfg, parts, dist=dist),
            feed=partial(feed, cfg, parts, dist=dist),
            step=partial(make_step, parts.chosen.statistics),
            evaluate=partial(evaluate, cfg, parts),
            headline=partial(headline, cfg, parts, dist=dist),
            finish=partial(finish, cfg, parts),
            sources={"train": parts.train, "val": parts.val, **held},
            about=About("segment", parts.protocol.title, cfg.data.name, {"backbone": parts.chosen.origin}),
            selection=Selection(f"{HOLDOUT}mIoU", partial(reported, cfg, parts)) if held else None,
        )
        return fit(cfg, work_dir, job, dist=dist, resume=resume)


def evaluate_checkpoint(cfg: SegmentConfig, reference: str, work_dir: Path | None) -> list[results.Result]:
    """Evaluate a training state of this config (step_*.pt) on the validation set.

    The numbers are printed; where there is a work_dir they are appended to its results.jsonl. Pictures are drawn there, or in the
    run that the state is of, whose backbone serves where no reference is given.

    Raises:
        ValueError: the state does not fit the config's model, or its run trained another one of the same shapes.
    """
    as_trained(cfg, reference)
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        statistics = trained_statistics(cfg.statistics, SegmentConfig, reference)
        parts, start = (
            open_parts(cfg, backbone_of(cfg.backbone, SegmentConfig, reference), statistics, train=False),
            time.perf_counter(),
        )
        model = parts.protocol.model(parts.chosen.model, len(parts.val.classes))
        payload = checkpoint.load(Path(reference))
        learned(payload["extra"], parts.val.classes, where=reference)
        on_main(dist, partial(check_sets, {"validation": parts.val}, skip=cfg.data.unreadable().limit))
        load_strict(model, payload.get("ema", payload["model"]), where=reference)
        model.to(dist.device).eval()
        with torch.no_grad():
            figures = measure(cfg, parts, dist, model)
        seconds = time.perf_counter() - start
        digest = checkpoints.sha256(Path(reference))
        record = evaluation_record(
            cfg,
            About(
                "segment",
                parts.protocol.title,
                cfg.data.name,
                {"backbone": parts.chosen.origin, "checkpoint": of_checkpoint(reference, payload, digest)},
            ),
            {"val": parts.val},
            dist,
            run=name_of(work_dir),
            batch=cfg.batch,
            seconds=seconds,
        )
        about = evaluation_facts(
            cfg,
            dist,
            model,
            work_dir,
            images=len(parts.val),
            seconds=seconds,
            trained=payload,
            record=record,
            precision=cfg.precision,
        )
        chosen = parts.chosen._replace(sha256=digest)
        written = numbers(cfg, chosen, model, figures, about, backward=False)
        if dist.is_main:
            print(
                f"{chosen.name}, {parts.protocol.title}: {summary(written)}\n{per_class(parts.val.classes, figures)}",
                flush=True,
            )
            if work_dir is not None:
                written = results.append(WorkDir(work_dir).results, written)
            if (root := work_dir or run_of(reference)) is not None:
                draw(cfg, parts, dist, model, WorkDir(root).segmentations)
        return written


def as_trained(cfg: SegmentConfig, reference: str) -> None:
    """Raise ValueError where the run that a training state lies in had another model: what changes no shape would pass unseen, taps for instance."""
    root = run_of(reference)
    if root is None:
        return
    own = WorkDir(root).config
    different = [line for line in load(own, SegmentConfig).differences(cfg) if line.startswith("protocol.")]
    if different:
        raise ValueError(
            f"{root} trained another model than this config's; give its own config, {own}:\n  " + "\n  ".join(different)
        )


def open_parts(
    cfg: SegmentConfig, backbone: BackboneConfig, statistics: Statistics | None, *, train: bool = True
) -> Parts:
    """Open data and backbone; ValueError where they do not fit the protocol.

    train: whether the training set is opened; an evaluation does without.
    """
    protocol = cfg.method()
    chosen = open_backbone(
        backbone, {"image_size": cfg.data.size, **protocol.changes()}, statistics=statistics, seed=cfg.seed
    )
    if cfg.inference.mode == "whole" and any(
        getattr(module, "strict_img_size", False) for module in chosen.model.modules()
    ):  # timm's ViT, Swin
        raise ValueError(f"{chosen.name} takes images of {cfg.data.size} pixels only: inference.mode='slide'")
    sets = open_maps(cfg.data) if train else (open_map_set(cfg.data.val, cfg.data.root),) * 2
    holdout = open_map_set(cfg.data.holdout, cfg.data.root) if train and cfg.data.holdout else None
    if holdout is not None:
        same_classes(sets[0].classes, holdout.classes)
    return Parts(protocol, *sets, chosen, holdout)


def build_state(cfg: SegmentConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> TrainState:
    """Return model and optimizer before the first step."""
    micro, least = cfg.batch // (dist.world * loop.accumulate), parts.protocol.least
    if micro < least and not dist.sync_bn:
        raise ValueError(
            f"crops per device and forward pass: {micro}, but the heads' batch norms need {least}: raise run.device_batch, or batch"
        )
    model = parts.protocol.model(parts.chosen.model, len(parts.train.classes))
    dressed = assemble(model, dist=dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations)
    optimizer = build_optimizer(
        cfg.optim, parts.protocol.groups(model, cfg.optim), lr=peak_lr(cfg.optim, global_batch=cfg.batch)
    )
    names = parts.train.classes
    return TrainState.create(
        dressed, optimizer, loop, dist=dist, digest=classes_digest(names), extra={"names": list(names)}
    )


def feed(cfg: SegmentConfig, parts: Parts, share: Share, *, dist: Dist) -> Generator[MapBatch, None, None]:
    """Yield the micro-batches of this rank from step `share.start` on, without end."""
    data = cfg.data
    transform = TrainingCrop(
        scale=data.scale,
        ratios=data.ratios,
        size=data.size,
        largest_share=data.largest_share,
        flip=data.flip,
        distort=data.distort,
    )
    crops = MapCrops(source=parts.train, seed=cfg.seed, transform=transform, size=data.size)
    return batches(crops, share, workers=cfg.run.workers, pin=dist.device.type == "cuda", unreadable=data.unreadable())


def make_step(statistics: Statistics, loop: LoopConfig) -> StepFn:
    """Return the training step: the heads' weighted losses; the decode head's accuracy at log steps."""

    def step(model: nn.Module, batch: MapBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        segmenter = bare(model)
        assert isinstance(segmenter, Segmenter)
        # the margin of a small image is zero after normalisation, as in mmseg
        height, width = batch.image.shape[-2:]
        images = normalize(batch.image, statistics) * inside(batch.extent, (height, width))
        logits = model(images)
        losses = segmenter.losses(logits, batch.labels)
        total = torch.stack(list(losses.values())).sum()
        named = {f"{name}_loss": loss for name, loss in losses.items()}
        return total, {**named, "accuracy": accuracy(logits[0].detach(), batch.labels)} if at.logs else {}

    return step


def evaluate(
    cfg: SegmentConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Return what `reported` gives; where the best state is kept, the same of the held-out images, as "holdout/mIoU" ..."""
    if parts.holdout is None:
        return reported(cfg, parts, state, folder, model, step)
    figures = measure(cfg, parts._replace(val=parts.holdout), state.dist, model)
    return {HOLDOUT + name: figures[name] for name in NUMBERS}


def reported(
    cfg: SegmentConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Return mIoU, mAcc and aAcc of the validation set in [0, 1]; the classes' figures are kept with the run's state."""
    figures = measure(cfg, parts, state.dist, model)
    state.extra["classes"] = figures
    return {name: figures[name] for name in (*NUMBERS, "unreadable") if name in figures}


def measure(cfg: SegmentConfig, parts: Parts, dist: Dist, model: nn.Module) -> dict[str, float]:
    """Return the figures of the validation set, per class too, over all ranks; ValueError where no pixel of it has a class."""
    metric, policy = IouMetric(parts.val.classes, device=dist.device), cfg.data.unreadable()
    for batch in views(cfg, parts, dist, policy):
        metric.update(predict(cfg, bare(model), batch, parts.chosen.statistics), batch.labels)
    figures = metric.compute(per_class=True)
    if math.isnan(figures["mIoU"]):
        raise ValueError(
            "no pixel of the validation set has a class: its maps are void everywhere (tools/prepare_data.py check names them)"
        )
    return figures | unread(policy, dist)


def views(cfg: SegmentConfig, parts: Parts, dist: Dist, policy: Unreadable) -> Iterator[Scales]:
    """Yield this rank's part of the validation set on the device, image by image."""
    several = len(cfg.inference.scales) > 1
    transform = Rescale(scale=cfg.data.scale, ratios=cfg.inference.scales, least=cfg.data.size if several else 0)
    samples = MapViews(source=parts.val, seed=EVALUATION_SEED, transform=transform)
    return sweep_over(samples, dist, batch=1, workers=cfg.run.workers, unreadable=policy)


def predict(cfg: SegmentConfig, model: nn.Module, batch: Scales, statistics: Statistics) -> Tensor:
    """Return the class of each pixel of an image, (1, H, W)."""
    assert isinstance(model, Segmenter)
    inference, size = cfg.inference, cfg.data.size
    slide = inference.mode == "slide"
    stride = inference.stride or size_of(*(side * 2 // 3 for side in sides(size)))
    how = Windows(size if slide else None, stride, model.pyramid.size_divisor, cfg.run.evaluation_batch)
    with autocast(cfg.precision, batch.labels.device):
        normalized = [normalize(image, statistics) for image in batch.images]
        height, width = batch.labels.shape[-2:]
        return probabilities(model, normalized, (height, width), how, flip=inference.flip).argmax(dim=1)


def draw(cfg: SegmentConfig, parts: Parts, dist: Dist, model: nn.Module, folder: Path) -> None:
    """Draw the first validation images with truth and prediction into a folder, one PNG each (one rank calls it)."""
    if not cfg.run.pictures:
        return
    with torch.no_grad():
        for number, batch in zip(
            range(cfg.run.pictures), views(cfg, parts, Dist(dist.device), cfg.data.unreadable()), strict=False
        ):
            image, truth, predicted = (
                tensor[0].cpu()
                for tensor in (batch.original, batch.labels, predict(cfg, bare(model), batch, parts.chosen.statistics))
            )
            shown = Picture(image, truth, predicted, Path(parts.val.where(int(batch.index[0]))).name)
            save_picture(folder / f"{number:04d}.png", shown, parts.val.classes)


def headline(cfg: SegmentConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> str:
    """Return what is about to happen, in one sentence per line."""
    return (
        f"{parts.protocol.title} on {parts.chosen.name} (pretraining: {parts.chosen.pretrain}; {cfg.scale} scale), {len(parts.val.classes)} classes, "
        f"{len(parts.train)} training and {len(parts.val)} validation images\nnormalised with {parts.chosen.normalization}\n{plan(cfg, loop, dist)}"
    )


def finish(
    cfg: SegmentConfig, parts: Parts, state: TrainState, loop: LoopConfig, folder: WorkDir, log: Logger
) -> list[results.Result]:
    """Draw, and append the run's results: with them it is finished."""
    figures = state.extra["classes"] | {
        name: value for name, value in state.metrics.items() if name.startswith(HOLDOUT)
    }
    model = state.averaged
    model.eval()
    draw(cfg, parts, state.dist, model, folder.segmentations)
    written = results.append(
        folder.results, numbers(cfg, parts.chosen, state.bare, figures, facts(cfg, state, folder), backward=True)
    )
    log.say(per_class(parts.val.classes, figures))
    log.say(f"done: {summary(written)}; in {folder.results}, pictures in {folder.segmentations}")
    return written


def per_class(classes: tuple[str, ...], figures: dict[str, float]) -> str:
    """Return a line per class with IoU and accuracy in percent, "-" where it neither occurs nor is found."""
    shown = [
        [f"{100 * figures[f'{what}[{name}]']:6.2f}".replace("   nan", "     -") for what in ("IoU", "Acc")]
        for name in classes
    ]
    return "\n".join(f"  IoU {iou}  Acc {acc}  {name}" for (iou, acc), name in zip(shown, classes, strict=True))


def summary(written: list[results.Result]) -> str:
    """Return the numbers in one line."""
    return ", ".join(f"{r.metric} {r.value:.2f}%" for r in written if r.split == "val")


def numbers(
    cfg: SegmentConfig,
    chosen: Chosen,
    model: nn.Module,
    figures: dict[str, float],
    about: dict[str, Any],
    *,
    backward: bool,
) -> list[results.Result]:
    """Return mIoU, mAcc and aAcc as Results, in percent; "mIoU/ms" where several scales or mirror images were averaged."""
    about = about | {"unreadable": figures.get("unreadable", 0)}
    suffix = "/ms" if len(cfg.inference.scales) > 1 or cfg.inference.flip else ""
    shared: dict[str, Any] = about | {
        "task": "segment", "protocol": cfg.method().title, "dataset": cfg.data.name, "split": "val", "unit": "%", "higher_is_better": True,
        "backbone": chosen.name, "pretrain": chosen.pretrain, "checkpoint_sha256": chosen.sha256, "normalization": chosen.normalization,
        "flops_per_image": flops_of(model, cfg.data.size, backward=backward), "tokens_per_image": tokens_of(chosen.model, cfg.data.size),
    }  # fmt: skip
    return [
        results.Result(metric=name + suffix, value=100 * figures[prefix + name], **{**shared, "split": split})
        for split, prefix in (("val", ""), ("holdout", HOLDOUT))
        for name in NUMBERS
        if prefix + name in figures
    ]
