"""What training runs and evaluations have in common: data, starting weights, the record, and the fields of results."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from mae_transfer.arithmetic import Matmul
from mae_transfer.data import Samples, Unreadable
from mae_transfer.data.sources import Fingerprint, fingerprint
from mae_transfer.engine.dist import Dist, peak_memory_gib, session
from mae_transfer.engine.state import Precision, check_precision
from mae_transfer.models.attention import CPU_HAS_AMX
from mae_transfer.record import NAMED_CLASSES, DataSet, Record, Seconds, Sitting, Weights, now, software
from mae_transfer.results import Result, device_name
from mae_transfer.tasks.config import RunnableConfig
from mae_transfer.tasks.sweep import sweep_over, workers_of

C = TypeVar("C", bound=RunnableConfig)
HOLDOUT = "holdout/"  # prefix of figures that are measured on the held-out images


class RecordedRun(ABC, Generic[C]):
    """One run: a training, or an evaluation without training."""

    name: str
    """Name of the task in records and results."""
    uses_labels: ClassVar[bool] = True
    """Whether the run learns from labels of the images."""
    sources: Mapping[str, Any]
    """Data sets by part ("train", "val"). A resumed run must find the same files."""
    inputs: Mapping[str, Weights]
    """The weights that the run starts from, by role."""

    def __init__(self, cfg: C, dist: Dist) -> None:
        check_precision(cfg.precision, dist.device)
        self.cfg, self.dist = cfg, dist
        self.sources, self.inputs = {}, {}

    @property
    @abstractmethod
    def method(self) -> str:
        """What a table calls the run: "MAE norm_pixel, random 75%, 800 ep", "finetune", "upernet"."""

    @staticmethod
    def session(cfg: RunnableConfig) -> AbstractContextManager[Dist]:
        """Return the session of the processes that run the config."""
        return session(cfg.run.device, matmul=matmul_of(cfg), timeout_minutes=cfg.run.timeout_minutes)

    @property
    def dataset(self) -> str:
        """What a table calls the data set."""
        return self.cfg.data.name

    @abstractmethod
    def open(self) -> None:
        """Open the data sets and weights; set `sources` and `inputs`. ValueError if they do not fit together."""

    @abstractmethod
    def title(self) -> str:
        """Return the first lines of the log: what is trained or evaluated on what."""

    def machine(self, precision: Precision) -> str:
        """Return precision and device in words, with a remedy if the device is slow in this precision."""
        slow = precision == "bfloat16" and self.dist.device.type == "cpu" and not CPU_HAS_AMX
        hint = " (which has no matrix units for it: --set precision=float32 is faster here)" if slow else ""
        return f"{precision} on {device_name(self.dist.device)}{hint}"

    def described(self) -> dict[str, Any]:
        """Return the fields of a Result that the task knows beside those of `shared`: backbone, unit ..."""
        return {}

    def results(self, figures: Mapping[str, float], shared: dict[str, Any]) -> list[Result]:
        """Return one Result per figure that is defined, in percent; single classes ("IoU[sky]") are left out.

        Args:
            figures: in [0, 1] by metric, those of held-out images as "holdout/METRIC"; and "unreadable", a count.
            shared: the fields that all numbers of the run have in common.
        """
        shared = shared | {"unreadable": figures.get("unreadable", shared["unreadable"])}
        return [
            Result.model_validate(
                shared
                | {
                    "split": "holdout" if name.startswith(HOLDOUT) else "val",
                    "metric": name.removeprefix(HOLDOUT),
                    "value": 100 * value,
                }
            )
            for name, value in figures.items()
            if not name.endswith("unreadable") and "[" not in name and not math.isnan(value)
        ]

    def sweep(
        self, samples: Samples[Any, Any], policy: Unreadable, *, batch: int | None = None, alone: bool = False
    ) -> Iterator[Any]:
        """Yield this rank's part of an evaluation set on the device, every image once.

        Args:
            batch: images per batch; None: run.evaluation_batch.
            alone: only this rank makes the pass, and takes all images.
        """
        run = self.cfg.run
        dist = Dist(self.dist.device) if alone else self.dist
        size = run.evaluation_batch if batch is None else batch
        return sweep_over(samples, dist, batch=size, workers=workers_of(run), unreadable=policy)

    def sitting(self, *, first_step: int, device_batch: int, seconds: Seconds | None = None) -> Sitting:
        """Return the record of this start of the process. Every rank calls it."""
        devices = [device_name(self.dist.device)] * self.dist.world
        if self.dist.world > 1:
            torch.distributed.all_gather_object(devices, devices[0], group=self.dist.side)
        return Sitting(
            started_at=now(),
            first_step=first_step,
            software=software(),
            devices=tuple(devices),
            device_batch=device_batch,
            seconds=seconds or Seconds(),
        )

    def record(self, run: str, prints: Mapping[str, Fingerprint], *, epochs: float, batch: int) -> Record:
        """Return the record of this run, without its sittings.

        Args:
            run: name of the work dir.
            prints: fingerprints of the data sets, by part.
            epochs: 0 for an evaluation.
            batch: images per optimizer step.
        """
        cfg = self.cfg
        return Record(
            run=run,
            task=self.name,
            method=self.method,
            scale=cfg.scale,
            config_digest=cfg.digest(),
            recipe_digest=cfg.recipe_digest(),
            recipe=cfg.recipe(),
            seed=cfg.seed,
            epochs=epochs,
            batch=batch,
            data={part: data_set(self.dataset, self.sources[part], print_) for part, print_ in prints.items()},
            inputs=dict(self.inputs),
            labels=self.uses_labels,
        )

    def shared(
        self, record: Record, model: nn.Module, *, steps: int, images_seen: int, seconds: Seconds, images_per_s: float
    ) -> dict[str, Any]:
        """Return the fields of a Result that all numbers of the run have in common."""
        cfg, device = self.cfg, self.dist.device
        return {
            "run": record.run,
            "task": self.name,
            "protocol": self.method,
            "dataset": self.dataset,
            "seed": cfg.seed,
            "params": sum(p.numel() for p in model.parameters()),
            "epochs": record.epochs,
            "steps": steps,
            "images_seen": images_seen,
            "global_batch": record.batch,
            "world_size": self.dist.world,
            "precision": cfg.precision,
            "matmul": matmul_of(cfg),
            "wall_s": seconds.train + seconds.evaluate + seconds.save,
            "images_per_s": images_per_s,
            "peak_mem_gib": peak_memory_gib(device),
            "unreadable": 0,
            "device": device_name(device),
            "engine": "mae_transfer",
            "scale": cfg.scale,
            "config_digest": record.config_digest,
            "recipe_digest": record.recipe_digest,
            "record": record,
            **self.described(),
        }

    def evaluated(
        self, model: nn.Module, run: str, seconds: float, *, batch: int, steps: int = 0, images_seen: int | None = None
    ) -> dict[str, Any]:
        """Return the shared fields of an evaluation's results (rank 0; empty elsewhere). Every rank calls it.

        Args:
            run: name of the work dir.
            seconds: duration of the evaluation.
            batch: images per optimizer step of the training, or per forward pass.
            steps: optimizer steps of the evaluated weights.
            images_seen: images that they were trained on; None: the images of the evaluation.
        """
        took = Seconds(evaluate=seconds)
        sitting = self.sitting(first_step=0, device_batch=self.cfg.run.evaluation_batch, seconds=took)
        prints = {part: fingerprint(source) for part, source in self.sources.items()} if self.dist.is_main else {}
        if self.dist.world > 1:  # the fingerprints of millions of files take longer than a device waits
            torch.distributed.barrier(group=self.dist.side)
        if not self.dist.is_main:
            return {}
        record = self.record(run, prints, epochs=0.0, batch=batch).model_copy(update={"sittings": (sitting,)})
        images = sum(map(len, self.sources.values()))
        seen = images if images_seen is None else images_seen
        speed = images / seconds
        return self.shared(record, model, steps=steps, images_seen=seen, seconds=took, images_per_s=speed)


def matmul_of(cfg: RunnableConfig) -> Matmul:
    """Return the arithmetic of float32 matrix products on CUDA. Evaluations without training have no choice."""
    return getattr(cfg, "matmul", "ieee")


def data_set(name: str, source: Any, print_: Fingerprint) -> DataSet:
    """Return the record's entry of a data set, given the source and the fingerprint of the whole set."""
    classes = tuple(source.classes)
    digest = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape")).hexdigest()[:16] if classes else None
    count = getattr(source, "object_count", None)
    # a folder's name may contain lone surrogates; JSON may not
    names = tuple(name.encode("utf-8", "replace").decode("utf-8") for name in classes)
    return DataSet(
        name=name,
        kind=print_.kind,
        images=len(source),
        whole=print_.samples,
        classes=len(classes),
        class_names=names if len(classes) <= NAMED_CLASSES else (),
        class_digest=digest,
        objects=count() if count is not None else None,
        files=print_.files,
        bytes=print_.bytes,
        fingerprint=print_.digest,
    )
