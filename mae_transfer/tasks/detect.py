"""Object detection and instance segmentation with a pretrained backbone: Mask R-CNN on its pyramid, by torchvision's parts or detectron2's heads.

Legend: B batch, S pixels per side of the padded square, K classes, n objects of an image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from mae_transfer import checkpoints, results
from mae_transfer.adapters import ADAPTERS, AdaptedBackbone, maps_of
from mae_transfer.adapters.levels import NORMS
from mae_transfer.bounds import BelowOne
from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import Spec, build, check
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.paste import pasted
from mae_transfer.core.patches import sides, size_of
from mae_transfer.data import (
    SCENE_TRANSFORMS,
    ObjectDataConfig,
    ObjectSource,
    Order,
    SceneBatch,
    Share,
    Unreadable,
    batches,
    open_objects,
    open_one,
    same_classes,
    scenes,
)
from mae_transfer.data.coco_check import check_images
from mae_transfer.data.outlines import code
from mae_transfer.draw.detections import Shown, save_detections
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import Dist, assemble, on_main, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Step, StepFn
from mae_transfer.engine.optim import Decay, Layers, build_optimizer, param_groups, peak_lr, spared
from mae_transfer.engine.state import LoopConfig, Precision, TrainState, autocast
from mae_transfer.interfaces import Found
from mae_transfer.metrics.coco import CocoMetric, Detections, Kind
from mae_transfer.models.mask_rcnn import HeadsConfig, MaskRCNN
from mae_transfer.tasks.backbones import (
    BackboneConfig,
    Chosen,
    backbone_of,
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
from mae_transfer.tasks.detectron2 import Detectron2RCNN
from mae_transfer.tasks.labels import classes_digest, learned
from mae_transfer.tasks.provenance import About, evaluation_record, name_of, of_checkpoint
from mae_transfer.tasks.workdir import WorkDir, run_of

EVALUATED_IN: Precision = "float32"  # whatever the training's precision, as detectron2 evaluates
COARSEST = 32  # stride of the last level but one: sides of batches are multiples of it
DEBUG_ENCODER = {"size": None, "dim": 32, "depth": 4, "heads": 2, "patch": 16, "image_size": 64}


class DetectConfig(TrainConfig):
    """A detection run; an epoch is a pass over the training images that have objects."""

    debug: ClassVar[dict[str, Any]] = {
        "scale": "mini",
        "epochs": 1,
        "batch": 4,
        "data.train": {"name": "shapes", "length": 8, "size": 64},
        "data.val": {"name": "shapes", "length": 2, "size": 64, "seed": 1},
        "data.holdout?": {"name": "shapes", "length": 2, "size": 64, "seed": 2},
        "data.augmentation": {"name": "large_scale_jitter", "size": 64},
        "data.view": {"name": "shortest_edge", "lengths": (64,), "longest": 64, "flip": 0.0},
        "data.square": 64,
        "backbone": {
            "encoder": DEBUG_ENCODER,
            "changes": {
                "windows": 3,
                "global_blocks": (1, 3),
                "relative_positions": "decomposed",
                "positions": "learned",
            },
        },
        "adapter.channels?": 32,
        "adapter.fpn?": 32,
        "heads.box_width": 32,
        "heads.roi_batch": 16,
        "schedule.warmup_epochs": 0.5,
        "schedule.milestones?": (),
        "run": {"device": "cpu", "workers": 0, "log_every": 1, "save_minutes": None, "pictures": 1},
    }

    choices: ClassVar = {"adapter": ADAPTERS}

    task: Literal["detect"] = "detect"
    """Which task the file configures."""
    data: ObjectDataConfig = ObjectDataConfig()
    """Images with objects, and how they are resized."""
    backbone: BackboneConfig = BackboneConfig()
    """What is transferred; --backbone sets its reference. Its `changes` switch windows and relative positions on."""
    adapter: Spec = Spec(name="simple_fpn")
    """An entry of ADAPTERS with its options: the pyramid."""
    heads: HeadsConfig = HeadsConfig()
    """The detector's heads."""
    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """Whose heads: torchvision's, made equal to detectron2's, or detectron2's own where it is installed."""
    decay: Decay = "matrices"
    """What decays beside matrices: nothing, as in BEiT and MAE; biases too, as detectron2 has it for ViTDet-B and -L; everything (ViTDet-H)."""
    drop_path: BelowOne = 0.0
    """Stochastic depth of the backbone's last block."""
    select: Select = "last"
    """Which state is reported on: the last one, or the one that is best on data.holdout (evaluate_epochs says how often it
    is tried), which is kept as checkpoints/best.pt."""
    protocol: str = "mask_rcnn"
    """What tables call the recipe."""
    run: PicturesRun = PicturesRun()
    """How to carry it out; changes no number."""

    @field_validator("adapter")
    @classmethod
    def _adapter_exists(cls, adapter: Spec) -> Spec:
        return check(ADAPTERS, adapter)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_selection(self.select, self.data.holdout)
        if self.heads.norm is not None and self.heads.norm not in NORMS:
            raise ValueError(f"heads.norm = {self.heads.norm!r}: one of {', '.join(NORMS)}, or None")
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is evaluated: boxes, and masks where there is a mask head."""
        return ("bbox", "segm") if self.heads.masks else ("bbox",)

    @property
    def side(self) -> int | tuple[int, int]:
        """Pixels that the backbone's tables are made for, one side or height and width: the square, or the longest sides of the training images."""
        longest = build(SCENE_TRANSFORMS, self.data.augmentation).largest()
        return self.data.square or size_of(*(-(-side // COARSEST) * COARSEST for side in longest))


class Parts(NamedTuple):
    """What a config opens and builds that is no training state."""

    train: ObjectSource
    val: ObjectSource
    metric: CocoMetric  # of the validation set, empty
    chosen: Chosen
    model: nn.Module
    divisor: int  # of the sides of images that the pyramid takes
    holdout: tuple[ObjectSource, CocoMetric] | None  # to choose the best state on


def run(cfg: DetectConfig, work_dir: Path, *, resume: bool = False) -> list[results.Result]:
    """Train, evaluate, and append the numbers to work_dir's results.jsonl; return them (rank 0, finished runs only).

    Raises:
        ValueError: config, data, backbone and work dir do not fit together, or detectron2 is asked for and absent; before training starts.
        NonFiniteLoss: names the step and its samples.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        parts = open_parts(cfg, cfg.backbone, cfg.statistics)
        held = {} if parts.holdout is None else {"holdout": parts.holdout[0]}
        checked = {"training": parts.train, "validation": parts.val, **held}
        on_main(dist, partial(check_images, checked, skip=cfg.data.unreadable().limit))
        job = Job(
            order=Order(
                images=len(parts.train), batch=cfg.batch, seed=cfg.seed, crops_per_image=cfg.data.crops_per_image
            ),
            build=partial(build_state, cfg, parts, dist=dist),
            feed=partial(feed, cfg, parts, dist=dist),
            step=partial(make_step, parts.chosen.statistics),
            evaluate=partial(evaluate, cfg, parts),
            headline=partial(headline, cfg, parts, dist=dist),
            finish=partial(finish, cfg, parts),
            sources={"train": parts.train, "val": parts.val, **held},
            about=About("detect", cfg.protocol, cfg.data.name, {"backbone": parts.chosen.origin}),
            selection=Selection(f"{HOLDOUT}bbox/AP", partial(reported, cfg, parts)) if held else None,
        )
        return fit(cfg, work_dir, job, dist=dist, resume=resume)


def evaluate_checkpoint(cfg: DetectConfig, reference: str, work_dir: Path | None) -> list[results.Result]:
    """Evaluate a training state of this config (step_*.pt) on the validation set.

    The numbers are printed; where there is a work_dir they are appended to its results.jsonl, and predictions go there. Pictures go there too, or
    to the run that the state is of, whose backbone serves where the config names none. ValueError where the state learned other classes.
    """
    with session(cfg.run.device, matmul=cfg.matmul) as dist:
        statistics = trained_statistics(cfg.statistics, DetectConfig, reference)
        parts, start = (
            open_parts(cfg, backbone_of(cfg.backbone, DetectConfig, reference), statistics, train=False),
            time.perf_counter(),
        )
        payload = checkpoint.load(Path(reference))
        learned(payload["extra"], parts.val.classes, where=reference)
        on_main(dist, partial(check_images, {"validation": parts.val}, skip=cfg.data.unreadable().limit))
        load_strict(parts.model, payload.get("ema", payload["model"]), where=reference)
        model = parts.model.to(dist.device).eval()
        folder = WorkDir(work_dir) if work_dir else None
        with torch.no_grad():
            metric, left_out = predicted(cfg, parts, dist, model)
            figures = (
                metric.compute(save=folder.predictions if folder else None, per_class=True, group=dist.side) | left_out
            )
        seconds = time.perf_counter() - start
        digest = checkpoints.sha256(Path(reference))
        record = evaluation_record(
            cfg,
            About(
                "detect",
                cfg.protocol,
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
            precision=EVALUATED_IN,
        )
        written = numbers(cfg, parts, figures, about | {"checkpoint_sha256": digest})
        if dist.is_main:
            print(
                f"{parts.chosen.name}, {cfg.protocol}: {summary(written)}\n{per_class(parts.val.classes, figures, cfg.kinds)}",
                flush=True,
            )
            if folder is not None:
                written = results.append(folder.results, written)
            if (root := work_dir or run_of(reference)) is not None:
                draw(cfg, parts, dist, model, WorkDir(root).detections)
        return written


def open_parts(
    cfg: DetectConfig, backbone: BackboneConfig, statistics: Statistics | None, *, train: bool = True
) -> Parts:
    """Open data and backbone and build the detector; ValueError where they do not fit together.

    train: whether the training set is opened; an evaluation does without.
    """
    source, val, metric = open_sets(cfg, train=train)
    changes = {"image_size": cfg.side, "class_token": False, "final_norm": False, "drop_path": cfg.drop_path}
    chosen = open_backbone(backbone, changes, statistics=statistics, seed=cfg.seed)
    adapter = build(ADAPTERS, cfg.adapter, maps_of(chosen.model))  # type: ignore[arg-type]
    pyramid = AdaptedBackbone(chosen.model, adapter)  # type: ignore[arg-type]
    strides = list(adapter.strides.values())
    if cfg.data.square is not None and any(side % pyramid.size_divisor for side in sides(cfg.data.square)):
        raise ValueError(
            f"data.square = {cfg.data.square} is no multiple of {pyramid.size_divisor}, which the pyramid needs"
        )
    if cfg.engine == "detectron2":
        model: nn.Module = Detectron2RCNN(pyramid, strides=strides, classes=len(val.classes), heads=cfg.heads)
    else:
        norm = NORMS[cfg.heads.norm] if cfg.heads.norm else None
        model = MaskRCNN(pyramid, strides=strides, classes=len(val.classes), heads=cfg.heads, norm=norm)
    holdout = None
    if train and cfg.data.holdout is not None:
        held = open_one(cfg.data.holdout, cfg.data.root, masks=cfg.heads.masks)
        same_classes(source.classes, held.classes)
        holdout = held, CocoMetric(held.ground_truth(), kinds=cfg.kinds, detections=cfg.heads.detections)
    return Parts(source, val, metric, chosen, model, pyramid.size_divisor, holdout)


def open_sets(cfg: DetectConfig, *, train: bool = True) -> tuple[ObjectSource, ObjectSource, CocoMetric]:
    """Return the training and the validation set and the latter's metric, empty; ValueError where one of them could not be used to the end."""
    if train:
        source, val = open_objects(cfg.data, masks=cfg.heads.masks)
    else:
        source = val = open_one(cfg.data.val, cfg.data.root, masks=cfg.heads.masks)
    for name, spec in (("train", cfg.data.train), ("val", cfg.data.val)):
        if spec.options.get("masks") and not cfg.heads.masks:
            raise ValueError(
                f"data.{name} has masks=True and heads.masks=False: leave masks=True out, so that both sets have the same objects"
            )
    if train and cfg.heads.masks and not source.has_masks:  # an evaluation has its ground truth from the file
        raise ValueError(
            f"data.train = {cfg.data.train.model_dump()} has no masks: leave masks=False out, or set heads.masks=False for boxes alone"
        )
    metric = CocoMetric(val.ground_truth(), kinds=cfg.kinds, detections=cfg.heads.detections)
    return source, val, metric


def build_state(cfg: DetectConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> TrainState:
    """Return model and optimizer before the first step."""
    dressed = assemble(
        parts.model, dist=dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations
    )
    model: Any = parts.model
    layers = Layers(model.layer_of, model.pyramid.depth, cfg.optim.layer_decay) if cfg.optim.layer_decay else None
    no_decay = spared(model, cfg.optim, default=None)
    groups = param_groups(model, weight_decay=cfg.optim.weight_decay, layers=layers, no_decay=no_decay, decay=cfg.decay)
    optimizer, names = (
        build_optimizer(cfg.optim, groups, lr=peak_lr(cfg.optim, global_batch=cfg.batch)),
        parts.train.classes,
    )
    return TrainState.create(
        dressed, optimizer, loop, dist=dist, digest=classes_digest(names), extra={"names": list(names)}
    )


def feed(cfg: DetectConfig, parts: Parts, share: Share, *, dist: Dist) -> Generator[SceneBatch, None, None]:
    """Yield the micro-batches of this rank from step `share.start` on, without end."""
    samples = scenes(parts.train, cfg.data, seed=cfg.seed, divisor=parts.divisor, training=True)
    return batches(
        samples, share, workers=cfg.run.workers, pin=dist.device.type == "cuda", unreadable=cfg.data.unreadable()
    )


def make_step(statistics: Statistics, loop: LoopConfig) -> StepFn:
    """Return the training step: the sum of the detector's losses."""

    def step(model: nn.Module, batch: SceneBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        losses: dict[str, Tensor] = model(padded(batch, statistics), batch.sizes, batch.objects)
        return torch.stack(list(losses.values())).sum(), losses if at.logs else {}

    return step


def padded(batch: SceneBatch, statistics: Statistics) -> Tensor:
    """Return the images normalised, (B, 3, H, W), their padding zero: the mean colour, as detectron2 pads."""
    images = normalize(batch.image, statistics)
    for image, (height, width) in zip(images, batch.sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


def evaluate(
    cfg: DetectConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Return what `reported` gives; where the best state is kept, the same of the held-out images, as "holdout/bbox/AP" ..."""
    if parts.holdout is None:
        return reported(cfg, parts, state, folder, model, step)
    source, metric = parts.holdout
    found, left_out = predicted(cfg, parts._replace(val=source, metric=metric), state.dist, model)
    figures = found.compute(group=state.dist.side) | left_out
    return {HOLDOUT + name: value for name, value in figures.items() if not math.isnan(value)}


def reported(
    cfg: DetectConfig, parts: Parts, state: TrainState, folder: WorkDir, model: nn.Module, step: int
) -> dict[str, float]:
    """Return the validation set's "bbox/AP", "segm/AP50" ... in [0, 1] that are defined; the predictions are saved."""
    metric, left_out = predicted(cfg, parts, state.dist, model)
    figures = metric.compute(save=folder.predictions, group=state.dist.side) | left_out
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def predicted(cfg: DetectConfig, parts: Parts, dist: Dist, model: nn.Module) -> tuple[CocoMetric, dict[str, float]]:
    """Return the metric filled with what the model finds in this rank's part of the validation set, each image once, and what `unread` counts.

    An image that cannot be read, where such are skipped, is left out with its objects.
    """
    metric, policy = parts.metric.empty(), cfg.data.unreadable()
    for batch, found in sweep(cfg, parts, dist, model, policy, batch=cfg.run.evaluation_batch):
        metric.update([int(parts.val.image_ids[i]) for i in batch.index.tolist()], found)
    metric.leave_out([int(parts.val.image_ids[index]) for index in policy.files])
    return metric, unread(policy, dist)


def sweep(
    cfg: DetectConfig, parts: Parts, dist: Dist, model: nn.Module, policy: Unreadable, *, batch: int
) -> Iterator[tuple[SceneBatch, list[Detections]]]:
    """Yield this rank's part of the validation set with what the model finds in it, in pixels of the stored images."""
    samples = scenes(parts.val, cfg.data, seed=EVALUATION_SEED, divisor=parts.divisor, training=False)
    for seen in sweep_over(samples, dist, batch=batch, workers=cfg.run.workers, unreadable=policy):
        with autocast(EVALUATED_IN, dist.device):
            found: Sequence[Found] = model(padded(seen, parts.chosen.statistics), seen.sizes)
        stored = [parts.val.size(i) for i in seen.index.tolist()]
        yield seen, [in_stored(one, size, into) for one, size, into in zip(found, seen.sizes, stored, strict=True)]


def in_stored(found: Found, size: tuple[int, int], stored: tuple[int, int]) -> Detections:
    """Return what was found in an image resized to `size` in pixels of the image as it is `stored` (height, width), masks pasted; on the CPU."""
    found = Found(*(None if part is None else part.cpu() for part in found))  # type: ignore[arg-type]
    scale = torch.tensor([stored[1] / size[1], stored[0] / size[0]]).repeat(2)
    boxes = clip_boxes_to_image(found.boxes * scale, stored)
    there = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    masks = (
        None
        if found.masks is None
        else [code(runs, stored) for runs in pasted(found.masks[there], boxes[there], stored)]
    )
    return Detections(boxes[there], found.scores[there], found.labels[there], masks)


def draw(cfg: DetectConfig, parts: Parts, dist: Dist, model: nn.Module, folder: Path) -> None:
    """Draw the first validation images with their objects beside what is found, one PNG each (one rank calls it)."""
    if not cfg.run.pictures:
        return
    with torch.no_grad():
        for number, (batch, found) in zip(
            range(cfg.run.pictures),
            sweep(cfg, parts, Dist(dist.device), model, cfg.data.unreadable(), batch=1),
            strict=False,
        ):
            index = int(batch.index[0])
            there = parts.val.read(index)
            shown = Shown(there.image, there.objects, found[0], Path(parts.val.where(index)).name)
            save_detections(folder / f"{number:04d}.png", shown, parts.val.classes)


def headline(cfg: DetectConfig, parts: Parts, loop: LoopConfig, *, dist: Dist) -> str:
    """Return what is about to happen, in one sentence per line."""
    return (
        f"{cfg.protocol} by {cfg.engine} on {parts.chosen.name} (pretraining: {parts.chosen.pretrain}; {cfg.scale} scale), {len(parts.val.classes)} "
        f"classes, {len(parts.train)} training and {len(parts.val)} validation images\n"
        f"normalised with {parts.chosen.normalization}\n{plan(cfg, loop, dist)}"
    )


def finish(
    cfg: DetectConfig, parts: Parts, state: TrainState, loop: LoopConfig, folder: WorkDir, log: Logger
) -> list[results.Result]:
    """Draw, and append the run's results: with them it is finished."""
    model = state.averaged
    model.eval()
    draw(cfg, parts, state.dist, model, folder.detections)
    about = {"checkpoint_sha256": parts.chosen.sha256} | facts(cfg, state, folder)
    written = results.append(folder.results, numbers(cfg, parts, state.metrics, about))
    log.say(f"done: {summary(written)}; in {folder.results}, pictures in {folder.detections}")
    return written


def numbers(cfg: DetectConfig, parts: Parts, figures: dict[str, float], about: dict[str, Any]) -> list[results.Result]:
    """Return one Result per figure that is defined, in percent; classes are left out."""
    shared: dict[str, Any] = about | {
        "task": "detect", "protocol": cfg.protocol, "dataset": cfg.data.name, "split": "val", "unit": "%", "higher_is_better": True,
        "backbone": parts.chosen.name, "pretrain": parts.chosen.pretrain, "engine": cfg.engine,
        "normalization": parts.chosen.normalization,
        "tokens_per_image": tokens_of(parts.chosen.model, cfg.side), "unreadable": figures.get("unreadable", 0),
    }  # fmt: skip
    there = {
        name: value
        for name, value in figures.items()
        if "[" not in name and "unreadable" not in name and not math.isnan(value)
    }
    splits = {name: {"split": "holdout"} if name.startswith(HOLDOUT) else {} for name in there}
    return [
        results.Result(metric=name.removeprefix(HOLDOUT), value=100 * value, **{**shared, **splits[name]})
        for name, value in there.items()
    ]


def summary(written: list[results.Result]) -> str:
    """Return the main numbers in one line."""
    return ", ".join(
        f"{r.metric} {r.value:.2f}%" for r in written if r.split == "val" and r.metric.endswith(("/AP", "/AP50"))
    )


def per_class(classes: tuple[str, ...], figures: dict[str, float], kinds: Sequence[Kind]) -> str:
    """Return a line per class with its AP in percent, "-" where it does not occur."""
    rows = [(name, [figures.get(f"{kind}/AP[{name}]", math.nan) for kind in kinds]) for name in classes]
    shown = [
        (name, ["     -" if math.isnan(value) else f"{100 * value:6.2f}" for value in values]) for name, values in rows
    ]
    return "\n".join(
        "  " + "  ".join(f"{kind} {text}" for kind, text in zip(kinds, texts, strict=True)) + f"  {name}"
        for name, texts in shown
    )
