"""The life of a training run, from its config to its results. Each task is a subclass that says what is its own.

`launch` opens the data and the weights, then `fit` does the rest: checks, the work dir, model and optimizer, resuming,
the record, the training loop with its evaluations, and the results.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from mae_transfer import results
from mae_transfer.checkpoints import RECORD, sha256
from mae_transfer.config import load
from mae_transfer.data import Order, Samples, TrainKeys, Unreadable, batches
from mae_transfer.data.sources import Fingerprint, change, fingerprint
from mae_transfer.draw.curves import save_curves
from mae_transfer.engine.dist import Dist, assemble, peak_memory_gib, session
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Evaluate, Step, train
from mae_transfer.engine.optim import Group, param_groups, peak_lr
from mae_transfer.engine.schedule import lr_at
from mae_transfer.engine.state import LoopConfig, TrainState, micro_steps
from mae_transfer.engine.state import resume as resume_state
from mae_transfer.locks import locked
from mae_transfer.models.attention import CPU_HAS_AMX
from mae_transfer.record import Weights
from mae_transfer.results import Result
from mae_transfer.tasks import trial
from mae_transfer.tasks.best import Selection, keeping, take_best
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.provenance import About, data_set, start_sitting
from mae_transfer.tasks.sweep import sweep_over
from mae_transfer.tasks.workdir import WorkDir, open_work_dir, write_config

C = TypeVar("C", bound=TrainConfig)


class Task(ABC, Generic[C]):
    """One training run."""

    name: ClassVar[str]
    """Name of the task in records and results."""
    uses_labels: ClassVar[bool] = True
    """Whether training uses labels of the images."""
    depends_on_device_batch: tuple[str, ...] = ()
    """What makes the numbers depend on images per device, beside batch norm: "mixup", "mask loss"."""
    artifact: ClassVar[str | None] = None
    """Name of the file that a finished run leaves for others. `export` writes it."""

    sources: Mapping[str, Sized]
    """Data sets by part ("train", "val"). A resumed run must find the same files."""
    inputs: Mapping[str, Weights]
    """The weights that the run starts from, by role."""
    state: TrainState
    """Model, optimizer and progress; from `fit` on."""
    folder: WorkDir
    """The work dir; from `fit` on."""

    def __init__(self, cfg: C, dist: Dist) -> None:
        self.cfg, self.dist = cfg, dist
        self.sources, self.inputs = {}, {}

    # What each task says of itself.

    @property
    @abstractmethod
    def method(self) -> str:
        """What a table calls the run: "MAE norm_pixel, random 75%, 800 ep", "finetune", "upernet"."""

    @abstractmethod
    def open(self) -> None:
        """Open the data sets and weights; set `sources` and `inputs`. ValueError if they do not fit together."""

    @abstractmethod
    def training_samples(self) -> Samples[Any, Any]:
        """Return the augmented training set."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Build the model and load its starting weights."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, at: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch and further 0-d metrics. The loop does the rest of a step."""

    @abstractmethod
    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the figures of an evaluation. Every rank calls it."""

    @abstractmethod
    def results(self, figures: Mapping[str, float], shared: Mapping[str, Any]) -> list[Result]:
        """Return one Result per figure. `shared`: the fields that all numbers of the run have in common."""

    @abstractmethod
    def title(self) -> str:
        """Return the first lines of the log: what is trained on what."""

    # What a task may change.

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the optimizer's parameter groups."""
        return param_groups(model, weight_decay=self.cfg.optim.weight_decay)

    def prepare(self, loop: LoopConfig) -> None:
        """Get ready for a loop of this length and micro-batch. ValueError if the task cannot run so."""

    def selection(self) -> Selection | None:
        """Return how the best state is selected. None: the last state is reported."""
        return None

    def digest(self) -> str:
        """Return a digest of the files that the run refers to. A checkpoint with another digest is refused."""
        return ""

    def extra(self) -> dict[str, Any]:
        """Return what the task keeps in its checkpoints, plain types and tensors."""
        return {}

    def pictures(self, model: nn.Module, folder: WorkDir) -> None:
        """Draw what the final model makes of some images."""

    def export(self) -> None:
        """Write the artifact into the work dir."""

    def final_figures(self) -> Mapping[str, float]:
        """Return the figures to report when training is done: those of the last evaluation, or of the best state."""
        return self.state.metrics

    def closing_words(self, written: list[Result]) -> str:
        """Return the last lines of the log."""
        return f"done: {summary(written)}; in {self.folder.results}"

    # What is common.

    @classmethod
    def launch(cls, cfg: C, work_dir: Path, *, resume: bool = False) -> list[Result]:
        """Train, evaluate and write the results into `work_dir`; return them (rank 0, finished runs only).

        Raises:
            ValueError: config, data, weights and work dir do not fit together; before training starts.
            NonFiniteLoss: names the step and its samples.
        """
        with session(cfg.run.device, matmul=cfg.matmul, timeout_minutes=cfg.run.timeout_minutes) as dist:
            task = cls(cfg, dist)
            task.open()
            return task.fit(work_dir, resume=resume)

    def fit(self, work_dir: Path, *, resume: bool) -> list[Result]:
        """Train, evaluate and finish. A bad config stops it before anything is written."""
        loop = self.loop()
        self.lr_at(loop)(0)  # a warm-up longer than the run is an error now, not later
        self.prepare(loop)
        self.feed(loop).close()  # the batch can be split
        if self.cfg.run.estimate:
            return self.estimate(loop)
        open_work_dir(work_dir, self.cfg, resume=resume)
        self.state = self.build_state(loop)
        with sole_user(work_dir, self.dist):
            return self._fit(work_dir, loop, resume=resume)

    def _fit(self, work_dir: Path, loop: LoopConfig, *, resume: bool) -> list[Result]:
        cfg, state, main = self.cfg, self.state, self.dist.is_main
        self.folder = open_work_dir(work_dir, cfg, resume=resume)  # again, now that no other process can use it
        notices = resume_state(state, self.folder.checkpoints) if resume else []
        notices += self.check_data()
        if state.step == loop.steps and (done := self.finished()):
            return self.exported_again(done) if main else done
        if cfg.run.device_batch == "auto":
            loop, found = self.settle(loop, self.folder if resume else None)
            notices.append(found)
        self.prepare(loop)
        self.start_sitting(loop)
        cfg, selection = self.cfg, self.selection()
        check_up: Evaluate = self.evaluate
        if selection is not None:
            check_up = keeping(selection, state, self.folder, check_up)
        with Logger(
            work_dir, steps=loop.steps, resumed_at=state.step, main=main, progress=cfg.run.progress, wandb=cfg.run.wandb
        ) as log:
            if main:
                write_config(self.folder, cfg)
            for notice in [*notices, self.title(), self.plan(loop)]:
                log.say(notice)
            with closing(self.feed(loop, start=state.step)) as feed:
                train(
                    state,
                    feed,
                    self.loss,
                    loop,
                    lr_at=self.lr_at(loop),
                    log=log,
                    checkpoints=self.folder.checkpoints,
                    evaluate=check_up,
                )
            if selection is not None and not state.stopped:
                log.say(take_best(selection, state, self.folder))
            if state.stopped or not main:
                return []
            save_curves(self.folder.root / "log.jsonl", self.folder.root / "curves.png")
            return self.finish(log)

    def finish(self, log: Logger) -> list[Result]:
        """Write artifact, pictures and results (rank 0). With the results a run is finished."""
        if self.artifact is not None:
            self.export()
        model = self.state.averaged
        model.eval()
        self.pictures(model, self.folder)
        written = results.append(self.folder.results, self.results(self.final_figures(), self.shared()))
        log.say(self.closing_words(written))
        return written

    def loop(self) -> LoopConfig:
        """Return how long and how precisely to train, in the engine's terms."""
        return loop_config(self.cfg, self.order(), self.dist)

    def order(self) -> Order:
        """Return the order of the training images."""
        cfg, crops = self.cfg, getattr(self.cfg.data, "crops_per_image", 1)
        return Order(images=len(self.sources["train"]), batch=cfg.batch, seed=cfg.seed, crops_per_image=crops)

    def lr_at(self, loop: LoopConfig) -> Callable[[int], float]:
        """Return the learning rate as a function of the 0-based step."""
        peak = peak_lr(self.cfg.optim, global_batch=self.cfg.batch)
        return partial(
            lr_at, schedule=self.cfg.schedule, peak=peak, steps=loop.steps, steps_per_epoch=loop.steps_per_epoch
        )

    def feed(self, loop: LoopConfig, *, start: int = 0, dist: Dist | None = None) -> Generator[Any, None, None]:
        """Yield this rank's micro-batches from step `start` on, endlessly. `dist`: the rank, if not this process's."""
        dist = dist or self.dist
        share = TrainKeys(order=self.order(), start=start, rank=dist.rank, world=dist.world, accumulate=loop.accumulate)
        return batches(
            self.training_samples(),
            share,
            workers=self.cfg.run.workers,
            pin=dist.device.type == "cuda",
            unreadable=self.cfg.data.unreadable(),
        )

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
        return sweep_over(samples, dist, batch=size, workers=run.workers, unreadable=policy)

    def build_state(self, loop: LoopConfig) -> TrainState:
        """Return model and optimizer before the first step."""
        cfg = self.cfg
        model = self.model()
        assembled = assemble(
            model, dist=self.dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations
        )
        optimizer = cfg.optim.algorithm.build(self.groups(model), peak_lr(cfg.optim, global_batch=cfg.batch))
        return TrainState.create(assembled, optimizer, loop, dist=self.dist, digest=self.digest(), extra=self.extra())

    def estimate(self, loop: LoopConfig) -> list[Result]:
        """Time some steps and print what the run would take; return no results."""
        self.state = self.build_state(loop)
        lines = [self.title()]
        if self.cfg.run.device_batch == "auto":
            loop, found = self.settle(loop, None)
            lines.append(found)
        lines += [self.plan(loop), trial.estimate(self, loop)]
        if self.dist.is_main:
            print("\n".join(lines), flush=True)
        return []

    def settle(self, loop: LoopConfig, folder: WorkDir | None) -> tuple[LoopConfig, str]:
        """Replace run.device_batch="auto" by a number; return the loop with it, and a sentence for the log.

        folder: work dir of a resumed run, which keeps the number that it began with.
        """
        recorded = load(folder.config, type(self.cfg)).run.device_batch if folder and folder.config.is_file() else None
        if isinstance(recorded, int):
            micro, found = recorded, f"run.device_batch = {recorded} (auto; as when the run began)"
        else:
            micro, found = trial.largest_batch(self, loop)
        self.cfg = self.cfg.model_copy(update={"run": self.cfg.run.model_copy(update={"device_batch": micro})})
        return self.loop(), found

    def check_data(self) -> list[str]:
        """Note the fingerprints of the data in the state; return notices for the user.

        Raises:
            ValueError: on every rank, with what changed, if the state was trained on other files.
        """
        state = self.state
        message: list[Any] = [None, []]
        if state.dist.is_main:
            now = {part: fingerprint(source) for part, source in self.sources.items()}
            before = state.extra.get("data", {})
            changes = [
                f"{part}: {what}"
                for part, found in now.items()
                if part in before and (what := change(before[part], found))
            ]
            if changes:
                message[0] = (
                    f"the data of {self.folder.root} have changed since the run began: put them as they were, or use "
                    "another --work-dir\n  " + "\n  ".join(changes)
                )
            if state.step and not before:
                message[1] = [
                    "the training state was saved by a version that did not record the data: they are assumed unchanged"
                ]
            state.extra["data"] = {part: found.saved() for part, found in now.items()}
        if state.dist.world > 1:
            torch.distributed.broadcast_object_list(message, group=state.dist.side, group_src=0)
        if message[0]:
            raise ValueError(message[0])
        return list(message[1])

    def start_sitting(self, loop: LoopConfig) -> None:
        """Make or extend the record of the run."""
        prints = self.state.extra.get("data", {})
        data = {
            part: data_set(self.cfg.data.name, source, Fingerprint(**prints[part]))
            for part, source in self.sources.items()
            if part in prints
        }
        start_sitting(self.cfg, self.about(), self.state, loop, self.folder.root.name, data)

    def about(self) -> About:
        """Return what the record says of the run beside config and data."""
        return About(
            self.name, self.method, self.cfg.data.name, self.inputs, self.uses_labels, self.depends_on_device_batch
        )

    def exported_record(self) -> dict[str, Any]:
        """Return the record as the artifact carries it; empty for a run of a version without records."""
        record = self.state.record
        if record is None:
            return {}
        return {RECORD: record.timed(self.state.seconds).exported().model_dump(mode="json")}

    def finished(self) -> list[Result]:
        """Return the results that this run has written after its last step; none if some of them were lost.

        A full disk or a damaged line loses results. Evaluations of the run's states have 0 epochs and do not count.
        """
        if not self.folder.results.is_file():
            return []
        found, defects = results.load(self.folder.results)
        key = (self.cfg.digest(), self.state.step, self.cfg.epochs)
        own = [result for result in found if (result.config_digest, result.steps, result.epochs) == key]
        expected = own[0].together if own else None
        complete = not defects if expected is None else len(own) == expected  # earlier versions did not count them
        return own if complete else []

    def exported_again(self, done: list[Result]) -> list[Result]:
        """Write the artifact of a finished run again if it is missing or damaged; return results with its digest."""
        print(f"{self.folder.root} is finished: its {len(done)} results are in {self.folder.results}", flush=True)
        if self.artifact is None:
            return done
        path = self.folder.root / self.artifact
        if path.is_file() and sha256(path) == done[0].checkpoint_sha256:
            return done
        problem = "is damaged" if path.is_file() else "is missing"
        print(f"{path} {problem}: it is written again from the training state", flush=True)
        self.export()
        digest = sha256(path)
        if digest == done[0].checkpoint_sha256:
            return done
        updated = [result.model_copy(update={"checkpoint_sha256": digest}) for result in done]
        return results.append(self.folder.results, updated)

    def plan(self, loop: LoopConfig) -> str:
        """Return steps, batch, rate and machine in one sentence."""
        cfg, dist = self.cfg, self.dist
        slow = cfg.precision == "bfloat16" and dist.device.type == "cpu" and not CPU_HAS_AMX
        hint = " (which has no matrix units for it: --set precision=float32 is faster here)" if slow else ""
        micro = cfg.batch // (dist.world * loop.accumulate)
        peak = peak_lr(cfg.optim, global_batch=cfg.batch)
        return (
            f"{loop.steps} steps of {cfg.batch} crops = {dist.world} x {loop.accumulate} x {micro}; peak lr {peak:.2e}"
            f"; {cfg.precision} on {results.device_name(dist.device)}{hint}"
        )

    def shared(self) -> dict[str, Any]:
        """Return the fields of a Result that all numbers of the finished run have in common."""
        state, cfg = self.state, self.cfg
        assert state.record is not None
        return self.described() | {
            "run": self.folder.root.name,
            "params": sum(p.numel() for p in state.bare.parameters()),
            "epochs": cfg.epochs,
            "steps": state.step,
            "images_seen": state.images_seen,
            "precision": cfg.precision,
            "wall_s": state.wall_s,
            "images_per_s": state.images_seen / state.seconds.train,
            "peak_mem_gib": peak_memory_gib(self.dist.device),
            "unreadable": state.metrics.get("unreadable", 0),
            "record": state.record.timed(state.seconds),
        }

    def described(self) -> dict[str, Any]:
        """Return the fields of a Result that come from config and machine."""
        cfg = self.cfg
        return {
            "task": self.name,
            "protocol": self.method,
            "dataset": cfg.data.name,
            "seed": cfg.seed,
            "global_batch": cfg.batch,
            "world_size": self.dist.world,
            "matmul": cfg.matmul,
            "device": results.device_name(self.dist.device),
            "engine": "mae_transfer",
            "scale": cfg.scale,
            "config_digest": cfg.digest(),
            "recipe_digest": cfg.recipe_digest(),
        }


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


def sole_user(work_dir: Path, dist: Dist) -> AbstractContextManager[int | None]:
    """Return a lock of the work dir (rank 0); ValueError names the process that holds it."""
    if not dist.is_main:
        return nullcontext()
    return locked(work_dir / ".run.lock", owner=f"process {os.getpid()} on {socket.gethostname()}")


def summary(written: list[Result]) -> str:
    """Return the numbers in one line."""
    return ", ".join(f"{r.split} {r.metric} {r.value:.2f}%" for r in written)
