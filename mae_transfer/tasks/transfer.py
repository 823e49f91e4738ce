"""Tasks that start from a backbone: what their results say of it, and how a trained state is evaluated alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import nn

from mae_transfer import checkpoints, results
from mae_transfer.checkpoints.files import load_strict
from mae_transfer.config import Schema
from mae_transfer.engine import checkpoint
from mae_transfer.engine.dist import session
from mae_transfer.engine.state import Precision
from mae_transfer.record import Weights
from mae_transfer.results import Result
from mae_transfer.tasks.backbones import BackboneConfig, Chosen, backbone_of, trained_statistics
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.provenance import evaluation_record, name_of, of_checkpoint
from mae_transfer.tasks.task import Task, summary
from mae_transfer.tasks.workdir import WorkDir, run_of


class TransferConfig(TrainConfig):
    """Options of every task that starts from a backbone."""

    if TYPE_CHECKING:
        backbone: BackboneConfig  # each task documents its own


C = TypeVar("C", bound=TransferConfig)
SET_NAMES = {"train": "training", "val": "validation", "holdout": "holdout"}
"""Parts of a data set in messages."""


class Trained(NamedTuple):
    """A model to evaluate, with its origin."""

    model: nn.Module
    sha256: str | None  # of the file of weights
    weights: Weights  # its origin, for the record
    steps: int = 0  # optimizer steps of the training state; 0 for released weights
    images_seen: int = 0


class Transfer(Task[C]):
    """A task that starts from a backbone."""

    trained_by: ClassVar[type[Schema] | None] = None
    """Class of the config of the runs whose states are evaluated; None: that of this task's config."""
    chosen: Chosen
    """The backbone, from `open` on."""

    @property
    def evaluated_in(self) -> Precision:
        """The precision of an evaluation."""
        return self.cfg.precision

    def tokens(self) -> int | None:
        """Return the tokens that the backbone makes of an image; None if they are not known."""
        return None

    def open_for_evaluation(self) -> None:
        """Open the data and the backbone as far as an evaluation needs them."""
        self.open()

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
        return None

    def results(self, figures: Mapping[str, float], shared: Mapping[str, Any]) -> list[Result]:
        """Return one Result per figure of the validation set, in percent."""
        return [
            Result.model_validate({**shared, "metric": metric, "value": 100 * value})
            for metric, value in figures.items()
            if metric != "unreadable"
        ]

    def report(self, figures: Mapping[str, float], written: list[Result]) -> str:
        """Return the text that an evaluation prints."""
        return f"{self.chosen.name}, {self.method}: {summary(written)}"

    def title(self) -> str:
        """Return what is trained on what."""
        chosen, images = self.chosen, len(self.sources["train"])
        return (
            f"{self.method} of {chosen.name} (pretraining: {chosen.pretrain}; {self.cfg.scale} scale), {images} "
            f"training images\nnormalised with {chosen.normalization}"
        )

    @classmethod
    def evaluate_checkpoint(cls, cfg: C, reference: str, work_dir: Path | None) -> list[Result]:
        """Evaluate trained weights on the validation set; print the numbers, and append them to the work dir's results.

        Pictures are drawn into the work dir, or into that of the run that the state belongs to.

        Args:
            reference: a training state of this config (step_*.pt); for classification also mae-finetuned:PATH.
        Raises:
            ValueError: the state does not fit the config's model, or it learned other classes.
        """
        with session(cfg.run.device, matmul=cfg.matmul, timeout_minutes=cfg.run.timeout_minutes) as dist:
            start = time.perf_counter()
            task = cls(cls.as_trained(cfg, reference), dist)
            trained = task.load_trained(reference)
            model = trained.model.to(dist.device).eval()
            folder = WorkDir(work_dir) if work_dir else None
            with torch.no_grad():
                figures = task.measure(model, folder)
            shared = task.evaluation(trained, work_dir, seconds=time.perf_counter() - start)
            shared |= {"config_digest": cfg.digest(), "recipe_digest": cfg.recipe_digest()}
            written = task.results(task.reduce(figures), shared)
            if dist.is_main:
                print(task.report(figures, written), flush=True)
                if folder is not None:
                    written = results.append(folder.results, written)
                if (root := work_dir or run_of(reference)) is not None:
                    task.pictures(model, WorkDir(root))
            return written

    @classmethod
    def as_trained(cls, cfg: C, reference: str) -> C:
        """Return the config with the backbone and the statistics of the run that a training state belongs to."""
        if not is_state(reference):
            return cfg
        schema = cls.trained_by or type(cfg)
        backbone = backbone_of(cfg.backbone, schema, reference)
        statistics = trained_statistics(cfg.statistics, schema, reference)
        mean, std = statistics if statistics is not None else (None, None)
        return cfg.model_copy(update={"backbone": backbone, "mean": mean, "std": std})

    def load_trained(self, reference: str) -> Trained:
        """Open what an evaluation needs and return the model with the weights of a training state."""
        self.open_for_evaluation()
        payload = checkpoint.load(Path(reference))
        self.check_classes(payload["extra"], reference)
        self.examine()
        model = self.model()
        load_strict(model, payload.get("ema", payload["model"]), where=reference)
        digest = checkpoints.sha256(Path(reference))
        origin = of_checkpoint(reference, payload, digest)
        return Trained(model, digest, origin, payload["step"], payload["images_seen"])

    def examine(self) -> None:
        """Look at the data; ValueError names what an evaluation could not use."""

    def check_classes(self, extra: Mapping[str, Any], where: str) -> None:
        """Raise ValueError if a training state learned other classes than those of the data."""

    def evaluation(self, trained: Trained, work_dir: Path | None, *, seconds: float) -> dict[str, Any]:
        """Return the fields that all numbers of an evaluation have in common. Every rank calls it.

        Steps and images seen are those of the training state, so that an early state cannot pass for a finished run.
        """
        sources = {part: source for part, source in self.sources.items() if part != "train"}
        inputs = {**self.inputs, "checkpoint": trained.weights}
        if trained.weights.record is not None:  # the state was trained from these, whatever the config names
            inputs |= {role: w for role, w in trained.weights.record.inputs.items() if role == "backbone"}
        about = self.about()._replace(inputs=inputs)
        record = evaluation_record(
            self.cfg, about, sources, self.dist, run=name_of(work_dir), batch=self.cfg.batch, seconds=seconds
        )
        images = sum(map(len, sources.values()))
        return self.described() | {
            "run": name_of(work_dir),
            "params": sum(p.numel() for p in trained.model.parameters()),
            "epochs": 0.0,
            "steps": trained.steps,
            "images_seen": trained.images_seen,
            "precision": self.evaluated_in,
            "wall_s": seconds,
            "images_per_s": images / seconds,
            "checkpoint_sha256": trained.sha256,
            "flops_per_image": self.flops(trained.model, backward=False),
            "record": record,
        }

    def shared(self) -> dict[str, Any]:
        """Return the fields that all numbers of the finished run have in common."""
        return super().shared() | {"flops_per_image": self.flops(self.state.bare, backward=True)}

    def described(self) -> dict[str, Any]:
        """Return the fields of a Result that come from config, machine and backbone."""
        chosen = self.chosen
        return super().described() | {
            "split": "val",
            "unit": "%",
            "higher_is_better": True,
            "backbone": chosen.name,
            "pretrain": chosen.pretrain,
            "checkpoint_sha256": chosen.sha256,
            "normalization": chosen.normalization,
            "tokens_per_image": self.tokens(),
        }


def is_state(reference: str) -> bool:
    """Return whether a reference is a training state of this suite."""
    return reference.endswith(".pt") and Path(reference).is_file()
