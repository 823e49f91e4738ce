"""The life of a training run, from its config to its results. Each task is a subclass that says what is its own.

`launch` opens the data and the weights, then `fit` does the rest: checks, the work dir, model and optimizer, resuming,
the record, the training loop with its evaluations, and the results.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mae_transfer import results
from mae_transfer.checkpoints import RECORD, sha256
from mae_transfer.config import load_saved
from mae_transfer.data import Order, Samples, TrainKeys, batches
from mae_transfer.data.sources import Fingerprint, compare_fingerprints, fingerprint
from mae_transfer.engine.dist import agree, assemble, compiles
from mae_transfer.engine.log import Logger
from mae_transfer.engine.loop import Evaluate, Step, train
from mae_transfer.engine.optim import EachTensor, Group, param_groups, peak_lr
from mae_transfer.engine.schedule import Anneal, Rates, lr_at, moving
from mae_transfer.engine.state import LoopConfig, TrainState, micro_steps
from mae_transfer.engine.state import resume as resume_state
from mae_transfer.models.attention import set_position_bias
from mae_transfer.models.vit import Block
from mae_transfer.record import UNKNOWN, Sitting, Software
from mae_transfer.results import Result
from mae_transfer.tasks.config import TrainConfig
from mae_transfer.tasks.run import RecordedRun
from mae_transfer.tasks.sweep import workers_of
from mae_transfer.tasks.workdir import WorkDir, open_work_dir, sole_user, write_config

if TYPE_CHECKING:
    from mae_transfer.tasks.best import Selection

C = TypeVar("C", bound=TrainConfig)


class Task(RecordedRun[C]):
    """One training run."""

    depends_on_device_batch: tuple[str, ...] = ()
    """What makes the numbers depend on images per device, beside those of the model: "mixup", "mask loss"."""
    artifact: ClassVar[str | None] = None
    """Name of the file that a finished run leaves for others. `export` writes it."""

    train_set: Any
    """The data set to train on; from `open` on."""
    state: TrainState
    """Model, optimizer and progress; from `fit` on."""
    folder: WorkDir
    """The work dir; from `fit` on."""

    # What each task says of itself.

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
    def evaluate(self, model: Any, step: int) -> dict[str, float]:
        """Return the figures of an evaluation of the unwrapped model. Every rank calls it."""

    # What a task may change.

    def groups(self, model: Any) -> list[Group]:
        """Return the optimizer's parameter groups."""
        return param_groups(model, weight_decay=self.cfg.optim.weight_decay)

    def prepare(self, loop: LoopConfig) -> None:
        """Get ready for a loop of this length and micro-batch. ValueError if the task cannot run so."""

    def selection(self) -> Selection | None:
        """Return how the best state is selected. None: the last state is reported."""
        return None

    def monitor(self, model: Any, step: int) -> dict[str, float]:
        """Return figures to log every `monitor_every` steps of the loop, if that is set. Every rank calls it."""
        return {}

    def training_flops(self) -> int | None:
        """Return the floating-point operations of a training step, per image; None if they are not counted."""
        return None

    def inspect(self, step: int, figures: Mapping[str, float]) -> str:
        """Look at the figures of a log line; return an alarm for the log, or "". Every rank calls it."""
        return ""

    def digest(self) -> str:
        """Return a digest of the files that the run refers to. A checkpoint with another digest is refused."""
        return ""

    def held(self) -> nn.Module | None:
        """Build what the run keeps in its training state besides the model: a queue, a centre."""
        return None

    def extra(self) -> dict[str, Any]:
        """Return what the task keeps in its checkpoints, plain types and tensors."""
        return {}

    def pictures(self, model: nn.Module, folder: WorkDir) -> None:
        """Draw what the final model makes of some images."""

    def export(self, model: Any) -> None:
        """Write the artifact of the final model into the work dir."""

    def final_figures(self) -> Mapping[str, float]:
        """Return the figures to report when training is done: those of the last evaluation, or of the best state."""
        return self.state.metrics

    def summary(self, written: list[Result]) -> str:
        """Return the main numbers in one line."""
        return ", ".join(f"{r.split} {r.metric} {r.value:.2f}%" for r in written)

    def closing_words(self, written: list[Result]) -> str:
        """Return the last lines of the log."""
        return f"done: {self.summary(written)}; in {self.folder.results}"

    # What is common.

    @classmethod
    def launch(cls, cfg: C, work_dir: Path, *, resume: bool = False) -> list[Result]:
        """Train, evaluate and write the results into `work_dir`; return them (rank 0, finished runs only).

        Raises:
            ValueError: config, data, weights and work dir do not fit together; before training starts.
            NonFiniteLoss: names the step and its samples.
        """
        with cls.session(cfg) as dist:
            task = cls(cfg, dist)
            task.open()
            return task.fit(work_dir, resume=resume)

    def fit(self, work_dir: Path, *, resume: bool) -> list[Result]:
        """Train, evaluate and finish. A bad config stops it before anything is written."""
        loop = self.loop()
        self.rates_at(loop)(0)  # a warm-up longer than the run is an error now, not later
        self.prepare(loop)
        self.keys(loop)  # the batch can be split
        if self.decode_on is not None:
            self.training_samples()  # the device can decode them
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
        # a finished run needs its last training state only to mend its artifact
        if (done := self.finished(loop.steps)) and (state.step == loop.steps or self.artifact_is_whole(done)):
            return self.exported_again(done) if main else done
        if cfg.run.device_batch == "auto":
            loop, found = self.choose_device_batch(loop, self.folder if resume else None)
            notices.append(found)
        self.prepare(loop)
        self.start_record(loop)
        if self.dist.device.type == "cuda":  # elsewhere the peak is not worth its measurement
            loop = loop.model_copy(update={"flops_per_image": self.training_flops()})
        cfg, run, selection = self.cfg, self.cfg.run, self.selection()
        evaluate: Evaluate = self.evaluate
        if selection is not None:
            from mae_transfer.tasks.best import keeping_best, restore_best

            evaluate = keeping_best(selection, state, self.folder, evaluate)
        with Logger(
            work_dir, steps=loop.steps, resumed_at=state.step, main=main, progress=run.progress, wandb=run.wandb
        ) as log:
            if main:
                write_config(self.folder, cfg)
            for notice in [*notices, self.title(), self.plan(loop)]:
                log.say(notice)
            with closing(self.feed(loop, start=state.step)) as feed:
                rates, saved = self.rates_at(loop), self.folder.checkpoints
                train(
                    state, feed, self.loss, loop, rates_at=rates, log=log, checkpoints=saved, evaluate=evaluate,
                    monitor=self.monitor, inspect=self.inspect,
                )  # fmt: skip
            if selection is not None and not state.stopped:
                log.say(restore_best(selection, state, self.folder))
            if state.stopped or not main:
                return []
            return self.finish(log)

    def finish(self, log: Logger) -> list[Result]:
        """Write curves, artifact, pictures and results (rank 0). With the results a run is finished."""
        from mae_transfer.draw.curves import save_curves

        save_curves(self.folder.root / "log.jsonl", self.folder.root / "curves.png")
        model = self.state.evaluated
        if self.artifact is not None:
            self.export(model)
        model.eval()
        self.pictures(model, self.folder)
        written = results.append(self.folder.results, self.results(self.final_figures(), self.shared_now()))
        log.say(self.closing_words(written))
        return written

    def loop(self) -> LoopConfig:
        """Return how long and how precisely to train, in the engine's terms."""
        cfg, per_epoch, wanted = self.cfg, self.order().steps_per_epoch, self.cfg.run.device_batch
        clip, decay = cfg.optim.clip_norm, cfg.ema_decay
        # "auto" begins with the whole share
        micro = wanted if isinstance(wanted, int) else None
        _, accumulate = micro_steps(cfg.batch, device_batch=micro, world=self.dist.world)
        return LoopConfig(
            steps=max(1, round(cfg.epochs * per_epoch)),
            steps_per_epoch=per_epoch,
            global_batch=cfg.batch,
            accumulate=accumulate,
            precision=cfg.precision,
            clip_norm=clip.each if isinstance(clip, EachTensor) else clip,
            clip_each=isinstance(clip, EachTensor),
            ema_decay=decay.start if isinstance(decay, Anneal) else decay,
            seed=cfg.seed,
            evaluate_every=max(1, round(cfg.evaluate_epochs * per_epoch)) if cfg.evaluate_epochs else None,
            run=cfg.run,
        )

    def order(self) -> Order:
        """Return the order of the training images."""
        cfg, crops = self.cfg, getattr(self.cfg.data, "crops_per_image", 1)
        return Order(images=len(self.sources["train"]), batch=cfg.batch, seed=cfg.seed, crops_per_image=crops)

    def rates_at(self, loop: LoopConfig) -> Callable[[int], Rates]:
        """Return learning rate, weight decay and decay of the average as a function of the 0-based step."""
        cfg, length = self.cfg, {"steps": loop.steps, "steps_per_epoch": loop.steps_per_epoch}
        peak = peak_lr(cfg.optim, global_batch=cfg.batch)
        return lambda step: Rates(
            lr_at(step, schedule=cfg.schedule, peak=peak, **length),
            moving(cfg.optim.weight_decay, step, **length),
            moving(cfg.ema_decay, step, **length),
        )

    def micro_batch(self, loop: LoopConfig) -> int:
        """Return the images per device and forward pass."""
        return loop.global_batch // (self.dist.world * loop.accumulate)

    def keys(self, loop: LoopConfig, *, start: int = 0) -> TrainKeys:
        """Return this rank's micro-batches from step `start` on; ValueError if the batch cannot be split."""
        dist = self.dist
        return TrainKeys(order=self.order(), start=start, rank=dist.rank, world=dist.world, accumulate=loop.accumulate)

    def feed(self, loop: LoopConfig, *, start: int = 0) -> Generator[Any, None, None]:
        """Yield this rank's micro-batches from step `start` on, endlessly. Every rank calls it."""
        keys = self.keys(loop, start=start)
        samples, pin, policy = self.training_samples(), self.dist.device.type == "cuda", self.cfg.data.unreadable()
        return batches(samples, keys, workers=workers_of(self.cfg.run), pin=pin, unreadable=policy)

    @property
    def decode_on(self) -> torch.device | None:
        """What decodes the training images; None: the workers."""
        return self.dist.device if self.cfg.run.decode_on == "device" else None

    def build_state(self, loop: LoopConfig) -> TrainState:
        """Return model and optimizer before the first step."""
        cfg = self.cfg
        model = self.model()
        views = getattr(cfg.data, "views", None)  # those of joint embedding go through the model together
        check_skipping(model, self.micro_batch(loop) * (views.wide if views else 1))
        compiled = compiles(cfg.run.compile, self.dist)
        set_position_bias(model, cfg.run.position_bias, device=self.dist.device, compiled=compiled)
        assembled = assemble(
            model, dist=self.dist, compile=cfg.run.compile, checkpoint_activations=cfg.run.checkpoint_activations
        )
        optimizer = cfg.optim.algorithm.build(self.groups(model), peak_lr(cfg.optim, global_batch=cfg.batch))
        return TrainState.create(
            assembled, optimizer, loop, dist=self.dist, held=self.held(), digest=self.digest(), extra=self.extra()
        )

    def estimate(self, loop: LoopConfig) -> list[Result]:
        """Time some steps and print what the run would take; return no results."""
        from mae_transfer.tasks import trial

        self.state = self.build_state(loop)
        lines = [self.title()]
        if self.cfg.run.device_batch == "auto":
            loop, found = self.choose_device_batch(loop, None)
            lines.append(found)
        lines += [self.plan(loop), trial.estimate(self, loop)]
        if self.dist.is_main:
            print("\n".join(lines), flush=True)
        return []

    def choose_device_batch(self, loop: LoopConfig, folder: WorkDir | None) -> tuple[LoopConfig, str]:
        """Replace run.device_batch="auto" by a number; return the loop with it, and a sentence for the log.

        folder: work dir of a resumed run, which keeps the number that it began with.
        """
        saved = folder.config if folder and folder.config.is_file() else None
        recorded = load_saved(saved, type(self.cfg)).run.device_batch if saved else None
        if isinstance(recorded, int):
            micro, found = recorded, f"run.device_batch = {recorded} (auto; as when the run began)"
        else:
            from mae_transfer.tasks import trial

            micro, found = trial.largest_batch(self, loop)
        self.cfg = self.cfg.model_copy(update={"run": self.cfg.run.model_copy(update={"device_batch": micro})})
        return self.loop(), found

    def check_data(self) -> list[str]:
        """Note the fingerprints of the data in the state; return notices for the user.

        Raises:
            ValueError: on every rank, with what changed, if the state was trained on other files.
        """
        state = self.state

        def compare() -> list[str]:
            now = {part: fingerprint(source) for part, source in self.sources.items()}
            before = state.extra.get("data", {})
            changes = [
                f"{part}: {what}"
                for part, found in now.items()
                if part in before and (what := compare_fingerprints(before[part], found))
            ]
            if changes:
                raise ValueError(
                    f"the data of {self.folder.root} have changed since the run began: put them as they were, or use "
                    "another --work-dir\n  " + "\n  ".join(changes)
                )
            state.extra["data"] = {part: found.saved() for part, found in now.items()}
            if state.step and not before:
                return [
                    "the training state was saved by a version that did not record the data: they are assumed unchanged"
                ]
            return []

        return agree(compare, state.dist)

    def start_record(self, loop: LoopConfig) -> None:
        """Make the record of the run, or extend that of a continued run, and put it into the state."""
        state, micro = self.state, self.micro_batch(loop)
        sitting = self.sitting(first_step=state.step, device_batch=micro)
        if not self.dist.is_main:
            return
        prints = {part: Fingerprint(**print_) for part, print_ in state.extra["data"].items()}
        record = self.record(self.folder.root.name, prints, epochs=self.cfg.epochs, batch=self.cfg.batch)
        before = state.record
        sittings: tuple[Sitting, ...] = (sitting,)
        earlier: tuple[str, ...] = ()
        if before is not None:
            changed = before.config_digest != record.config_digest
            if state.step == loop.steps and not changed:
                return  # its results were lost; no step is left, and the artifact must be the same file again
            sittings = (*before.timed(state.seconds).sittings, sitting)
            earlier = (*before.earlier_configs, *([before.config_digest] if changed else []))
        elif state.step:  # an earlier version began the run and did not record it
            unknown = Software(version=UNKNOWN, commit=None, dirty=False, packages={})
            begun = sitting.model_copy(
                update={
                    "started_at": UNKNOWN, "first_step": 0, "software": unknown, "devices": (UNKNOWN,),
                    "device_batch": 0, "seconds": state.seconds,
                }
            )  # fmt: skip
            sittings = (begun, sitting)
        depends = (*tied_to_batch(state.model), *self.depends_on_device_batch)
        state.record = record.model_copy(
            update={"sittings": sittings, "earlier_configs": earlier, "depends_on_device_batch": depends}
        )

    def about(self) -> dict[str, Any]:
        """Return what the artifact says of its run; without the record for a run of a version that had none."""
        cfg, record = self.cfg, self.state.record
        about = {"recipe": cfg.recipe(), "digest": cfg.digest(), "scale": cfg.scale}
        if record is None:
            return about
        return about | {RECORD: record.timed(self.state.seconds).exported().model_dump(mode="json")}

    def finished(self, steps: int) -> list[Result]:
        """Return the results that this run has written after its last of `steps`; none if some of them were lost.

        A full disk or a damaged line loses results. Evaluations of the run's states have 0 epochs and do not count.
        """
        if not self.folder.results.is_file():
            return []
        found, defects = results.load(self.folder.results)
        key = (self.cfg.digest(), steps, self.cfg.epochs)
        own = [result for result in found if (result.config_digest, result.steps, result.epochs) == key]
        expected = own[0].together if own else None
        complete = not defects if expected is None else len(own) == expected  # earlier versions did not count them
        return own if complete else []

    def exported_again(self, done: list[Result]) -> list[Result]:
        """Write the artifact of a finished run again if it is missing or damaged; return results with its digest."""
        print(f"{self.folder.root} is finished: its {len(done)} results are in {self.folder.results}", flush=True)
        if self.artifact is None or self.artifact_is_whole(done):
            return done
        path = self.folder.root / self.artifact
        problem = "is damaged" if path.is_file() else "is missing"
        print(f"{path} {problem}: it is written again from the training state", flush=True)
        self.export(self.state.evaluated)
        digest = sha256(path)
        if digest == done[0].checkpoint_sha256:
            return done
        updated = [result.model_copy(update={"checkpoint_sha256": digest}) for result in done]
        return results.append(self.folder.results, updated)

    def artifact_is_whole(self, done: Sequence[Result]) -> bool:
        """Return whether the artifact is the file that the results name, or the task has none."""
        path = self.folder.root / (self.artifact or "")
        return self.artifact is None or (path.is_file() and sha256(path) == done[0].checkpoint_sha256)

    def plan(self, loop: LoopConfig) -> str:
        """Return steps, batch, rate and machine in one sentence."""
        cfg, micro = self.cfg, self.micro_batch(loop)
        return (
            f"{loop.steps} steps of {cfg.batch} crops = {self.dist.world} x {loop.accumulate} x {micro}; "
            f"peak lr {peak_lr(cfg.optim, global_batch=cfg.batch):.2e}; {self.machine(cfg.precision)}"
        )

    def shared_now(self) -> dict[str, Any]:
        """Return the fields of a Result that all numbers of the finished run have in common."""
        state = self.state
        assert state.record is not None
        record, seconds = state.record.timed(state.seconds), state.seconds
        speed, unreadable = state.images_seen / seconds.train, state.metrics.get("unreadable", 0)
        fields = self.shared(
            record, state.bare, steps=state.step, images_seen=state.images_seen, seconds=seconds, images_per_s=speed
        )
        return fields | {"unreadable": unreadable}


def tied_to_batch(model: nn.Module) -> dict[str, str]:
    """Return what makes training depend on images per forward pass, with the first module of each kind.

    The model is set to train.
    """
    model.train()
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            found.setdefault("batch norm", name)
        elif isinstance(module, Block) and module.skips:
            found.setdefault("skip_dropped", name)
    return found


def check_skipping(model: nn.Module, samples: int) -> None:
    """Raise ValueError if `skip_dropped` would drop none of so many samples. The model is set to train."""
    model.train()
    blocks = [module for module in model.modules() if isinstance(module, Block) and module.skips]
    if blocks and blocks[-1].kept(samples) == samples:
        raise ValueError(
            f"skip_dropped=True: of {samples} sample(s) per device and forward pass, the last block would drop none at "
            f"drop_path = {blocks[-1].rate_skipped:g}: raise run.device_batch or batch, or set skip_dropped=False"
        )
