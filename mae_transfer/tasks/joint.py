"""Pretraining by joint embedding: a student agrees with a teacher, its own average, about views of an image.

DINO, iBOT, MoCo v3, MoBY and EsViT are configurations of two objectives (objectives/). The loop keeps the average.

Legend: G wide and L narrow views, B batch, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer import checkpoints
from mae_transfer.bounds import Count, Probability
from mae_transfer.checkpoints.timm_models import wrap
from mae_transfer.core.masks import ViewMask
from mae_transfer.core.normalize import Statistics, normalize
from mae_transfer.core.patches import sides
from mae_transfer.data import pick_evenly
from mae_transfer.data.crops import MultiCrops, ViewsConfig, apply_looks, finish_views
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import compiled, compiles, gather_equal, mean_over_ranks, read_mean
from mae_transfer.engine.loop import Step
from mae_transfer.engine.schedule import Rates
from mae_transfer.engine.state import LoopConfig
from mae_transfer.interfaces import Backbone, Looks, Objective, Views, World
from mae_transfer.models.joint import Joint, JointModelConfig
from mae_transfer.models.vit import ViT
from mae_transfer.objectives import AnyObjective, DistillConfig
from mae_transfer.objectives.heads import PrototypeHead
from mae_transfer.results import Result
from mae_transfer.seeding import fold
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.encoders import EncoderConfig, EncoderTask
from mae_transfer.tasks.images import sheet
from mae_transfer.tasks.sweep import EVALUATION_SEED, readable, unread
from mae_transfer.tasks.workdir import WorkDir

SPREAD = "feature_spread"


class JointConfig(EncoderConfig):
    """A pretraining by joint embedding. It is evaluated by the spread of its features on validation images."""

    debug: ClassVar[dict[str, Any]] = {
        **TrainConfig.debug,
        "data.train": {"name": "shapes", "length": 8},
        "data.val": {"name": "shapes", "length": 2, "seed": 1},
        "monitor?": None,
        "data.size": 32,
        "data.views.narrow_size?": 16,
        "model.encoder.size?": "vit_tiny",
        "model.encoder.dim?": 32,
        "model.encoder.depth?": 2,
        "model.encoder.heads?": 2,
        "model.encoder.image_size": 32,
        "objective.out": 32,
        "objective.hidden": 16,
        "objective.warmup_epochs?": 1,
        "objective.freeze_epochs?": 0.5,
        "objective.queue?": 8,
        "schedule.milestones": (),
    }

    later = EncoderConfig.later | {"start"}

    task: Literal["joint"] = "joint"
    """Name of this task."""
    data: ViewsConfig = ViewsConfig()
    """Images, and how each becomes several views."""
    model: JointModelConfig = JointModelConfig()
    """The encoder."""
    objective: AnyObjective = DistillConfig()
    """How the student must agree with the teacher: "distill" (DINO, iBOT, EsViT) or "contrast" (MoCo v3, MoBY)."""
    mask: ViewMask | None = None
    """Which patches of the wide views are hidden from the student, for objective.patches = "masked" (iBOT)."""
    alarm_spread: Probability = 0.05
    """Spread of the features below which the run warns of a collapse: 0 if all images have the same features, at most
    1."""
    alarm_steps: Count = 2000
    """How many steps a collapse must last before the run warns. In a shorter run a twentieth of its steps suffices, but
    not less than 100, or 10 at its end."""

    start: str | None = None
    """Weights to start from, of student and teacher alike: a step_*.pt of this task, with its heads; or a backbone,
    named as for --backbone (also a step_*.pt of another pretraining), with fresh heads. None: fresh weights."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        views, masked, timm = self.data.views, self.objective.compares == "masked", self.model.timm
        if self.ema_decay is None:
            raise ValueError(
                "ema_decay is not set, but the average is the teacher: set it, for instance to "
                "dict(start=0.996, end=1.0, epochs='100%')"
            )
        if masked and timm is not None:
            raise ValueError(
                f"objective.patches = 'masked', but model.timm = {timm!r} has no mask token: use a ViT (model.encoder) "
                "or objective.patches='matched'"
            )
        if masked and self.mask is None:
            raise ValueError("objective.patches = 'masked', but nothing is hidden: set mask, for instance to dict()")
        if self.mask is not None:
            self.mask.check(self.model.encoder.grid())
        if not masked and self.mask is not None:
            raise ValueError("mask is set, but only objective.patches = 'masked' uses it: set that, or remove mask")
        self.objective.check(batch=self.batch, wide=views.wide, narrow=views.narrow, epochs=self.epochs)
        patch = self.model.encoder.patch
        if timm is None and views.narrow and any(side % patch for side in sides(views.narrow_size)):
            raise ValueError(
                f"data.views.narrow_size = {views.narrow_size} is no multiple of model.encoder.patch = {patch}: change "
                "one of them"
            )
        return self

    def augments_on_device(self) -> bool:
        return True

    def method(self) -> str:
        """Return what a table calls this pretraining: "DINO, 2 + 8 views, 100 ep"."""
        narrow = f" + {self.data.views.narrow}" if self.data.views.narrow else ""
        return f"{self.objective.system}, {self.data.views.wide}{narrow} views, {self.epochs:g} ep"


