"""Image classification with a pretrained backbone: fine-tuning, partial fine-tuning, probes, or from scratch.

tasks/protocols.py has the protocols. A probe or an epoch is selected on images held out of the training set. The
validation set is only reported on.

Legend: B batch, C classes, K the protocol's scores (probes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from mae_transfer.checkpoints.files import load_strict
from mae_transfer.data import (
    CentreCrop,
    Crops,
    LabelledDataConfig,
    RandAugmentCrop,
    Samples,
    Source,
    Subset,
    evaluation_views,
    open_labelled,
    split,
    training_crops,
)
from mae_transfer.data.rand_augment import finish_crops
from mae_transfer.engine.dist import Dist
from mae_transfer.engine.loop import Step, StepFn
from mae_transfer.engine.optim import Group
from mae_transfer.engine.state import LoopConfig, autocast
from mae_transfer.interfaces import MEAN_PER_CLASS, Batch, FeatureBatch
from mae_transfer.metrics.accuracy import accuracies, hits_by_class, top_ks
from mae_transfer.models.heads import Pooled
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import BackboneConfig
from mae_transfer.tasks.best import Select, Selection
from mae_transfer.tasks.protocols import AnyProtocol, ClassifyProtocol, Feed, Finetune, inputs
from mae_transfer.tasks.sweep import EVALUATION_SEED, readable, sum_of_ranks, unread
from mae_transfer.tasks.transfer import Trained, Transfer, TransferConfig, classes_digest, is_state
from mae_transfer.tasks.workdir import WorkDir


class ClassifierConfig(TransferConfig):
    """A classifier: its data, backbone and protocol."""

    keeps_features: ClassVar[bool] = True
    debug: ClassVar[dict[str, Any]] = {
        **TransferConfig.debug,
        "data.train": {"name": "shapes", "length": 19, "size": 32},
        "data.val": {"name": "shapes", "length": 4, "size": 32, "seed": 1},
        "data.label_fraction": 1.0,
        "data.holdout_fraction": 0.5,
        "protocol.queries?": 8,
        "protocol.head_width?": 8,
    }

    data: LabelledDataConfig = LabelledDataConfig()
    """Images and their augmentation."""
    backbone: BackboneConfig = BackboneConfig()
    """The backbone to transfer. --backbone sets its reference."""
    protocol: AnyProtocol = Finetune()
    """What is trained on the backbone, and how."""
    select: Select = "last"
    """The evaluation to report: the last one, or the best one on the held-out images. The best state is saved as
    checkpoints/best.pt; evaluate_epochs sets how often the model is evaluated."""

    @model_validator(mode="after")
    def _can_select(self) -> Self:
        kinds = self.protocol.kinds
        selects = self.select == "best" or max(map(len, kinds.values())) > 1
        if selects and not self.data.holdout_fraction:
            raise ValueError(
                "data.holdout_fraction = 0, but something is to be selected (a probe, or the best epoch): hold out a "
                "part of the training images, e.g. 0.02; a selection on the reported images would bias the result"
            )
        if self.select == "best" and len(kinds) > 1:
            raise ValueError(
                f"select = 'best' with protocol.heads = {tuple(kinds)}: their best epochs differ, and a run keeps one "
                "best state; set select='last', or give one head"
            )
        return self

    @model_validator(mode="after")
    def _device_batch_changes_nothing(self) -> Self:
        if self.run.device_batch == "auto" and self.protocol.mixes:
            raise ValueError(
                "run.device_batch='auto': mixup and cutmix draw one weight per device batch, so the result would "
                "depend on this machine's memory: set run.device_batch to a number, or protocol.mixup=0 and "
                "protocol.cutmix=0"
            )
        return self

    def title(self) -> str:
        """Return the name of the method: "finetune", "partial-4", "linear, efficient", "linear-1%-labels"."""
        return self.named(self.protocol.title)

    def titles(self) -> tuple[str, ...]:
        """Return what a table calls the protocols of the results: "linear" and "efficient" of a row of both."""
        return tuple(map(self.named, self.protocol.kinds))

    def named(self, title: str) -> str:
        """Return the title with the share of labels."""
        share = "" if self.data.label_fraction == 1 else f"-{100 * self.data.label_fraction:g}%-labels"
        return title + share


class ClassifyConfig(ClassifierConfig):
    """A classification run."""

    task: Literal["classify"] = "classify"
    """Which task the file configures."""

    def augments_on_device(self) -> bool:
        return isinstance(self.data.augmentation, RandAugmentCrop)

    def decodes_on_device(self) -> bool:
        return self.data.leaves_one_crop(self.run.augment_on)


class Classify(Transfer[ClassifierConfig]):
    """A classification run."""

    name = "classify"
    train_set: Source
    splits: dict[str, Source]
    """The sets to evaluate: "val", and "holdout" if images are held out of the training set."""
    classes: int

    def __init__(self, cfg: ClassifierConfig, dist: Dist) -> None:
        super().__init__(cfg, dist)
        self.protocol: ClassifyProtocol = cfg.protocol
        if self.protocol.mixes:
            self.depends_on_device_batch = ("mixup",)
        self.step: StepFn | None = None
        self.opened: dict[tuple[str, float], tuple[np.ndarray, Source]] = {}
        """Kept features that were read, and the images that they are of, by set and view."""

    @property
    def method(self) -> str:
        return self.cfg.title()

    def open(self) -> None:
        self.open_data()
        self.open_weights()

    def open_data(self) -> None:
        """Open the data; ValueError if they do not fit the protocol."""
        split, val = open_labelled(self.cfg.data)
        self.train_set, self.classes = split.train, len(split.train.classes)
        self.splits = {"val": val} if split.held_out is None else {"holdout": split.held_out, "val": val}
        self.sources = {"train": split.train, **self.splits}

    def open_weights(self) -> None:
        """Open the backbone with the changes that the protocol asks for."""
        self.load_backbone({"image_size": self.cfg.data.size, **self.protocol.changes()})

    def training_samples(self) -> Samples[Any, Any]:
        cfg = self.cfg
        if self.keeps and isinstance(cfg.data.augmentation, CentreCrop):
            return self.kept("train", self.train_set, cfg.data.augmentation.shorter_side, seed=cfg.seed)
        return training_crops(
            cfg.data, self.train_set, seed=cfg.seed, augment_on=cfg.run.augment_on, decode_on=self.decode_on
        )

    def evaluation_samples(self, name: str) -> Samples[Any, Any]:
        """Return the images of a split, or the features that are kept of them."""
        data, source = self.cfg.data, self.splits[name]
        if self.keeps:
            part = "val" if name == "val" else "train"
            return self.kept(part, source, data.shorter_side, seed=EVALUATION_SEED)
        view = evaluation_views(data, shorter_side=data.shorter_side)
        return Crops(source=source, augmentation=view, seed=EVALUATION_SEED)

    @property
    def keeps(self) -> bool:
        """Whether the run reads features from the folder run.features: they are all it needs, and no image changes."""
        run, still = self.cfg.run, isinstance(self.cfg.data.augmentation, CentreCrop)
        return run.features is not None and not run.estimate and still and self.protocol.reads != ()

    def kept(self, part: str, source: Source, shorter_side: float, *, seed: int) -> Samples[Any, Any]:
        """Return the features of images from the folder run.features. Every rank calls it.

        Held-out images are in the file of all training images, which other evaluations share.

        part: "train" or "val", the set that the images belong to.
        """
        from mae_transfer.tasks import features  # few runs need it

        cfg, data, whole = self.cfg, self.cfg.data, source
        blocks, how = max((max(1, Pooled.of(how).blocks), how) for how in self.protocol.reads)
        if (part, shorter_side) not in self.opened:
            if part == "train" and data.holdout_fraction:
                assert isinstance(source, Subset), "a split selects"
                whole = split(source.source, label_fraction=data.label_fraction).train
            self.backbone.model.to(self.dist.device).eval()
            one = features.labelled_pass(cfg, data, self.backbone, whole, part, self.dist, shorter_side=shorter_side)
            self.opened[part, shorter_side] = features.pooled_features(one, how, unreadable=data.unreadable()), whole
        rows, whole = self.opened[part, shorter_side]
        return features.KeptFeatures(source=features.KeptRows(rows, source, whole), blocks=blocks, seed=seed)

    def training_flops(self) -> int | None:
        return None if self.keeps else super().training_flops()

    def model(self) -> nn.Module:
        return self.protocol.model(self.backbone.model, self.classes)

    def groups(self, model: nn.Module) -> list[Group]:
        return self.protocol.groups(model, self.cfg.optim)

    def prepare(self, loop: LoopConfig) -> None:
        """Make the protocol's training step for this micro-batch."""
        self.check_micro_batch(loop, self.protocol.least, of="probes")
        if self.cfg.run.augment_on == "device" and self.dist.device.type == "mps":
            raise ValueError("run.augment_on = 'device' computes in float64, which mps has not: remove it")
        micro = self.micro_batch(loop)
        self.step = self.protocol.step(Feed(self.backbone.statistics, self.classes, micro, self.dist.device))

    def loss(self, model: nn.Module, batch: Batch | FeatureBatch, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.step is not None, "prepare() makes the step"
        return self.step(model, finish_crops(batch) if isinstance(batch, Batch) else batch, at)

    def digest(self) -> str:
        return classes_digest(self.splits["val"].classes)

    def extra(self) -> dict[str, Any]:
        return {"history": {}}

    def selection(self) -> Selection | None:
        """Select the epoch with the best top-1 on the held-out images."""
        return Selection("holdout_top1") if self.cfg.select == "best" else None

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure every split and keep the figures; return those of the scores that are best on the held-out images."""
        measured = self.measure(model, None)
        self.state.extra["history"][str(step)] = measured
        return self.choose({str(step): measured})

    def measure(self, model: nn.Module, folder: WorkDir | None) -> dict[str, float]:
        """Return the accuracy on each split: "val_top1", or "val_top1_cls_x1" for one of several scores.

        Every image counts once. Unreadable ones are left out and counted as "val_unreadable".
        """
        cfg, row = self.cfg, self.protocol.row
        figures: dict[str, float] = {}
        for name, source in self.splits.items():
            counts = torch.zeros(1 + len(top_ks(self.classes)), len(row), self.classes, dtype=torch.int64)
            counts = counts.to(self.dist.device)
            policy = cfg.data.unreadable()
            for batch in self.sweep(self.evaluation_samples(name), policy):
                with autocast(cfg.precision, self.dist.device):
                    scores = model(inputs(batch, self.backbone.statistics))
                counts += hits_by_class(scores.view(len(row), *scores.shape[-2:]), batch.label)
            left_out = unread(policy, self.dist)
            readable(len(source), left_out, of=f"{name} set")
            for metric, values in accuracies(sum_of_ranks(counts, self.dist)).items():
                figures |= {key(name, metric, probe): value for probe, value in zip(row, values, strict=True)}
            figures |= {f"{name}_{what}": count for what, count in left_out.items()}
        return figures

    def final_figures(self) -> dict[str, float]:
        return self.choose(self.final_history())

    def final_history(self) -> Mapping[str, Mapping[str, float]]:
        """Return the evaluations among which the reported one is selected: all, or the last."""
        history, last = self.state.extra["history"], str(self.state.step)
        return history if self.cfg.select == "best" else {last: history[last]}

    def title(self) -> str:
        cfg, backbone = self.cfg, self.backbone
        splits = ", ".join(f"{len(source)} {name}" for name, source in self.splits.items())
        return (
            f"{self.method} of {backbone.name} (pretraining: {backbone.pretrain}; {cfg.scale} scale), {self.classes} "
            f"classes, {len(self.train_set)} training images, evaluated on {splits}\n"
            f"normalised with {backbone.normalization}"
        )

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        """Return one Result per figure ("val_top1", or "efficient/val_top1" of several kinds), in percent."""
        written = []
        for name, value in figures.items():
            kind, _, rest = name.rpartition("/")
            split, _, metric = rest.partition("_")
            own = {
                "split": split,
                "metric": metric,
                "value": 100 * value,
                "higher_is_better": metric.startswith("top") or metric == MEAN_PER_CLASS,
                "unreadable": figures.get(f"{split}_unreadable", 0),
            }
            if kind:
                own["protocol"] = self.cfg.named(kind)
            if metric != "unreadable":
                written.append(Result.model_validate(shared | own))
        return written

    def summary(self, written: list[Result]) -> str:
        several = len(self.protocol.kinds) > 1
        return ", ".join(f"{f'{r.protocol} ' if several else ''}{r.split} {r.metric} {r.value:.2f}%" for r in written)

    def closing_words(self, written: list[Result]) -> str:
        """Say which probes the held-out images selected, before the figures."""
        found = self.selected(self.final_history()) if len(self.protocol.row) > 1 else {}
        chosen = [
            f"selected {probe} of {len(self.protocol.kinds[kind])} {kind} probes" for kind, (_, probe) in found.items()
        ]
        return "\n".join([*chosen, super().closing_words(written)])

    def reduce(self, measured: Mapping[str, float]) -> dict[str, float]:
        return self.choose({"0": measured})

    def choose(self, history: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return the figures of the evaluation and score with the best top-1 on the held-out images: "val_top1" ...

        If the scores are of several kinds, each kind is selected on its own, and its name comes first:
        "efficient/val_top1". Ties go to the earlier step and to the first score of the row.

        history: step -> figures that were measured there.
        """
        figures: dict[str, float] = {}
        selected = self.selected(history)
        for kind, (step, probe) in selected.items():
            prefix = f"{kind}/" if len(selected) > 1 else ""
            figures |= {
                prefix + key(split, metric, ""): history[step][key(split, metric, probe)]
                for split in self.splits
                for metric in (*(f"top{k}" for k in top_ks(self.classes)), MEAN_PER_CLASS)
                if key(split, metric, probe) in history[step]  # earlier versions measured no mean per class
            }
        return figures | {name: count for name, count in history[step].items() if name.endswith("_unreadable")}

    def selected(self, history: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, str]]:
        """Return the step and the score of each kind that are best on the held-out images; see `choose`."""
        found = {}
        for kind, probes in self.protocol.kinds.items():
            candidates = [(step, probe) for step in sorted(history, key=int) for probe in probes]
            found[kind] = candidates[0]
            if len(candidates) > 1:
                assert "holdout" in self.splits, "nothing may be selected on the reported images"
                found[kind] = max(candidates, key=lambda c: history[c[0]][key("holdout", "top1", c[1])])
        return found

    def load_trained(self, reference: str) -> Trained:
        """Return the classifier that a reference names: a training state, or a released one with its head."""
        if is_state(reference):
            return super().load_trained(reference)
        self.cfg = self.cfg.model_copy(
            update={"backbone": self.cfg.backbone.model_copy(update={"reference": reference})}
        )
        self.open_for_evaluation()
        head = self.backbone.head
        if not head:
            raise ValueError(
                f"{reference} holds no classifier: give a step_*.pt of this package, or mae-finetuned:PATH"
            )
        model, self.inputs = self.model(), {}
        tensors = {f"backbone.{name}": tensor for name, tensor in self.backbone.model.state_dict().items()} | head
        load_strict(model, tensors, where=reference)
        self.sources = {part: source for part, source in self.sources.items() if part != "train"}
        return Trained(model, self.backbone.origin)


def key(split: str, metric: str, probe: str) -> str:
    """Return the name of a figure."""
    return f"{split}_{metric}" + (f"_{probe}" if probe else "")
