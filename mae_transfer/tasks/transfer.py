"""Tasks that start from a backbone: what their results say of it, and how trained weights are evaluated alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import nn

from mae_transfer import checkpoints, results
from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import load_saved
from mae_transfer.engine import checkpoint
from mae_transfer.engine.state import LoopConfig, Precision
from mae_transfer.models.attention import set_position_bias
from mae_transfer.record import Record, Weights
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import DEBUG_ENCODER, BackboneConfig, LoadedBackbone, flops_of, open_backbone
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.task import Task
from mae_transfer.tasks.workdir import WorkDir, run_of


class TransferConfig(TrainConfig):
    """Options of every task that starts from a backbone."""

    debug: ClassVar[dict[str, Any]] = {
        **TrainConfig.debug,
        "data.train": {"name": "shapes", "length": 8, "size": 32},
        "data.val": {"name": "shapes", "length": 2, "size": 32, "seed": 1},
        "data.size": 32,
        "backbone": {"encoder": DEBUG_ENCODER},
    }

    if TYPE_CHECKING:
        backbone: BackboneConfig  # each task documents its own


C = TypeVar("C", bound=TransferConfig)


class Trained(NamedTuple):
    """A model to evaluate, with its origin."""

    model: nn.Module
    weights: Weights  # its origin, for the record
    steps: int = 0  # optimizer steps of the training state; 0 for released weights
    images_seen: int = 0


class Transfer(Task[C]):
    """A task that starts from a backbone."""

    trained_by: ClassVar[type[TransferConfig] | None] = None
    """Class of the config of the runs whose states are evaluated; None: that of this task's config."""
    backbone: LoadedBackbone
    """The backbone, from `open` on."""

    @property
    def evaluated_in(self) -> Precision:
        """The precision of an evaluation."""
        return self.cfg.precision

    def load_backbone(self, changes: Mapping[str, Any]) -> None:
        """Open the backbone with these changes of its architecture, "image_size" among them."""
        cfg = self.cfg
        self.backbone = open_backbone(cfg.backbone, changes, statistics=cfg.statistics, seed=cfg.seed)
        self.inputs = {"backbone": self.backbone.origin}

    def open_for_evaluation(self) -> None:
        """Open the data and the backbone as far as an evaluation needs them."""
        self.open()

    def examine(self) -> None:
        """Look at the data; ValueError names what an evaluation could not use."""

    def check_classes(self, extra: Mapping[str, Any], where: str) -> None:
        """Raise ValueError if a training state learned other classes than those of the data."""

    def check_micro_batch(self, loop: LoopConfig, least: int, *, of: str) -> None:
        """Raise ValueError if a forward pass has fewer images than the batch norms `of` some layers need."""
        micro = self.micro_batch(loop)
        if micro < least and not self.dist.sync_bn:
            raise ValueError(
                f"images per device and forward pass: {micro}, but the {of}' batch norms need {least}: raise "
                "run.device_batch, or batch"
            )

    def measure(self, model: nn.Module, folder: WorkDir | None) -> dict[str, float]:
        """Return all figures of the evaluation sets, including those of single classes.

        folder: where predictions are saved.
        """
        return self.evaluate(model, 0)

    def reduce(self, measured: Mapping[str, float]) -> Mapping[str, float]:
        """Return the figures to report, of all that were measured."""
        return measured

    def flops(self, model: nn.Module, *, backward: bool) -> int | None:
        """Return the floating-point operations for one image; None if they are not counted."""
        size = self.backbone.image_size
        return flops_of(model, size, backward=backward) if size else None

    def training_flops(self) -> int | None:
        return self.flops(self.state.bare, backward=True)

    def report(self, figures: Mapping[str, float], written: list[Result]) -> str:
        """Return the text that an evaluation prints."""
        return f"{self.backbone.name}, {self.method}: {self.summary(written)}"

    def title(self) -> str:
        backbone, images = self.backbone, len(self.sources["train"])
        return (
            f"{self.method} of {backbone.name} (pretraining: {backbone.pretrain}; {self.cfg.scale} scale), {images} "
            f"training images\nnormalised with {backbone.normalization}"
        )

    def described(self) -> dict[str, Any]:
        return self.backbone.described()

    def shared_now(self) -> dict[str, Any]:
        return super().shared_now() | {"flops_per_image": self.flops(self.state.bare, backward=True)}

    @classmethod
    def evaluate_checkpoint(cls, cfg: C, reference: str, work_dir: Path | None) -> list[Result]:
        """Evaluate trained weights on the validation set; print the numbers, and append them to the work dir's results.

        Pictures are drawn into the work dir, or into that of the run that the state belongs to.

        Args:
            reference: a training state of this config (step_*.pt); for classification also mae-finetuned:PATH.
        Raises:
            ValueError: the state does not fit the config's model, or it learned other classes.
        """
        with cls.session(cfg) as dist, torch.no_grad():
            start = time.perf_counter()
            task = cls(cls.as_trained(cfg, reference), dist)
            trained = task.load_trained(reference)
            trained.model.to(dist.device).eval()
            set_position_bias(trained.model, cfg.run.position_bias, device=dist.device, compiled=False)
            if dist.is_main:
                print(f"evaluation of {reference}: {task.machine(task.evaluated_in)}", flush=True)
            identity = {"config_digest": cfg.digest(), "recipe_digest": cfg.recipe_digest()}
            written = [one.model_copy(update=identity) for one in task.measure_trained(trained, work_dir, start=start)]
            if dist.is_main:
                if work_dir is not None:
                    written = results.append(WorkDir(work_dir).results, written)
                if (root := work_dir or run_of(reference)) is not None:
                    task.pictures(trained.model, WorkDir(root))
            return written

    @classmethod
    def as_trained(cls, cfg: C, reference: str) -> C:
        """Return the config with backbone and statistics of the run that a training state belongs to.

        A backbone.reference of the config takes precedence over the run's. The run's backbone takes precedence over an
        encoder in the config: the run may have been started with --backbone.

        Raises:
            ValueError: the config sets other statistics than the run used.
        """
        root = run_of(reference) if is_state(reference) else None
        if root is None:
            return cfg
        trained = load_saved(WorkDir(root).config, cls.trained_by or type(cfg))
        own, used = cfg.statistics, trained.statistics
        if own is not None and (used is None or not own.matches(used)):
            raise ValueError(
                f"{reference} was trained with {used.text() if used else 'the mean and std of its backbone'}, and "
                f"the config sets {own.text()}: leave mean and std out"
            )
        backbone = trained.backbone if cfg.backbone.reference is None else cfg.backbone
        return cfg.model_copy(update={"backbone": backbone, "mean": trained.mean, "std": trained.std})

    def load_trained(self, reference: str) -> Trained:
        """Open what an evaluation needs and return the model with the weights of a training state."""
        self.open_for_evaluation()
        payload = checkpoint.load(Path(reference))
        self.check_classes(payload["extra"], reference)
        self.examine()
        model = self.model()
        load_strict(model, checkpoints.evaluated(payload), where=reference)
        record = Record.model_validate_json(payload["record"]) if payload.get("record") else None
        self.sources = {part: source for part, source in self.sources.items() if part != "train"}
        if record is not None:  # the state was trained from its backbone, whatever the config names
            self.inputs = {**self.inputs, **{role: w for role, w in record.inputs.items() if role == "backbone"}}
        weights = Weights(
            kind="run",
            name=record.method if record else Path(reference).name,
            sha256=checkpoints.sha256(Path(reference)),
            record=record,
        )
        return Trained(model, weights, payload["step"], payload["images_seen"])

    def measure_trained(self, trained: Trained, work_dir: Path | None, *, start: float) -> list[Result]:
        """Measure and print the numbers; return the results (rank 0). Every rank calls it.

        Steps and images seen are those of the training state, so that an early state cannot pass for a finished run.

        start: reading of the clock when the evaluation began.
        """
        cfg, model = self.cfg, trained.model
        figures = self.measure(model, WorkDir(work_dir) if work_dir else None)
        self.inputs = {**self.inputs, "checkpoint": trained.weights}
        name, seconds = work_dir.name if work_dir else "eval", time.perf_counter() - start
        shared = self.evaluated(
            model, name, seconds, batch=cfg.batch, steps=trained.steps, images_seen=trained.images_seen
        )
        if not self.dist.is_main:
            return []
        shared |= {
            "precision": self.evaluated_in,
            "checkpoint_sha256": trained.weights.sha256,
            "flops_per_image": self.flops(model, backward=False),
        }
        written = self.results(self.reduce(figures), shared)
        print(self.report(figures, written), flush=True)
        return written


def classes_digest(classes: tuple[str, ...]) -> str:
    """Return the number of classes and a short digest of their names in order."""
    return f"{len(classes)} classes {hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:12]}"


def is_state(reference: str) -> bool:
    """Return whether a reference is a training state of this package."""
    return reference.endswith(".pt") and Path(reference).is_file()