class JointEmbedding(EncoderTask[JointConfig]):
    """A pretraining by joint embedding."""

    joint: Joint
    """The student before the first step; from `open` on."""
    objective: Objective
    accumulate: int
    per_epoch: int
    """Steps of an epoch."""
    apply_looks: Callable[[Tensor, Looks], Tensor]
    """What flips and colours views on the device, possibly compiled."""
    steps: int
    """Steps of the run."""

    def open(self) -> None:
        super().open()
        cfg = self.cfg
        torch.manual_seed(fold(cfg.seed, "init"))
        encoder: Backbone = ViT(cfg.model.encoder)
        if cfg.model.timm is not None:
            changes = {"image_size": cfg.data.size, "drop_path": cfg.model.encoder.drop_path}
            encoder = wrap(cfg.model.timm, changes, where="model.timm")
            encoder.accept_any_size()
            check_encodes(encoder, cfg)
        heads = cfg.objective.heads(width_of(encoder))
        self.joint = Joint(encoder, heads, patches=cfg.objective.compares, freeze_stem=cfg.model.freeze_stem)
        if cfg.start is not None:
            from mae_transfer.tasks.targets import digest_of_file

            load_start(self.joint, cfg.start, cfg.statistics)
            origin = checkpoints.origin(cfg.start, checkpoints.PREFIXES, sha256=digest_of_file(cfg.start))
            self.inputs = {"start": origin}

    def prepare(self, loop: LoopConfig) -> None:
        super().prepare(loop)
        together = self.dist.world == 1 or self.dist.sync_bn
        self.cfg.objective.check_split(images=self.micro_batch(loop), micro_steps=loop.accumulate, together=together)
        if self.cfg.run.device_batch == "auto" and self.dist.world > 1:
            raise ValueError(
                "run.device_batch = 'auto' tries each process alone, but the objective needs all of them: set a number"
            )
        self.accumulate, self.per_epoch, self.steps = loop.accumulate, loop.steps_per_epoch, loop.steps
        run = self.cfg.run
        fused = run.augment_on == "device" and compiles(run.compile, self.dist)
        self.apply_looks = compiled(apply_looks) if fused else apply_looks

    def rates_at(self, loop: LoopConfig) -> Callable[[int], Rates]:
        """Return the rates as a function of the step. Prototypes are frozen at first (DINO, --freeze_last_layer)."""
        rates, is_live = super().rates_at(loop), self.cfg.objective.timed(self.cfg.epochs).is_live
        heads = [head for head in self.joint.modules() if isinstance(head, PrototypeHead)]
        prototypes = [parameter for head in heads for parameter in head.last_layer()]
        return lambda step: rates(step)._replace(frozen=() if is_live(step / loop.steps_per_epoch) else prototypes)

    def loop(self) -> LoopConfig:
        return super().loop().model_copy(update={"evaluated": self.cfg.objective.exported})

    def training_samples(self) -> MultiCrops:
        return replace(self.samples(self.train_set, self.cfg.seed), augment_on=self.cfg.run.augment_on)

    def samples(self, source: Any, seed: int) -> MultiCrops:
        """Return views of the images of a source."""
        cfg = self.cfg
        grid = self.joint.encoder.grid if isinstance(self.joint.encoder, ViT) else (0, 0)
        return MultiCrops(source=source, crops=cfg.data.views, size=cfg.data.size, seed=seed, mask=cfg.mask, grid=grid)

    def model(self) -> nn.Module:
        return self.joint

    def held(self) -> nn.Module:
        torch.manual_seed(fold(self.cfg.seed, "objective"))
        gather, mean = partial(gather_equal, dist=self.dist), partial(mean_over_ranks, dist=self.dist)
        timed = self.cfg.objective.timed(self.cfg.epochs)
        self.objective = timed.build(World(self.dist.rank, gather, mean)).to(self.dist.device)
        return self.objective

    def loss(self, model: nn.Module, batch: Views, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(at.average, Joint)
        epoch, statistics = at.number / self.per_epoch, self.cfg.statistics
        batch = finish_views(batch, self.apply_looks)
        wide = normalize(batch.wide, statistics, channels=2)
        narrow = None if batch.narrow is None else normalize(batch.narrow, statistics, channels=2)
        teacher = at.average.teach(wide, batch.hidden)
        student = model(wide, narrow, batch.hidden)
        if at.micro == 0:
            self.objective.pending.clear()  # of a step that failed
        loss = self.objective(student, teacher, batch.hidden, epoch)
        with torch.no_grad():
            metrics = self.objective.metrics(student, teacher, epoch) if at.logs else {}
            if at.logs and len(batch.index) > 1:
                metrics[SPREAD] = spread(F.normalize(student.features[0].float(), dim=1).mean(dim=0))
        if at.micro + 1 == self.accumulate:
            self.objective.settle()
        return loss, metrics

    def inspect(self, step: int, figures: Mapping[str, float]) -> str:
        """Return an alarm if a collapse has lasted for `alarm_steps`, or long enough for a shorter run.

        Its start is part of the training state.
        """
        cfg, progress = self.cfg, self.state.extra
        how = self.objective.collapse(figures)
        if figures.get(SPREAD, 1.0) < cfg.alarm_spread:
            how = how or "all images have nearly the same features; lower the learning rate, or raise the batch"
        healthy: int = progress.setdefault("healthy", step)
        patience = min(cfg.alarm_steps, max(10 if step == self.steps else 100, self.steps // 20))
        lasts = how != "" and step - healthy >= patience
        if lasts or not how:
            progress["healthy"] = step
        return f"collapse between steps {healthy} and {step}: {how}" if lasts else ""

    def evaluate(self, model: Joint, step: int) -> dict[str, float]:
        """Return the spread of the features of held-out images, over all of them."""
        policy, device = self.cfg.data.unreadable(), self.dist.device
        total = torch.zeros(width_of(model.encoder), device=device)
        for batch in self.sweep(self.held_out_samples(), policy):
            features, _ = model.encode(normalize(batch.image, self.cfg.statistics)[None])
            total += F.normalize(features[0].float(), dim=1).sum(dim=0)
        left_out = unread(policy, self.dist)
        images = readable(len(self.held_out), left_out, of=f"{self.split} set")
        mean = mean_over_ranks(total, self.dist) * self.dist.world / images
        return {f"{self.split}_{SPREAD}": read_mean({"s": spread(mean)}, self.dist)["s"], **left_out}

    def pictures(self, model: nn.Module, folder: WorkDir) -> None:
        """Draw the views of some held-out images, narrow ones enlarged, with hidden patches in grey."""
        from mae_transfer.draw.views import draw_views

        samples = self.samples(pick_evenly(self.held_out, self.cfg.pictures), EVALUATION_SEED)
        batches = self.sweep(samples, self.cfg.data.unreadable(), alone=True)
        drawn = sheet([draw_views(batch, self.joint.encoder.patch) for batch in batches])
        views = self.cfg.data.views
        titles = [f"global {n + 1}" for n in range(views.wide)] + [f"local {n + 1}" for n in range(views.narrow)]
        self.save_pictures(self.state.step, drawn, titles)

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        """Return one Result per figure."""
        own = {
            "split": self.split,
            "unit": "from 0, all features equal, to 1",
            "higher_is_better": True,
            "backbone": self.joint.encoder.name(),
            "pretrain": self.method,
            "checkpoint_sha256": checkpoints.sha256(self.folder.backbone),
        }
        return [
            Result.model_validate({**shared, **own, "metric": metric, "value": value})
            for metric, value in figures.items()
            if metric != "unreadable"
        ]

    def summary(self, written: list[Result]) -> str:
        return ", ".join(f"{result.metric} {result.value:.3f}" for result in written)


def load_start(joint: Joint, reference: str, statistics: Statistics) -> None:
    """Fill the model from a step_*.pt of joint embedding, or its encoder from another pretraining.

    If the images of the new run have another size, the positions are adapted.

    Raises:
        ValueError: names what does not fit: tensors, fields of the encoder, or the statistics of the images.
    """
    from mae_transfer.tasks.backbones import load_same

    loaded = load_same(joint.encoder, reference, statistics, where="model.encoder")
    prefix, path = checkpoints.split(reference, checkpoints.PREFIXES)
    if not prefix and path.endswith(".pt"):
        weights = checkpoints.evaluated(checkpoint.load(Path(path)))
        if any(name.startswith("head.") for name in weights):
            own, stored = (
                {name: tensor.shape for name, tensor in part.items() if not name.startswith("encoder.")}
                for part in (joint.state_dict(), weights)
            )
            if own != stored:
                raise ValueError(
                    f"start = {path!r} has the heads of another objective: set objective as there, or start from the "
                    "backbone.safetensors of that run"
                )
            checkpoints.fill(joint, weights, where=path)
            return
    checkpoints.load_strict(joint.encoder, loaded.state_dict(), where=reference)


def width_of(encoder: Backbone) -> int:
    """Return the width of the features of an image."""
    return encoder.cls_dim or encoder.dim


def check_encodes(encoder: Backbone, cfg: JointConfig) -> None:
    """Encode a black image of each size; ValueError names what the encoder of a config cannot do."""
    views, name = cfg.data.views, f"model.timm = {cfg.model.timm!r}"
    if cfg.objective.compares is not None and width_of(encoder) != encoder.dim:
        raise ValueError(
            f"{name} has features of width {encoder.dim} for patches and {width_of(encoder)} for images, but "
            f"objective.patches = {cfg.objective.compares!r} needs one width: set objective.patches=None, or use "
            "another model"
        )
    encoder.eval()
    for size in (cfg.data.size, views.narrow_size) if views.narrow else (cfg.data.size,):
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, cfg.model.encoder.channels, *sides(size)), norm=True)
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{name} cannot encode images of {size} px (data.size = {cfg.data.size}, data.views.narrow_size = "
                f"{views.narrow_size}): {reason}; change the size, or use another model"
            ) from None
    encoder.train()


def spread(mean: Tensor) -> Tensor:
    """Return the standard deviation of unit vectors, all dimensions together, given their mean (D,).

    It is 0 if they are equal, and 1 if their mean is 0.
    """
    return (1 - mean.square().sum()).clamp(min=0).sqrt()
